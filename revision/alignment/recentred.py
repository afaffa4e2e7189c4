"""Maps that end with ReAlign's centroid step.

    e' = Norm(place(y)),   z = Norm(e' - mean(e') + mu_x)

Source: arXiv:2602.07026v3, Sec. 4, step 3; Yu-xm/ReVision@2d26f3a embed_ReAlign.py:323-372.
Letters: y text row, mu_x image mean; the mean of e' is over the fitting rows.
"""

from abc import abstractmethod
from typing import Any

import torch
from jaxtyping import Float64
from torch import Tensor

from revision.alignment.base import AlignmentMap, Cloud, onto_sphere_
from revision.alignment.moments import Moments, moments_of_transformed
from revision.alignment.passes import CPU


class RecentredMap(AlignmentMap):
    """A map that ends with ReAlign's centroid step.

        e' = Norm(place(y)),   z = Norm(e' - mean(e') + mu_x)

    The mean of e' is taken over the fitting rows, in one more pass. `centroid=False` leaves the
    step out: z = e'.
    """

    buffer_names = (*AlignmentMap.buffer_names, "centroid")
    centroid: Tensor

    def __init__(self, *, centroid: bool = True) -> None:
        super().__init__()
        self.has_centroid_step = centroid

    def options(self) -> dict[str, Any]:
        return {"centroid": self.has_centroid_step}

    def fit(self, source: Cloud, target: Cloud) -> None:
        """As the base, then `estimate`, then the centroid of the placed text rows."""
        super().fit(source, target)
        self.estimate(source, target)
        self.centroid = self.target_mean.clone()
        if self.has_centroid_step:
            self.to(source.device)
            placed = moments_of_transformed(source.rows(), self.project, device=source.device)
            _check_same_rows(placed, source.moments)
            self.to(CPU).centroid = torch.tensor(placed.mean)

    @abstractmethod
    def estimate(self, source: Cloud, target: Cloud) -> None:
        """Set what `place` needs; moments are there already."""

    @abstractmethod
    def place(self, rows: Float64[Tensor, "n dim"]) -> Float64[Tensor, "n dim"]:
        """Where unit text rows go before the first projection. May overwrite its argument."""

    def project(self, rows: Float64[Tensor, "n dim"]) -> Float64[Tensor, "n dim"]:
        """e' of unit text rows."""
        return onto_sphere_(self.place(rows))

    def move(self, rows: Float64[Tensor, "n dim"]) -> Float64[Tensor, "n dim"]:
        if not self.has_centroid_step:
            return self.place(rows)
        return self.project(rows).add_(self.target_mean - self.centroid)


def _check_same_rows(placed: Moments, fitted: Moments) -> None:
    if placed.rejected != fitted.rejected:
        raise ValueError(
            f"{len(placed.rejected)} source rows have no direction, but {len(fitted.rejected)} had "
            "none when their moments were taken: the rows were damaged since; find them with "
            "python scripts/verify_shards.py input=<source>"
        )
