"""Orthogonal gap: shift by the mean gap, except inside the directions in which a cloud varies.

    z = Norm(y - a g'),   g' = g - V_k V_k^T g,   g = mu_y - mu_x

V_k are k principal directions: of the texts, the modality that is moved (`basis="own"`), or of the
reference frame, the sum of both covariances (`basis="joint"`). The coordinates in V_k, which hold
most of the variance, stay untouched: V_k^T (y - a g') = V_k^T y. With the joint basis g' is exactly
-gamma, the orthogonal bias, at a = 1: it is removed and beta, the bias inside U, is left, an
ablation of the decomposition in revision/geometry/frame.py.

Source: arXiv:2603.29080, as quoted by third parties, who give no k.
Departs from it in the joint basis and in k = 128, the rank of the reference frame.
Costs 2 passes over text (moments, apply) and 1 over images; two d x d covariances (13 MB each at
d = 1280) while fitting, one eigendecomposition (d^3), d additions a row. Needs no pairs, but more
than k rows of each cloud whose directions are taken.
Letters: y text row, mu_x, mu_y image and text mean, a strength, k number of directions, d width.
"""

from typing import Any, ClassVar, Literal, get_args

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from revision.alignment.base import AlignmentMap, Cloud
from revision.alignment.covariance import check_rows
from revision.alignment.moments import Moments, Second
from revision.geometry.frame import principal_axes

Basis = Literal["own", "joint"]


class OrthogonalGap(AlignmentMap):
    """Remove the part of the mean gap outside `num_directions` principal directions.

    `strength` 0 is no alignment; `num_directions` 0 is a mean shift of that strength.
    """

    name = "ortho_gap"
    second_moments: ClassVar[Second] = "covariance"
    buffer_names = (*AlignmentMap.buffer_names, "orthogonal_gap")
    orthogonal_gap: Tensor

    def __init__(
        self, *, strength: float = 1.0, num_directions: int = 128, basis: Basis = "own"
    ) -> None:
        super().__init__()
        if not 0.0 <= strength <= 1.0:
            raise ValueError(f"strength must lie between 0 and 1, not {strength}")
        if num_directions < 0:
            raise ValueError(f"num_directions must not be negative, not {num_directions}")
        if basis not in get_args(Basis):
            raise ValueError(f"basis is own or joint, not {basis!r}")
        self.strength, self.num_directions, self.basis = strength, num_directions, basis

    @property
    def shift(self) -> Float64[Tensor, " dim"]:
        return -self.strength * self.orthogonal_gap

    def options(self) -> dict[str, Any]:
        return {
            "strength": self.strength,
            "num_directions": self.num_directions,
            "basis": self.basis,
        }

    def fit(self, source: Cloud, target: Cloud) -> None:
        """As the base, then g' from the principal directions.

        Raises:
            ValueError: more directions than the width, or than the rows can show.
        """
        super().fit(source, target)
        if self.num_directions > self.dim:
            raise ValueError(
                f"{self.num_directions} principal directions asked of rows of width {self.dim}; "
                f"set num_directions to at most {self.dim}"
            )
        axes = self._axes(source.moments, target.moments)
        directions = torch.tensor(axes[:, : self.num_directions])
        gap = self.source_mean - self.target_mean
        self.orthogonal_gap = gap - directions @ (directions.T @ gap)

    def _axes(self, source: Moments, target: Moments) -> Float64[np.ndarray, "dim dim"]:
        if self.basis == "own":
            check_rows(self.num_directions, source=source)
            return principal_axes(source.covariance)[1]
        check_rows(self.num_directions, source=source, target=target)
        return principal_axes(source.covariance + target.covariance)[1]

    def move(self, rows: Float64[Tensor, "n dim"]) -> Float64[Tensor, "n dim"]:
        return rows.add_(self.shift)
