"""Mean shift: move the text cloud as a whole so that its mean falls on the image mean.

    z = Norm(y + a (mu_x - mu_y))
    symmetric:  z = Norm(y + (delta / 2) g),   x' = Norm(x - (delta / 2) g),
                g = Norm(mu_x - mu_y)

Before the projection the mean is exactly mu_x (at a = 1) and covariance and distances are
unchanged; the projection on the sphere then moves the mean away again. `normalize=False` leaves the
projection out. The symmetric form moves both clouds towards each other along the gap; images then
have to be moved wherever they enter a model, in training and later.
Source: arXiv:2602.07026, Sec. 4, Step 1; arXiv:2503.22655, Eq. 21; symmetric: arXiv:2412.14384,
xfactlab/I0T@b06fa45 src/features.py:4-26.
Departs from I0T for clouds without a gap: g is then 0, where the code divides by 0.
Cost: one pass over each modality, one addition per number.
Needs no pairs.
Letters: x image row, y text row, mu_x image mean, mu_y text mean, a strength, delta `symmetric`.
"""

from typing import Any

import torch
from jaxtyping import Float64
from torch import Tensor

from revision.alignment.base import AlignmentMap


class MeanShift(AlignmentMap):
    """Shift by `strength` times the mean gap: 0 is no alignment, 1 the whole way.

    `symmetric` is the distance by which the clouds approach each other, half of it each; the gap is
    closed where it equals the length of the gap. It takes the place of `strength`.
    """

    name = "mean_shift"

    def __init__(
        self, *, strength: float = 1.0, normalize: bool = True, symmetric: float | None = None
    ) -> None:
        super().__init__()
        if not 0.0 <= strength <= 1.0:
            raise ValueError(f"strength must lie between 0 and 1, not {strength}")
        if symmetric is not None and (strength != 1.0 or not 0.0 <= symmetric <= 2.0):
            raise ValueError(
                f"symmetric={symmetric} with strength={strength}: symmetric is a distance between "
                "0 and 2 on the sphere and takes the place of strength; leave that at 1"
            )
        self.strength, self.normalize, self.symmetric = strength, normalize, symmetric
        self.changes_images = symmetric is not None

    @property
    def shift(self) -> Float64[Tensor, " dim"]:
        gap = self.target_mean - self.source_mean
        if self.symmetric is None:
            return self.strength * gap
        return self.symmetric / 2 * torch.nn.functional.normalize(gap, dim=0)

    def options(self) -> dict[str, Any]:
        return {
            "strength": self.strength,
            "normalize": self.normalize,
            "symmetric": self.symmetric,
        }

    def move(self, rows: Float64[Tensor, "n dim"]) -> Float64[Tensor, "n dim"]:
        return rows.add_(self.shift)

    def move_images(self, rows: Float64[Tensor, "n dim"]) -> Float64[Tensor, "n dim"]:
        return rows if self.symmetric is None else rows.sub_(self.shift)
