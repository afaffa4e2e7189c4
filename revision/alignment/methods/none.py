"""No alignment: text rows are only brought to unit norm. The baseline of every comparison.

    z = Norm(y)

Source: "No Align" of arXiv:2602.07026, Tab. 1.
Departs from it in nothing but float64 on the way to unit norm.
Cost: one pass over each modality, whose moments only reports need.
Needs no pairs.
"""

from jaxtyping import Float64
from torch import Tensor

from revision.alignment.base import AlignmentMap


class NoAlignment(AlignmentMap):
    """Leaves rows where they are; still holds the moments, so that its gap can be reported."""

    name = "none"

    @property
    def shift(self) -> Float64[Tensor, " dim"]:
        return self.source_mean.new_zeros(self.dim)

    def move(self, rows: Float64[Tensor, "n dim"]) -> Float64[Tensor, "n dim"]:
        return rows
