"""Mean shift: move the text cloud as a whole so that its mean falls on the image mean.

    z = Norm(y + a (mu_x - mu_y))

Before the projection the mean is exactly mu_x (at a = 1) and covariance and distances are
unchanged; the projection on the sphere then moves the mean away again.
Source: arXiv:2602.07026, Sec. 4, Step 1; arXiv:2503.22655, Eq. 21.
Letters: y text row, mu_x image mean, mu_y text mean, a strength.
"""

from typing import Any

from jaxtyping import Float64
from torch import Tensor

from revision.alignment.base import AlignmentMap


class MeanShift(AlignmentMap):
    """Shift by `strength` times the mean gap: 0 is no alignment, 1 the whole way."""

    name = "mean_shift"

    def __init__(self, *, strength: float = 1.0) -> None:
        super().__init__()
        if not 0.0 <= strength <= 1.0:
            raise ValueError(f"strength must lie between 0 and 1, not {strength}")
        self.strength = strength

    @property
    def shift(self) -> Float64[Tensor, " dim"]:
        return self.strength * (self.target_mean - self.source_mean)

    def options(self) -> dict[str, Any]:
        return {"strength": self.strength}

    def move(self, rows: Float64[Tensor, "n dim"]) -> Float64[Tensor, "n dim"]:
        return rows.add_(self.shift)
