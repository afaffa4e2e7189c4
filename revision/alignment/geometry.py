"""How large the modality gap is before and after an alignment, and what size noise alone gives it.

    gap   = |mean(z) - mean(x)|                              raw: with y in place of z
    floor = sqrt(F / n + T_x / N_x + s^2 T_y / N_y)          expected held-out gap of a good map
    Phi   = E[y . z]  <=  E|y + v| - v . mean(z)             for any v; equality iff z = Norm(y + v)

A gap measured on the rows that a map was fitted on can be made as small as one likes and says
nothing about quality; on held-out rows it cannot fall below the floor, the sampling noise of the
means involved. F / n is the noise of mean(z) - mean(x) on the held-out rows: F = tr Cov(x - z) if
they are pairs, T_x / n_x + T_z / n_z in all if they are not. Phi above its bound means a mistake.

Source: arXiv:2602.07026v3, Sec. 6 (gap); arXiv:2605.07825, App. B.2 (Phi); floor and bound follow
from elementary arguments: the variance of a mean, and Cauchy-Schwarz on (y + v) . z.
Letters: x image row, y text row, z aligned text row; T trace; N fitting rows, n held-out rows;
s scale of the map; v shift of the map.
"""

from dataclasses import dataclass
from itertools import zip_longest
from math import sqrt
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from revision.alignment.base import AlignmentMap
from revision.alignment.moments import Batches, Moments, accumulate, moments_of


@dataclass(frozen=True)
class AlignedMoments:
    """Moments of source rows and of what a map makes of them; Phi and its bound on these rows."""

    source: Moments
    aligned: Moments
    phi: float
    phi_bound: float


@dataclass(frozen=True)
class HeldOut:
    """The gap on rows that took no part in the fit. The cosines are None unless rows are pairs.

    `rejected_*` are positions of rows left out; of pairs, those of which one side is bad.
    """

    num_source: int
    num_target: int
    rejected_source: tuple[int, ...]
    rejected_target: tuple[int, ...]
    raw_gap: float
    gap: float
    floor: float
    phi: float
    phi_bound: float
    paired_cosine_raw: float | None
    paired_cosine: float | None

    @property
    def ratio(self) -> float:
        """Gap in units of its floor: about 1 for a map that transfers."""
        return self.gap / self.floor


def aligned_moments(alignment: AlignmentMap, batches: Batches) -> AlignedMoments:
    """Apply the map to all rows in one streaming pass and measure both sides."""

    def statistic(rows: Float64[Tensor, "n dim"]) -> tuple[Tensor, ...]:
        return _source_sums(alignment, rows, alignment.transform(rows.clone()))

    sums, count, rejected = accumulate(batches, statistic)
    return _aligned_moments(alignment, sums, count, rejected)


def in_sample_gap(alignment: AlignmentMap, fitted: AlignedMoments) -> float:
    """Distance of the aligned mean from the fitted image mean, on the fitting rows."""
    return _distance(fitted.aligned.mean, alignment.target_mean.numpy())


def held_out(alignment: AlignmentMap, source: Batches, target: Batches) -> HeldOut:
    """Measure the gap between held-out rows that are not pairs."""
    text, image = aligned_moments(alignment, source), moments_of(target)
    noise = text.aligned.trace / text.aligned.count + image.trace / image.count
    return _held_out(alignment, text, image, noise, cosines=(None, None))


def held_out_pairs(alignment: AlignmentMap, source: Batches, target: Batches) -> HeldOut:
    """Measure the gap between held-out pairs: row i of both sides comes from the same record."""

    def statistic(pairs: Float64[Tensor, "n 2 dim"]) -> tuple[Tensor, ...]:
        text, image = pairs.unbind(1)
        aligned = alignment.transform(text.clone())
        cosines = (image * text).sum(), (image * aligned).sum()
        return *_source_sums(alignment, text, aligned), image.sum(0), *cosines

    stacked = (np.stack(pair, axis=1) for pair in zip_longest(source, target))
    sums, count, rejected = accumulate(stacked, statistic)
    text = _aligned_moments(alignment, sums[:-3], count, rejected)
    image = Moments(count, (sums[-3] / count).numpy(), mean_square=1.0, rejected=rejected)
    raw, cosine = (float(total) / count for total in sums[-2:])
    covariance = cosine - float(image.mean @ text.aligned.mean)
    noise = max(0.0, text.aligned.trace + image.trace - 2 * covariance) / count
    return _held_out(alignment, text, image, noise, cosines=(raw, cosine))


def gap_numbers(
    alignment: AlignmentMap, fitted: AlignedMoments, unseen: HeldOut | None
) -> dict[str, Any]:
    """All numbers of the gap as one JSON object."""
    return {
        "alignment": alignment.name,
        "options": alignment.options(),
        "dim": alignment.dim,
        "num_source": int(alignment.source_count),
        "num_target": int(alignment.target_count),
        "source_trace": float(alignment.source_trace),
        "target_trace": float(alignment.target_trace),
        "aligned_trace": fitted.aligned.trace,
        "scale": alignment.gain,
        "raw_gap": _distance(fitted.source.mean, alignment.target_mean.numpy()),
        "in_sample_gap": in_sample_gap(alignment, fitted),
        "phi": fitted.phi,
        "phi_bound": fitted.phi_bound,
        "held_out": None if unseen is None else {**vars(unseen), "ratio": unseen.ratio},
    }


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


def _held_out(
    alignment: AlignmentMap,
    text: AlignedMoments,
    image: Moments,
    noise: float,
    cosines: tuple[float | None, float | None],
) -> HeldOut:
    fit_noise = float(
        alignment.target_trace / alignment.target_count
        + alignment.gain**2 * alignment.source_trace / alignment.source_count
    )
    return HeldOut(
        num_source=text.source.count,
        num_target=image.count,
        rejected_source=text.source.rejected,
        rejected_target=image.rejected,
        raw_gap=_distance(text.source.mean, image.mean),
        gap=_distance(text.aligned.mean, image.mean),
        floor=sqrt(noise + fit_noise),
        phi=text.phi,
        phi_bound=text.phi_bound,
        paired_cosine_raw=cosines[0],
        paired_cosine=cosines[1],
    )


def _distance(a: Float64[np.ndarray, " dim"], b: Float64[np.ndarray, " dim"]) -> float:
    return float(np.linalg.norm(a - b))
