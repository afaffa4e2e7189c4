"""Permutation: a random image row for every text. The negative control of every comparison.

    z = x_j,   j drawn for each text row

The result has the distribution of the images exactly (mixing near 1) and says nothing of the text
(Phi, Psi and Omega at chance): a measure on which this scores well does not measure meaning.
Source: AnisoAlign's random pairing, arXiv:2605.07825, Sec. 3.3.
Departs from a permutation in two points: the map holds at most `num_rows` image rows, evenly spaced
over the fitting set, and j is drawn with replacement from (seed, record id, epoch), so that a row's
image does not depend on the rows beside it.
Cost: one pass over each modality, one more over images; the map is num_rows * d * 8 bytes.
Needs no pairs.
Letters: x image row, d width.
"""

from typing import Any

from jaxtyping import Float64, Int64
from torch import Tensor

from revision.alignment.aniso.sampling import sampled
from revision.alignment.base import AlignmentMap, Cloud
from revision.alignment.noise import uniform


class Permutation(AlignmentMap):
    """Random images in the place of texts."""

    name = "perm"
    buffer_names = (*AlignmentMap.buffer_names, "images")
    images: Tensor

    def __init__(self, *, num_rows: int = 10_000, seed: int = 0) -> None:
        super().__init__()
        if num_rows < 2:
            raise ValueError(f"num_rows={num_rows} images would give every text the same row")
        self.num_rows, self.seed = num_rows, seed

    @property
    def is_random(self) -> bool:
        return True

    def options(self) -> dict[str, Any]:
        return {"num_rows": self.num_rows, "seed": self.seed}

    def fit(self, source: Cloud, target: Cloud) -> None:
        """As the base, then the images that will be drawn from, in one more pass."""
        super().fit(source, target)
        self.images = sampled(target, lambda rows: rows, self.num_rows)

    def move(self, rows: Float64[Tensor, "n dim"]) -> Float64[Tensor, "n dim"]:
        return rows

    def disturb(
        self, rows: Float64[Tensor, "n dim"], keys: Int64[Tensor, " n"]
    ) -> Float64[Tensor, "n dim"]:
        places = uniform(keys, self.seed).mul_(len(self.images)).long()
        return self.images[places.to(self.images.device)]
