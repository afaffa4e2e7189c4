"""Blockwise covariance alignment: colour the anchored texts inside U and inside V, each by itself.

    anchor:    e1 = Norm(y - mu_y + mu_x)
    blocks:    T_U = Cov(P_U x)^(1/2) Cov(P_U e1)^(-1/2),   T_V alike;   M = T_U P_U + T_V P_V
               e2 = Norm(mu_x + M (e1 - E e1))
    centroid:  z = Norm(e2 - E e2 + mu_x)

U + V is the reference frame of revision/geometry/frame.py. Before the second projection the
covariances inside U and inside V are those of the images; the one between U and V is not matched.
With r = d it is `wct` of the anchored texts.

Source: arXiv:2602.07026v3, App. F, the baseline that ReAlign is compared with.
Departs from it in three points: e1 is centred before M (`center=False`, as printed, sends it
through M with its mean, e2 = Norm(M e1), which deforms the mean too); each block gets a ridge
rho (tr Sigma / width) I on both sides, where none is printed; the roots are taken of blocks in the
coordinates of the frame, r x r and (d - r) x (d - r), since P_U x has a singular d x d covariance.
Costs 4 passes over text (moments, covariance of e1, centroid, apply) and 1 over images; 4 d x d
matrices (13 MB each at d = 1280), five eigendecompositions (d^3 in all), d^2 multiplications a
row. Needs no pairs, but d + 1 rows a side at least and 10 d to be trusted.
Letters: x image row, y text row, mu_x, mu_y their means, P_U, P_V projections, r rank of U,
d width, rho ridge.
"""

from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from revision.alignment.base import Cloud, onto_sphere_
from revision.alignment.covariance import (
    check_ridge,
    check_rows,
    colouring,
    shrink,
    spread,
    times,
)
from revision.alignment.moments import Second, moments_of_transformed
from revision.alignment.recentred import RecentredMap
from revision.geometry.frame import Frame, check_frame_options, reference_frame


class BlockCovariance(RecentredMap):
    """Match the covariances inside U and inside V after an anchor; `rank` or `energy` choose U.

    The rank that was used is the buffer `rank_used`.
    """

    name = "bc"
    second_moments: ClassVar[Second] = "covariance"
    buffer_names = (*RecentredMap.buffer_names, "matrix", "offset", "spread", "rank_used")
    matrix: Tensor
    offset: Tensor
    spread: Tensor
    rank_used: Tensor

    def __init__(
        self,
        *,
        rank: int | None = 128,
        energy: float | None = None,
        center: bool = True,
        ridge: float = 1e-4,
        centroid: bool = True,
    ) -> None:
        super().__init__(centroid=centroid)
        check_frame_options(rank=rank, energy=energy)
        check_ridge(ridge)
        self.rank, self.energy, self.center, self.ridge = rank, energy, center, ridge

    @property
    def gain(self) -> float:
        return float(self.spread / self.source_trace.sqrt())

    def options(self) -> dict[str, Any]:
        return {
            "rank": self.rank,
            "energy": self.energy,
            "center": self.center,
            "ridge": self.ridge,
            **super().options(),
        }

    def estimate(self, source: Cloud, target: Cloud) -> None:
        """The frame, then M from the covariance of e1, which takes a pass of its own."""
        text, image = source.moments, target.moments
        check_rows(self.dim, source=text, target=image)
        frame = reference_frame(
            text.covariance, image.covariance, rank=self.rank, energy=self.energy
        )
        anchored = moments_of_transformed(source.rows(), self.anchor, second="covariance")
        matrix = blockwise(frame, anchored.covariance, image.covariance, self.ridge)
        offset = image.mean - matrix @ anchored.mean if self.center else np.zeros(self.dim)
        self.matrix, self.offset = torch.tensor(matrix), torch.tensor(offset)
        self.spread = torch.tensor(spread(matrix, anchored.covariance), dtype=torch.float64)
        self.rank_used = torch.tensor(frame.rank)

    def anchor(self, rows: Float64[Tensor, "n dim"]) -> Float64[Tensor, "n dim"]:
        """e1 of unit text rows, in place."""
        return onto_sphere_(rows.add_(self.target_mean - self.source_mean))

    def place(self, rows: Float64[Tensor, "n dim"]) -> Float64[Tensor, "n dim"]:
        return times(self.anchor(rows), self.matrix).add_(self.offset)


def blockwise(
    frame: Frame,
    source_cov: Float64[np.ndarray, "dim dim"],
    target_cov: Float64[np.ndarray, "dim dim"],
    ridge: float,
) -> Float64[np.ndarray, "dim dim"]:
    """M: the colouring of each block in its own coordinates, carried back to the whole space."""
    matrix = np.zeros_like(source_cov)
    for basis in (frame.basis, frame.complement):
        if basis.shape[1]:  # V is empty at full rank
            inside = (shrink(basis.T @ cov @ basis, ridge) for cov in (source_cov, target_cov))
            matrix += basis @ colouring(*inside) @ basis.T
    return matrix
