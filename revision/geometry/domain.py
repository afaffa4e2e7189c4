"""Whether two samples of one modality come from one distribution, told by their means and traces.

    ratio   = |mean_a - mean_b|^2 / (T_a / n_a + T_b / n_b)          about 1 for one domain
    z       = (ratio - 1) / sqrt(2 / d_eff)                          its distance from 1
    z_trace = (T_a - T_b) / (2 |m| sqrt(m' S m / |m|^2 (1/n_a + 1/n_b)))

The denominator of the ratio is what sampling alone gives the squared distance of two means. That
distance is a weighted sum of about d_eff squared normals, which gives its spread. For unit rows
T = 1 - |mean|^2, so the trace moves with the mean's length and its sampling error is 2 |m| times
that of a row's coordinate along m.

The map of a mismatched corpus misses its target: the gap it leaves is about `distance` (of the
texts, times the map's scale; arXiv:2602.07026v3, App. E.3 measures it without this test).

Letters: T trace, n rows, m mean, S covariance, d_eff = T^2 / tr S^2.
"""

from dataclasses import dataclass
from math import sqrt

import numpy as np

from revision.alignment.moments import Moments


@dataclass(frozen=True)
class Mismatch:
    """Distance of two means and difference of two traces, each beside its sampling error."""

    distance: float
    expected: float  # the distance that sampling alone gives
    z: float
    trace_difference: float
    trace_z: float

    @property
    def ratio(self) -> float:
        """Distance in units of what sampling alone gives: 1 for one domain."""
        return self.distance / self.expected


def mismatch(a: Moments, b: Moments) -> Mismatch:
    """Compare two sets of rows; both moments need their covariance.

    Raises:
        ValueError: fewer than two rows, or rows that are all alike, whose error is unknown.
    """
    noise = a.trace / a.count + b.trace / b.count
    if min(a.count, b.count) < 2 or noise <= 0:
        raise ValueError(
            f"cannot compare {a.count} rows of trace {a.trace:g} with {b.count} of trace "
            f"{b.trace:g}: without spread there is no sampling error; give more rows"
        )
    pooled = (a.count * a.covariance + b.count * b.covariance) / (a.count + b.count)
    effective = np.trace(pooled) ** 2 / np.square(pooled).sum()
    difference = a.mean - b.mean
    middle = (a.count * a.mean + b.count * b.mean) / (a.count + b.count)
    along = float(middle @ pooled @ middle)
    trace_error = 2 * sqrt(max(along, 0.0) * (1 / a.count + 1 / b.count))
    square = float(difference @ difference)
    return Mismatch(
        distance=sqrt(square),
        expected=sqrt(noise),
        z=float((square / noise - 1) / sqrt(2 / effective)),
        trace_difference=a.trace - b.trace,
        trace_z=(a.trace - b.trace) / trace_error if trace_error > 0 else 0.0,
    )
