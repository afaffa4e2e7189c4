"""C3: shift the text cloud and disturb its rows; two published forms share the name.

    origin:  z = Norm(y - mu_y + sigma n),            x' = Norm(x - mu_x)
    target:  z = Norm(y - mu_y + mu_x + sigma n),     images unchanged
    n ~ N(0, I), drawn anew for each row in each epoch

Source: origin, arXiv:2401.08567, yuhui-zh15/C3@1a1641c
image_captioning/src/datasets/dataset_coco.py:194-232 with the flags of
scripts/coco_scripts/stage1/train_unimodal_c3.sh; target, "C3 Align" of arXiv:2602.07026v3 and
arXiv:2605.07825, App. B.3.
Neither of the latter states sigma. The code of C3 has variance 0.016 at width 512; as this makes
the noise 1.6 times longer at width 1280, the default here keeps its length at every width,
sqrt(0.016 * 512) = 2.86: sigma = sqrt(0.016 * 512 / d). The expected cosine of a row with its
disturbed copy is then 0.33; sigma = 0 gives `collapse` and `mean_shift`.
Departs from C3 in drawing n from (seed, record id, epoch), see revision/alignment/noise.py.
Cost: one pass over each modality; applying draws one normal number per number, 3.5 ns each.
Needs no pairs.
Letters: x image row, y text row, mu_x image mean, mu_y text mean, d width, n normal numbers.
"""

import math
from typing import Any, Literal, get_args

from jaxtyping import Float64
from torch import Tensor

from revision.alignment.base import AlignmentMap
from revision.alignment.noise import FixedNormNoise, GaussianNoise, Noise

Variant = Literal["origin", "target"]
NOISE_NORM = math.sqrt(0.016 * 512)


class C3(AlignmentMap):
    """`std` or `variance` per coordinate; without both, noise of norm 2.86 at every width."""

    name = "c3"

    def __init__(
        self,
        *,
        variant: Variant = "target",
        std: float | None = None,
        variance: float | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if variant not in get_args(Variant):
            raise ValueError(f"variant is origin or target, not {variant!r}")
        self.variant, self.std, self.variance, self.seed = variant, std, variance, seed
        self.changes_images = variant == "origin"
        self.noise = _noise(std, variance, seed)

    @property
    def shift(self) -> Float64[Tensor, " dim"]:
        if self.variant == "origin":
            return -self.source_mean
        return self.target_mean - self.source_mean

    def options(self) -> dict[str, Any]:
        return {
            "variant": self.variant,
            "std": self.std,
            "variance": self.variance,
            "seed": self.seed,
        }

    def move(self, rows: Float64[Tensor, "n dim"]) -> Float64[Tensor, "n dim"]:
        return rows.add_(self.shift)

    def move_images(self, rows: Float64[Tensor, "n dim"]) -> Float64[Tensor, "n dim"]:
        return rows.sub_(self.target_mean) if self.changes_images else rows


def _noise(std: float | None, variance: float | None, seed: int) -> Noise:
    if std is None and variance is None:
        return FixedNormNoise(norm=NOISE_NORM, seed=seed)
    return GaussianNoise(std=std, variance=variance, seed=seed)
