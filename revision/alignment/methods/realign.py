"""ReAlign: match mean and trace of the image cloud, project, then correct the centroid.

    anchor, trace:  e' = Norm(mu_x + s (y - mu_y)),    s = sqrt(T_x / (T_y + 1e-10))
    centroid:       z  = Norm(e' - mu' + mu_x),        mu' = E[e'] over the fitting rows

Source: arXiv:2602.07026v3, Sec. 4; Yu-xm/ReVision@2d26f3a embed_ReAlign.py:159-372.
Departs from the script in three points: traces come from the same pass as the means (3 passes over
text and 1 over images instead of 4 and 2); means stay in float64 unless `mean_precision` asks for
the script's float32; bad rows are rejected, where the script writes them out as one constant row.
Cost: one pass over each modality and one more over text for the centroid; applying is two
multiplications and additions per number and two norms per row.
Needs no pairs.
Letters: y text row, mu_x, mu_y image and text mean, T_x, T_y image and text trace, s scale.
"""

from typing import Any, Literal, get_args

from jaxtyping import Float64
from torch import Tensor

from revision.alignment.base import EPSILON, Cloud
from revision.alignment.moments import Moments
from revision.alignment.recentred import RecentredMap

MeanPrecision = Literal["float64", "float32"]


class ReAlign(RecentredMap):
    """Anchor, trace and centroid step.

    `mean_precision="float32"` rounds both means as the public script does, and then reproduces its
    float32 outputs exactly; the default keeps them, which moves outputs by about 1e-8. Without
    `trace` the scale is 1, without `centroid` the last step is left out: the paper's ablation.
    """

    name = "realign"
    buffer_names = (*RecentredMap.buffer_names, "scale")
    scale: Tensor

    def __init__(
        self,
        *,
        mean_precision: MeanPrecision = "float64",
        trace: bool = True,
        centroid: bool = True,
    ) -> None:
        super().__init__(centroid=centroid)
        if mean_precision not in get_args(MeanPrecision):
            raise ValueError(f"mean_precision is float64 or float32, not {mean_precision!r}")
        self.mean_precision = mean_precision
        self.has_trace_step = trace

    @property
    def gain(self) -> float:
        return float(self.scale)

    @property
    def shift(self) -> Float64[Tensor, " dim"]:
        return self.target_mean / self.scale - self.source_mean  # a factor vanishes under Norm

    def options(self) -> dict[str, Any]:
        own = {"mean_precision": self.mean_precision, "trace": self.has_trace_step}
        return own | super().options()

    def estimate(self, source: Cloud, target: Cloud) -> None:
        """The scale."""
        scale = (self.target_trace / (self.source_trace + EPSILON)).sqrt()
        self.scale = scale if self.has_trace_step else scale.new_ones(())

    def place(self, rows: Float64[Tensor, "n dim"]) -> Float64[Tensor, "n dim"]:
        offset = self.target_mean - self.scale * self.source_mean
        return rows.mul_(self.scale).add_(offset)

    def _means(self, source: Moments, target: Moments) -> tuple[Tensor, Tensor]:
        means = super()._means(source, target)
        if self.mean_precision == "float64":
            return means
        return means[0].float().double(), means[1].float().double()
