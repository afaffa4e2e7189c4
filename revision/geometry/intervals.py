"""A number of the report with its 95 % interval, and the two ways that the intervals come about.

    bootstrap   [low - bias, high - bias] of the draws (see `bootstrap`); a length is treated in its
                square, where its bias is the squared floor, and is never below 0
    jackknife   value -+ 1.96 se,   se^2 = (g - 1) / g  sum_j (t_j - mean t)^2

Subtracting the bias keeps the estimate as it was measured and inside its interval: the interval
says how far another sample of the same size would give another value. The jackknife leaves out each
of g groups of rows in turn; it serves spectra, whose ranks a bootstrap lowers by repeating rows.

Source: Efron and Tibshirani, An Introduction to the Bootstrap, 1993, Ch. 10 (bias), 11 (jackknife).
Letters: t statistic, g groups.
"""

from collections.abc import Callable, Mapping, Sequence
from math import exp, inf, isfinite, sqrt
from types import MappingProxyType
from typing import Any

import numpy as np
from jaxtyping import Float64

from revision.geometry.bootstrap import Interval

GROUPS = 10
NORMAL_QUANTILE = 1.96
MOST, TOO_MUCH = 50.0, 1e6  # an interval over more than this factor says nothing: none is given

Json = dict[str, Any]


def number(
    value: float, low: float | None = None, high: float | None = None, null: float | None = None
) -> Json:
    """One number of the report; what is not finite becomes null, as JSON has no infinity."""
    fields = {"value": value, "low": low, "high": high, "null": null}
    return {k: None if v is None or not isfinite(v) else float(v) for k, v in fields.items()}


def interval_number(
    interval: Interval, null: float | None = None, *, bounds: tuple[float, float] = (-inf, inf)
) -> Json:
    """The estimate with the bias taken off its interval, which stays within `bounds`."""
    low, high = interval.low - interval.bias, interval.high - interval.bias
    low, high = min(low, interval.estimate), max(high, interval.estimate)
    return number(interval.estimate, max(low, bounds[0]), min(high, bounds[1]), null)


def length_number(square: Interval, null: float | None = None) -> Json:
    """The root of an interval of a squared length."""
    found = interval_number(square)
    low, high = (sqrt(max(found[key], 0.0)) for key in ("low", "high"))
    return number(sqrt(max(square.estimate, 0.0)), low, high, null)


def rest_of(share: Json) -> Json:
    """What a share leaves of the whole."""
    value, low, high, null = (share[key] for key in ("value", "high", "low", "null"))
    fields = {"value": value, "low": low, "high": high, "null": null}
    return {key: None if v is None else 1 - v for key, v in fields.items()}


def jackknife_covariances(
    clouds: Sequence[Float64[np.ndarray, "_ dim"]],
    statistics: Callable[..., Mapping[str, float]],
    nulls: Mapping[str, float] = MappingProxyType({}),
    *,
    logarithmic: Sequence[str] = (),
) -> dict[str, Json]:
    """Numbers that depend on the clouds' population covariances alone, and their intervals.

    Group j of every cloud is left out at once: the errors of independent clouds add up, and rows
    of pairs go together. A statistic that is not finite has no interval; positive ones named in
    `logarithmic`, which spread over orders of magnitude, have one in proportion.
    """
    sums = [_group_sums(rows) for rows in clouds]
    totals = [(parts.sum(0), sum(counts)) for parts, counts in sums]
    values = statistics(*(_covariance(*total) for total in totals))
    left_out = [
        statistics(
            *(
                _covariance(total - parts[j], count - counts[j])
                for (parts, counts), (total, count) in zip(sums, totals, strict=True)
            )
        )
        for j in range(GROUPS)
    ]
    found = {}
    for name, value in values.items():
        drawn = np.array([each[name] for each in left_out])
        if name in logarithmic:
            factor = exp(min(_error(np.log(drawn)), MOST))
            low, high = (value / factor, value * factor) if factor < TOO_MUCH else (-inf, inf)
        else:
            low, high = value - _error(drawn), value + _error(drawn)
        found[name] = number(value, low, high, nulls.get(name))
    return found


def _error(left_out: np.ndarray) -> float:
    """Half the width of the interval; infinite where a statistic is."""
    spread = float(left_out.var()) if np.isfinite(left_out).all() else inf
    return NORMAL_QUANTILE * sqrt((GROUPS - 1) * spread)


def _group_sums(rows: np.ndarray) -> tuple[np.ndarray, list[int]]:
    """Second moments of interleaved groups bordered by their sums, and the groups' sizes."""
    bordered = np.concatenate([rows, np.ones((len(rows), 1))], axis=1)
    groups = [bordered[first::GROUPS] for first in range(GROUPS)]
    return np.stack([g.T @ g for g in groups]), [len(g) for g in groups]


def _covariance(sums: np.ndarray, count: int) -> np.ndarray:
    mean = sums[-1, :-1] / count
    covariance: np.ndarray = sums[:-1, :-1] / count - np.outer(mean, mean)
    return covariance
