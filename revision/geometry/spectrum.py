"""The shape of one covariance spectrum: decay, effective dimension, conditioning, anisotropy.

With eigenvalues l_1 >= ... >= l_d and p_k = l_k / sum l:

    power law         l_k ~ k^-alpha           least squares of ln l_k on ln k over a range of ranks
    effective rank    exp(-sum p ln p)         on l, or on the singular values sqrt(l)
    d_eff             (sum l)^2 / sum l^2      1 <= d_eff <= effective rank on l <= d
    A                 l_1 / mean(l)            anisotropy ratio, 1 iff all are equal
    E(K)              sum_{k<=K} p_k           cumulative energy; isotropic K / d, E(1) = A / d
    kappa_eff         (l_1 + e) / (l_d + e)    e = 1e-6 mean(l)

Source: arXiv:2602.07026v3, Sec. 3.3, App. D, G (alpha, effective rank, kappa_eff named but none
defined); arXiv:2605.07825, Sec. 3.2 (A, E, d_eff). The range of the fit, both forms of effective
rank and e are choices made here. Two cautions: the two forms of effective rank differ by an order
of magnitude, and alpha and effective rank can rank two clouds in opposite order, because alpha sees
only slopes and the other also the first few eigenvalues.

kappa_eff is read beside what n rows of an isotropic covariance give, by the edges of the
Marchenko-Pastur law with c = d / n: ((1 + sqrt c)^2 + 1e-6) / (max(0, 1 - sqrt c)^2 + 1e-6).

Letters: l eigenvalues, descending and not negative, k rank, d the width, n rows.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

NEGLIGIBLE = 1e-12  # eigenvalues below this share of the largest are rounding, not spectrum
LOADING = 1e-6  # of kappa_eff, in units of the mean eigenvalue
FIT_LAST_RANK = 500
TAIL_RANKS = (10, 200)

Matrix = Float64[np.ndarray, "dim dim"]
Values = Float64[np.ndarray, " dim"]


@dataclass(frozen=True)
class Spectrum:
    """Numbers of one spectrum. `condition` is inf, `tail_exponent` None where undefined."""

    trace: float
    exponent: float
    tail_exponent: float | None
    effective_rank: float
    effective_rank_singular: float
    effective_dimension: float
    condition: float
    kappa: float
    kappa_null: float
    anisotropy: float


def covariance_of(rows: Float64[np.ndarray, "n dim"]) -> Matrix:
    """Centred population covariance."""
    centred = rows - rows.mean(0)
    return centred.T @ centred / len(rows)


def eigenvalues(covariance: Matrix) -> Values:
    """Descending; rounding below 0 is clipped."""
    return np.maximum(np.linalg.eigvalsh((covariance + covariance.T) / 2)[::-1], 0.0)


def describe(values: Values, count: int) -> Spectrum:
    """All numbers of a spectrum estimated from `count` rows."""
    _check(values)
    try:
        tail = power_law_exponent(values, *TAIL_RANKS)
    except ValueError:
        tail = None
    return Spectrum(
        trace=float(values.sum()),
        exponent=power_law_exponent(values),
        tail_exponent=tail,
        effective_rank=effective_rank(values),
        effective_rank_singular=effective_rank(np.sqrt(values)),
        effective_dimension=effective_dimension(values),
        condition=condition_number(values),
        kappa=kappa_eff(values),
        kappa_null=kappa_null(len(values), count),
        anisotropy=anisotropy(values),
    )


def power_law_exponent(values: Values, first: int = 1, last: int | None = None) -> float:
    """alpha over ranks first..last, without negligible eigenvalues; last is min(500, d / 2).

    Raises:
        ValueError: fewer than two ranks remain, through which any line passes.
    """
    _check(values)
    last = min(FIT_LAST_RANK, len(values) // 2) if last is None else last
    ranks = np.arange(first, min(last, usable_ranks(values)) + 1)
    if len(ranks) < 2:
        raise ValueError(
            f"a power law over ranks {first} to {last} has {len(ranks)} of at least 2 points: "
            f"{usable_ranks(values)} of {len(values)} eigenvalues are not negligible; "
            "take more rows or lower ranks"
        )
    return -float(np.polyfit(np.log(ranks), np.log(values[ranks - 1]), 1)[0])


def usable_ranks(values: Values) -> int:
    """How many eigenvalues are more than rounding."""
    return int((values > NEGLIGIBLE * values[0]).sum())


def effective_rank(values: Values) -> float:
    """exp of the entropy of `values` as shares; pass their square roots for singular values."""
    shares = values[values > 0] / values.sum()
    return float(np.exp(-(shares * np.log(shares)).sum()))


def effective_dimension(values: Values) -> float:
    """d_eff, the participation ratio."""
    return float(values.sum() ** 2 / (values**2).sum())


def condition_number(values: Values) -> float:
    """l_1 / l_d; inf where l_d is negligible, as with no more rows than dimensions."""
    _check(values)
    return float(values[0] / values[-1]) if usable_ranks(values) == len(values) else np.inf


def kappa_eff(values: Values, *, tail: float = 0.0) -> float:
    """Loaded condition number: finite for any spectrum, 1 iff isotropic, free of scale.

    `tail` takes the quantile `tail` of the eigenvalues instead of the smallest one.
    """
    _check(values)
    loading = LOADING * values.mean()
    return float((values[0] + loading) / (np.quantile(values, tail) + loading))


def kappa_null(dim: int, count: int) -> float:
    """kappa_eff to expect from `count` rows of an isotropic covariance of width `dim`."""
    root = np.sqrt(dim / count)
    return float(((1 + root) ** 2 + LOADING) / (max(0.0, 1 - root) ** 2 + LOADING))


def anisotropy(values: Values) -> float:
    """A = l_1 / mean(l), between 1 and d."""
    return float(values[0] / values.mean())


def cumulative_energy(values: Values) -> Values:
    """E(1) ... E(d)."""
    _check(values)
    return np.cumsum(values) / values.sum()


def _check(values: np.ndarray) -> None:
    if not values[0] > 0:
        raise ValueError(
            f"the largest of {len(values)} eigenvalues is {values[0]:g}: the cloud has no spread, "
            "so its spectrum has no shape; all rows are equal or there is only one"
        )
