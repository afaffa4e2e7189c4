"""Warn when the rows that a map was fitted on and the rows that it maps come from two domains.

A map carries the mean of its fitting texts to that of its fitting images. Used on other texts, it
misses by about s |mean_a - mean_b| (`revision.geometry.domain` has the test and its formula).

Means and traces come from all rows, the covariance that gives their sampling error from
`COVARIANCE_ROWS` rows of each side at even distances.
Letters: s scale of the map, a fitted rows, b mapped rows.
"""

import warnings
from dataclasses import asdict, replace
from typing import Any

from revision.alignment.moments import Moments
from revision.geometry.domain import Mismatch, mismatch

COVARIANCE_ROWS = 4096
WARN_Z = 5.0  # standard errors


def compare(fitted: Moments, mapped: Moments, side: str) -> dict[str, Any]:
    """The test of mean and trace as JSON, after a warning where they differ.

    Both moments need their covariance.
    """
    found = mismatch(fitted, mapped)
    if max(abs(found.z), abs(found.trace_z)) > WARN_Z:
        warnings.warn(_message(found, fitted, mapped, side), stacklevel=2)
    return asdict(found) | {
        "ratio": found.ratio,
        "fitted_rows": fitted.count,
        "mapped_rows": mapped.count,
        "fitted_trace": fitted.trace,
        "mapped_trace": mapped.trace,
    }


def with_covariance(moments: Moments, sample: Moments) -> Moments:
    """Moments of all rows beside the covariance of a sample of them."""
    return replace(moments, second=sample.covariance, sample_count=sample.count)


def _message(found: Mismatch, fitted: Moments, mapped: Moments, side: str) -> str:
    return (
        f"the {fitted.count} {side} rows of the fit and the {mapped.count} {side} rows in use are "
        f"not of one domain: their means are {found.distance:.3g} apart, {found.ratio:.1f} times "
        f"the {found.expected:.3g} that sampling gives (z = {found.z:.1f}); traces "
        f"{fitted.trace:.4g} and {mapped.trace:.4g} (z = {found.trace_z:.1f}). The aligned mean "
        "will miss the images by about that distance; fit on rows like those in use"
    )
