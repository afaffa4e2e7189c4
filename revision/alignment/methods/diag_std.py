"""Diagonal standardisation: match the mean and the spread of every coordinate.

    e = mu_x + (y - mu_y) * sigma_x / (sigma_y + 1e-10),   z = Norm(e)
    with the centroid step:   z = Norm(e' - E[e'] + mu_x),   e' = Norm(e)

Before the projection every coordinate has the mean and variance of the images'. The map follows
permutations and sign flips of the coordinates, but no other rotation: which coordinates an encoder
happens to have matters.
Source: arXiv:2512.04309 (TOMCap), as quoted by others; there with Gaussian noise, here `noise=`.
Departs from it in the optional centroid step, arXiv:2602.07026v3, Sec. 4.
Cost: one pass over each modality and one more over text for the centroid; one multiplication and
one addition per number.
Needs no pairs.
Letters: y text row, mu mean, sigma standard deviation of each coordinate, x images, y texts.
"""

import torch
from jaxtyping import Float64
from torch import Tensor

from revision.alignment.base import EPSILON, Cloud
from revision.alignment.recentred import RecentredMap


class DiagStd(RecentredMap):
    """Per-coordinate scale; `centroid` adds ReAlign's last step."""

    name = "diag_std"
    second_moments = "diagonal"
    buffer_names = (*RecentredMap.buffer_names, "scale")
    scale: Tensor

    def estimate(self, source: Cloud, target: Cloud) -> None:
        """The scale of each coordinate."""
        spreads = (torch.tensor(cloud.moments.variance).sqrt() for cloud in (source, target))
        text, image = spreads
        self.scale = image / (text + EPSILON)

    @property
    def gain(self) -> float:
        """Stretch of the cloud as a whole, from its trace to that of the images."""
        return float((self.target_trace / (self.source_trace + EPSILON)).sqrt())

    def place(self, rows: Float64[Tensor, "n dim"]) -> Float64[Tensor, "n dim"]:
        return rows.mul_(self.scale).add_(self.target_mean - self.scale * self.source_mean)
