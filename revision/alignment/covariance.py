"""Roots of covariances, and the linear maps that carry one covariance into another.

    ridge       Sigma + rho (tr Sigma / d) I                    relative, the same rho on both sides
    root        Sigma^(1/2) = Q L^(1/2) Q^T, from Sigma = Q L Q^T with L clipped at 0: symmetric
    colouring   W = Sigma_x^(1/2) Sigma_y^(-1/2),               W Sigma_y W^T = Sigma_x

A covariance of n rows has at most n - 1 directions. What its smallest eigenvalues say about the
cloud is mostly noise below 10 d rows, and a root of their inverse enlarges exactly that noise;
hence the ridge, the refusal below d + 1 rows and the warning below 10 d rows.

Source: elementary; the ridge and the row counts are choices of this project, since
arXiv:2602.07026v3, App. F, gives neither (its public script has an unused `--cov_ridge`, 1e-6).
Letters: Sigma_x, Sigma_y covariance of images and texts, d width, n rows, rho ridge.
"""

import warnings
from abc import abstractmethod
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor, nn

from revision.alignment.base import Cloud
from revision.alignment.moments import Moments, Second
from revision.alignment.recentred import RecentredMap
from revision.geometry.frame import principal_axes

ROWS_PER_DIRECTION = 10
SINGULAR = 1e-10  # share of the largest eigenvalue that rounding alone reaches, with a margin
TILE_ROWS = 16


def check_rows(directions: int, **sides: Moments) -> None:
    """Refuse sides of too few rows for `directions` eigenvectors, and warn of few.

    Raises:
        ValueError: fewer than directions + 1 rows on a side.
    """
    for side, moments in sides.items():
        count = moments.second_count
        if count <= directions:
            raise ValueError(
                f"{count} {side} rows span at most {count - 1} directions about "
                f"their mean, {directions} are needed: some would be noise of rounding; fit on at "
                f"least {directions + 1} rows, better {ROWS_PER_DIRECTION * directions}"
            )
        if count < ROWS_PER_DIRECTION * directions:
            warnings.warn(
                f"{count} {side} rows for {directions} directions: below "
                f"{ROWS_PER_DIRECTION * directions} the small eigenvalues of a covariance and "
                "their axes are mostly noise; fit on more rows, raise the ridge, or use fewer "
                "directions where the method lets you",
                stacklevel=3,
            )


def check_ridge(ridge: float) -> None:
    if not 0 <= ridge < float("inf"):
        raise ValueError(f"ridge must be a finite number >= 0, not {ridge}")


def shrink(
    covariance: Float64[np.ndarray, "dim dim"], ridge: float
) -> Float64[np.ndarray, "dim dim"]:
    """Sigma + ridge * (tr Sigma / d) I: every eigenvalue grows by `ridge` times their mean."""
    dim = len(covariance)
    return covariance + ridge * np.trace(covariance) / dim * np.eye(dim)


def root(covariance: Float64[np.ndarray, "dim dim"]) -> Float64[np.ndarray, "dim dim"]:
    """Symmetric positive semidefinite square root."""
    values, vectors = principal_axes(covariance)
    return (vectors * np.sqrt(values)) @ vectors.T


def inverse_root(covariance: Float64[np.ndarray, "dim dim"]) -> Float64[np.ndarray, "dim dim"]:
    """Symmetric square root of the inverse.

    Raises:
        ValueError: a direction (almost) without variance, which would be blown up to noise.
    """
    values, vectors = principal_axes(covariance)
    dead = int((values <= SINGULAR * values.max(initial=0.0)).sum())
    if dead:
        raise ValueError(
            f"{dead} of {len(values)} directions have no variance (smallest eigenvalue "
            f"{values[-1]:.3g}, largest {values[0]:.3g}), so the covariance has no inverse; "
            "set ridge to 1e-4 or so, or fit on more and more varied rows"
        )
    return (vectors / np.sqrt(values)) @ vectors.T


def colouring(
    source_cov: Float64[np.ndarray, "dim dim"], target_cov: Float64[np.ndarray, "dim dim"]
) -> Float64[np.ndarray, "dim dim"]:
    """W = Sigma_x^(1/2) Sigma_y^(-1/2), for columns: W (y - mu_y) has covariance Sigma_x."""
    return root(target_cov) @ inverse_root(source_cov)


def spread(
    matrix: Float64[np.ndarray, "dim dim"], covariance: Float64[np.ndarray, "dim dim"]
) -> float:
    """Root mean square radius of a centred cloud after `matrix`: sqrt tr(W Sigma W^T)."""
    return float(np.sqrt(np.sum((matrix @ covariance) * matrix)))


def times(rows: Float64[Tensor, "n dim"], matrix: Float64[Tensor, "out dim"]) -> Tensor:
    """`matrix` applied to every row, with a result that does not depend on the other rows.

    Matrix products take rows in tiles and finish an incomplete tile by other code, which rounds
    differently: the same row came out up to 5e-13 apart alone and in a batch of 256. Rows of zeros
    complete the last tile.
    """
    missing = -len(rows) % TILE_ROWS
    padded = nn.functional.pad(rows, (0, 0, 0, missing)) if missing else rows
    return (padded @ matrix.T)[: len(rows)]


class CovarianceMap(RecentredMap):
    """z~ = mu_x + W (y - mu_y), with W made of the two covariances; then as `RecentredMap`.

    `ridge` is rho above; `centroid` adds the centroid step.
    """

    second_moments: ClassVar[Second] = "covariance"
    buffer_names = (*RecentredMap.buffer_names, "matrix", "spread")
    matrix: Tensor
    spread: Tensor

    def __init__(self, *, ridge: float = 1e-4, centroid: bool = True) -> None:
        super().__init__(centroid=centroid)
        check_ridge(ridge)
        self.ridge = ridge

    @property
    def gain(self) -> float:
        return float(self.spread / self.source_trace.sqrt())

    def options(self) -> dict[str, Any]:
        return {"ridge": self.ridge, **super().options()}

    def estimate(self, source: Cloud, target: Cloud) -> None:
        """W, from covariances of which each keeps its own trace under the ridge."""
        check_rows(self.dim, source=source.moments, target=target.moments)
        text, image = source.moments.covariance, target.moments.covariance
        matrix = self.linear(shrink(text, self.ridge), shrink(image, self.ridge))
        self.matrix = torch.tensor(matrix)
        self.spread = torch.tensor(spread(matrix, text), dtype=torch.float64)

    @abstractmethod
    def linear(
        self,
        source_cov: Float64[np.ndarray, "dim dim"],
        target_cov: Float64[np.ndarray, "dim dim"],
    ) -> Float64[np.ndarray, "dim dim"]:
        """W for columns, of the covariances with their ridge."""

    def place(self, rows: Float64[Tensor, "n dim"]) -> Float64[Tensor, "n dim"]:
        return times(rows.sub_(self.source_mean), self.matrix).add_(self.target_mean)
