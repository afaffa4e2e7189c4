"""CLOSE with a covariance: shift by the mean gap, then noise of the shape of the pairs' residual.

    z = Norm(y + m + k c + sigma n),   m = E[x - y],  c ~ N(0, Cov(x - y)),  n ~ N(0, I)

c and n are drawn anew for each row in each epoch.
Source: allenai/close@80f8db0 close/model/language_adapters.py:85-117 (k = 3); sigma as there, a
standard deviation.
Departs from the code in drawing c and n from (seed, record id, epoch), see
revision/alignment/noise.py, and in c as Q L^(1/2) g from Cov = Q L Q^T, so that the covariance may
be singular.
Cost: one pass over each modality, one over both together, one eigendecomposition of a (d, d)
matrix; applying draws 2 d normal numbers and makes one (d, d) product per row.
Needs pairs: row i of texts and images must come from the same record.
Letters: x image row, y text row, d width, g and n normal numbers, k `cov_scale`, sigma `std`.
"""

from typing import Any

import numpy as np
import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from revision.alignment.base import AlignmentMap, Cloud
from revision.alignment.covariance import root, times
from revision.alignment.noise import GaussianNoise
from revision.alignment.pairs import residual_moments


class CloseCov(AlignmentMap):
    """`cov_scale` multiplies the fitted noise, `std` is that of the white noise beside it."""

    name = "close_cov"
    needs_pairs = True
    buffer_names = (*AlignmentMap.buffer_names, "mean_difference", "spread")
    mean_difference: Tensor
    spread: Tensor

    def __init__(self, *, cov_scale: float = 3.0, std: float = 0.04, seed: int = 0) -> None:
        super().__init__()
        if not 0 <= cov_scale < float("inf"):
            raise ValueError(f"cov_scale must be a finite number >= 0, not {cov_scale}")
        GaussianNoise(std=std)  # refuses what is no standard deviation
        self.cov_scale, self.std, self.seed = cov_scale, std, seed

    @property
    def is_random(self) -> bool:
        return True

    @property
    def shift(self) -> Float64[Tensor, " dim"]:
        return self.mean_difference

    def options(self) -> dict[str, Any]:
        return {"cov_scale": self.cov_scale, "std": self.std, "seed": self.seed}

    def fit(self, source: Cloud, target: Cloud) -> None:
        """As the base, then mean and root covariance of x - y, in one pass over the pairs."""
        super().fit(source, target)
        mean, covariance = residual_moments(source, target)
        self.mean_difference = torch.tensor(mean)
        self.spread = torch.tensor(np.ascontiguousarray(root(covariance)))

    def move(self, rows: Float64[Tensor, "n dim"]) -> Float64[Tensor, "n dim"]:
        return rows.add_(self.mean_difference)

    def disturb(
        self, rows: Float64[Tensor, "n dim"], keys: Int64[Tensor, " n"]
    ) -> Float64[Tensor, "n dim"]:
        drawn = GaussianNoise(std=1.0, seed=self.seed).draw(keys, 2 * self.dim).to(rows.device)
        shaped, white = drawn.split(self.dim, dim=1)
        return rows + self.cov_scale * times(shaped, self.spread) + self.std * white
