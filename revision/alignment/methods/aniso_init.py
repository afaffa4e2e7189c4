"""AnisoAlign without training: radii of the images in a polar frame, their spread outside of it.

    y0     = y - mu_y + mu_x,    c = Q_U^T y0,    (rho_k, theta_k) = polar of block k of c
    rho'_k = F_k^{x,-1}(F_k^{y0}(rho_k)),         theta'_k = theta_k
    v'     = P_V (mu_x + D_V P_V (y - mu_y)),     D_V = Diag(sigma_V^x / (sigma_V^y + e))
    e'     = Norm(Q_U c' + v'),                   c' of polar coordinates (rho', theta')
    z      = Norm(e' - mean(e') + mu_x)

Q_U are the top r eigenvectors of Sigma_x + Sigma_y, paired (1, 2), (3, 4), ... (`rotation: haar`
mixes them first); sigma_V are standard deviations of each coordinate of the parts outside U.
Unpaired. Cost: 3 passes over texts (moments, quantiles, centroid), 2 over images, one to apply;
memory: max_rows x r/2 float64 (100 MB at the defaults) and the covariances.

Source: arXiv:2605.07825, Sec. 4.3, stages II(a) and II(d); it has no public code.
Departs from the paper: no ridge on Sigma_x + Sigma_y, which moves no eigenvector; D_V leads out of
V, so its result is projected back; sigma_V comes from the covariances, exactly, without a pass.
Not in the paper, hence ours: r = 256, e = 1e-12, 513 quantiles, pairing of adjacent axes, F_k^{y0}
on the shifted texts (those are the radii that it is applied to), quantiles from `max_rows` rows:
100,000 rows put a quantile within 0.16 % of its level, less than a step of the 513 levels.
Take care: with r = D nothing is left outside the frame and D_V does nothing.
Letters: x image row, y text row, mu mean, Sigma covariance, D width, Q_U basis of U (D x r), P_V
projector on the orthogonal complement V of U, F_k distribution of the radii of block k, e epsilon.
"""

from typing import Any, ClassVar, Literal, get_args

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from revision.alignment.aniso.polar import (
    Polar,
    haar_rotation,
    map_radii,
    radial_quantiles,
    to_cartesian,
    to_polar,
)
from revision.alignment.aniso.sampling import sampled
from revision.alignment.base import Cloud
from revision.alignment.covariance import times
from revision.alignment.moments import Second
from revision.alignment.recentred import RecentredMap
from revision.geometry.frame import reference_frame

DEFAULT_RANK = 256
Rotation = Literal["identity", "haar"]


class AnisoInit(RecentredMap):
    """Closed-form initialisation of AnisoAlign, with the centroid step.

    `rank=None` takes 256, or all of the width (rounded down to even) where that is smaller; a rank
    that is given and does not fit is refused. `seed` matters for `rotation="haar"` only.
    """

    name = "aniso_init"
    second_moments: ClassVar[Second] = "covariance"
    buffer_names = (
        *RecentredMap.buffer_names,
        "basis",
        "source_quantiles",
        "target_quantiles",
        "residual_scale",
    )
    basis: Tensor
    source_quantiles: Tensor
    target_quantiles: Tensor
    residual_scale: Tensor

    def __init__(
        self,
        *,
        rank: int | None = None,
        num_quantiles: int = 513,
        rotation: Rotation = "identity",
        seed: int = 0,
        epsilon: float = 1e-12,
        max_rows: int = 100_000,
        centroid: bool = True,
    ) -> None:
        super().__init__(centroid=centroid)
        if rank is not None and (rank < 2 or rank % 2):
            raise ValueError(
                f"rank is {rank}: the frame's axes are taken in pairs; give an even one"
            )
        if min(num_quantiles, max_rows) < 2:
            raise ValueError(
                f"num_quantiles is {num_quantiles} and max_rows {max_rows}: a distribution needs "
                "at least two of each, or every radius would become the same"
            )
        if rotation not in get_args(Rotation):
            raise ValueError(f"rotation is identity or haar, not {rotation!r}")
        if not 0 < epsilon < 1:
            raise ValueError(f"epsilon is added to squared radii of unit rows: not {epsilon}")
        self.rank, self.num_quantiles, self.max_rows = rank, num_quantiles, max_rows
        self.rotation, self.seed, self.epsilon = rotation, seed, epsilon

    def options(self) -> dict[str, Any]:
        names = "rank", "num_quantiles", "rotation", "seed", "epsilon", "max_rows"
        return {name: getattr(self, name) for name in names} | super().options()

    def estimate(self, source: Cloud, target: Cloud) -> None:
        """Frame, radial quantiles of both modalities, and the scales outside the frame."""
        text, image = source.moments, target.moments
        rank = self._checked_rank(text.count, image.count)
        basis = reference_frame(text.covariance, image.covariance, rank=rank).basis
        if self.rotation == "haar":
            basis = basis @ haar_rotation(rank, self.seed)
        self.basis = torch.tensor(basis)
        spread, wanted = (_outside_std(m.covariance, basis) for m in (text, image))
        self.residual_scale = torch.tensor(wanted / (spread + self.epsilon))
        self.source_quantiles = self._quantiles(source, self._shifted)
        self.target_quantiles = self._quantiles(target, lambda rows: rows)

    def place(self, rows: Float64[Tensor, "n dim"]) -> Float64[Tensor, "n dim"]:
        return self._assembled(*self.initial(rows))

    def initial(self, rows: Float64[Tensor, "n dim"]) -> tuple[Polar, Float64[Tensor, "n dim"]]:
        """(rho', theta') and v' of unit text rows."""
        radii, phases = self._polar(self._shifted(rows))
        radii = map_radii(radii, self.source_quantiles, self.target_quantiles)
        spread = self.residual_scale * self._outside(rows - self.source_mean)
        return Polar(radii, phases), self._outside(spread + self.target_mean)

    def _assembled(self, polar: Polar, residual: Tensor) -> Tensor:
        return times(to_cartesian(polar), self.basis) + residual

    def _shifted(self, rows: Tensor) -> Tensor:
        return rows - self.source_mean + self.target_mean

    def _polar(self, rows: Tensor) -> Polar:
        return to_polar(times(rows, self.basis.T), self.epsilon)

    def _outside(self, rows: Tensor) -> Tensor:
        return rows - times(times(rows, self.basis.T), self.basis)

    def _quantiles(self, cloud: Cloud, shift: Any) -> Tensor:
        radii = sampled(cloud, lambda rows: self._polar(shift(rows)).radii, self.max_rows)
        return radial_quantiles(radii, self.num_quantiles)

    def _checked_rank(self, num_text: int, num_image: int) -> int:
        rank = self.rank or min(DEFAULT_RANK, self.dim // 2 * 2)
        if rank > self.dim:
            raise ValueError(
                f"a frame of rank {rank} does not fit rows of width {self.dim}; give an even rank "
                f"<= {self.dim}, or rank=null for min({DEFAULT_RANK}, {self.dim // 2 * 2})"
            )
        if num_text + num_image - 2 < rank:
            raise ValueError(
                f"{num_text} text and {num_image} image rows span at most "
                f"{num_text + num_image - 2} directions, the frame has {rank}: the others would "
                f"be arbitrary; fit on at least {rank + 2} rows, or lower rank"
            )
        return rank


def _outside_std(
    covariance: Float64[np.ndarray, "dim dim"], basis: Float64[np.ndarray, "dim rank"]
) -> Float64[np.ndarray, " dim"]:
    """Standard deviation of each coordinate of P_V x: the diagonal of P_V Sigma P_V."""
    projector = np.eye(len(basis)) - basis @ basis.T
    return np.sqrt(np.clip(((projector @ covariance) * projector).sum(1), 0.0, None))
