"""ReAlign: match mean and trace of the image cloud, project, then correct the centroid.

    anchor, trace:  e' = Norm(mu_x + s (y - mu_y)),    s = sqrt(T_x / (T_y + 1e-10))
    centroid:       z  = Norm(e' - mu' + mu_x),        mu' = E[e'] over the fitting rows

Source: arXiv:2602.07026v3, Sec. 4; Yu-xm/ReVision@2d26f3a embed_ReAlign.py:159-372.
Departs from the script in three points: traces come from the same pass as the means (3 passes over
text and 1 over images instead of 4 and 2); means stay in float64 unless `mean_precision` asks for
the script's float32; bad rows are rejected, where the script writes them out as one constant row.
Letters: y text row, mu_x, mu_y image and text mean, T_x, T_y image and text trace, s scale.
"""

from typing import Any, Literal, get_args

import torch
from jaxtyping import Float64
from torch import Tensor

from revision.alignment.base import AlignmentMap, SourceRows, onto_sphere_
from revision.alignment.moments import Moments, moments_of_transformed

EPSILON = 1e-10  # of the public script; keeps a text cloud without spread from dividing by zero
MeanPrecision = Literal["float64", "float32"]


class ReAlign(AlignmentMap):
    """Anchor, trace and centroid step.

    `mean_precision="float32"` rounds both means as the public script does, and then reproduces its
    float32 outputs exactly; the default keeps them, which moves outputs by about 1e-8.
    """

    name = "realign"
    buffer_names = (*AlignmentMap.buffer_names, "scale", "centroid")
    scale: Tensor
    centroid: Tensor

    def __init__(self, *, mean_precision: MeanPrecision = "float64") -> None:
        super().__init__()
        if mean_precision not in get_args(MeanPrecision):
            raise ValueError(f"mean_precision is float64 or float32, not {mean_precision!r}")
        self.mean_precision = mean_precision

    @property
    def gain(self) -> float:
        return float(self.scale)

    @property
    def shift(self) -> Float64[Tensor, " dim"]:
        return self.target_mean / self.scale - self.source_mean  # a factor vanishes under Norm

    def options(self) -> dict[str, Any]:
        return {"mean_precision": self.mean_precision}

    def fit(self, source: Moments, target: Moments, source_rows: SourceRows) -> None:
        """As the base, then the scale, then the centroid of the projected rows in one more pass."""
        super().fit(source, target, source_rows)
        self.scale = (self.target_trace / (self.source_trace + EPSILON)).sqrt()
        self.centroid = torch.tensor(moments_of_transformed(source_rows(), self.project).mean)

    def project(self, rows: Float64[Tensor, "n dim"]) -> Float64[Tensor, "n dim"]:
        """Anchor and trace step in place: e' of unit rows y."""
        offset = self.target_mean - self.scale * self.source_mean
        return onto_sphere_(rows.mul_(self.scale).add_(offset))

    def transform(self, rows: Float64[Tensor, "n dim"]) -> Float64[Tensor, "n dim"]:
        return onto_sphere_(self.project(rows).add_(self.target_mean - self.centroid))

    def _means(self, source: Moments, target: Moments) -> tuple[Tensor, Tensor]:
        means = super()._means(source, target)
        if self.mean_precision == "float64":
            return means
        return means[0].float().double(), means[1].float().double()
