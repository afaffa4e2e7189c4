"""Streaming means before and after a map, for sets of any size: the in-sample gap, Phi, its bound.

    gap   = |mean(z) - mean(x)|
    Phi   = E[y . z]  <=  E|y + v| - v . mean(z)             for any v; equality iff z = Norm(y + v)

A gap measured on the rows that a map was fitted on can be made as small as one likes and says
nothing about quality; `revision.geometry.measure` has the held-out gap beside its floor. Phi above
its bound means a mistake.

Source: arXiv:2602.07026v3, Sec. 6 (gap); arXiv:2605.07825, App. B.2 (Phi); the bound follows from
Cauchy-Schwarz on (y + v) . z.
Letters: x image row, y text row, z aligned text row; v shift of the map.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from revision.alignment.base import AlignmentMap
from revision.alignment.moments import Batches, Moments, accumulate


@dataclass(frozen=True)
class AlignedMoments:
    """Moments of source rows and of what a map makes of them; Phi and its bound on these rows."""

    source: Moments
    aligned: Moments
    phi: float
    phi_bound: float


def aligned_moments(alignment: AlignmentMap, batches: Batches) -> AlignedMoments:
    """Apply the map to all rows in one streaming pass and measure both sides."""

    def statistic(rows: Float64[Tensor, "n dim"]) -> tuple[Tensor, ...]:
        return _source_sums(alignment, rows, alignment.transform(rows.clone()))

    sums, count, rejected = accumulate(batches, statistic)
    return _aligned_moments(alignment, sums, count, rejected)


def in_sample_gap(alignment: AlignmentMap, fitted: AlignedMoments) -> float:
    """Distance of the aligned mean from the fitted image mean, on the fitting rows."""
    return _distance(fitted.aligned.mean, alignment.target_mean.numpy())


def _source_sums(alignment: AlignmentMap, text: Tensor, aligned: Tensor) -> tuple[Tensor, ...]:
    lengths = torch.linalg.vector_norm(text + alignment.shift, dim=1)
    return text.sum(0), aligned.sum(0), (text * aligned).sum(), lengths.sum()


def _aligned_moments(
    alignment: AlignmentMap, sums: tuple[Tensor, ...], count: int, rejected: tuple[int, ...]
) -> AlignedMoments:
    source, aligned, phi, length = (total / count for total in sums)
    return AlignedMoments(
        source=Moments(count, source.numpy(), mean_square=1.0, rejected=rejected),
        aligned=Moments(count, aligned.numpy(), mean_square=1.0),
        phi=float(phi),
        phi_bound=float(length - alignment.shift @ aligned),
    )


def _distance(a: Float64[np.ndarray, " dim"], b: Float64[np.ndarray, " dim"]) -> float:
    return float(np.linalg.norm(a - b))
