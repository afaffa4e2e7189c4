"""Does the residual outside of the main subspace follow the residual inside? Needs pairs.

    L = Z^T D (D^T D + l I)^-1       ridge regression of zeta on delta, rows as records here
    strength = |L|_2                 R^2 = 1 - |Z - D L^T|_F^2 / |Z|_F^2

Source: arXiv:2602.07026v3, App. C, Thm. C.3: |P_V g| / |g| <= sin theta + |L|_2 + rho. The ridge is
not given and no value of |L| or R^2 is reported; l = 1e-6 tr(D^T D) / r here. R^2 is also measured
on rows that took no part in the fit, because r free directions explain about r / n of n rows of
noise in-sample. Held out they explain less than nothing, about -r / (h - r - 1) after a fit on h
rows: R^2 below 0 is no sign against a coupling, R^2 at this null is one. With h hardly more than r
it says only that there are too few rows (r = 128, h = 134: -26).

Letters: D rows of delta in the axes of U, Z rows of zeta in those of V, r rank of U, n records.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

RIDGE = 1e-6

Inside = Float64[np.ndarray, "n rank"]
Outside = Float64[np.ndarray, "n rest"]
Map = Float64[np.ndarray, "rest rank"]


@dataclass(frozen=True)
class Coupling:
    """Strength and explained share, R^2.

    The nulls are those of independent residuals; held out there is none where the fitting half has
    no more rows than the map has directions.
    """

    strength: float
    explained: float
    explained_held_out: float
    null: float
    null_held_out: float | None


def measure_coupling(delta: Inside, zeta: Outside, *, seed: int = 0) -> Coupling:
    """Fit on all rows; held out, fit on a random half and explain the other.

    Raises:
        ValueError: fewer than four rows, or a side without variation.
    """
    if len(delta) < 4:
        raise ValueError(
            f"{len(delta)} residuals do not make two halves to fit and to test; give 4"
        )
    matrix = coupling_map(delta, zeta)
    order = np.random.default_rng(seed).permutation(len(delta))
    fit, test = np.array_split(order, 2)
    half = coupling_map(delta[fit], zeta[fit])
    rank = delta.shape[1]
    spare = len(fit) - rank - 1
    return Coupling(
        strength=float(np.linalg.norm(matrix, 2)),
        explained=explained_share(matrix, delta, zeta),
        explained_held_out=explained_share(half, delta[test], zeta[test]),
        null=min(1.0, rank / len(delta)),
        null_held_out=-rank / spare if spare > 0 else None,
    )


def coupling_map(delta: Inside, zeta: Outside, *, ridge: float = RIDGE) -> Map:
    """L; `ridge` is relative to the mean eigenvalue of D^T D."""
    gram = delta.T @ delta
    loading = ridge * np.trace(gram) / len(gram)
    if not loading > 0:
        raise ValueError(
            f"{len(delta)} residuals inside U have no energy or the ridge {ridge} is not positive: "
            "L would be arbitrary"
        )
    return np.linalg.solve(gram + loading * np.eye(len(gram)), delta.T @ zeta).T


def explained_share(matrix: Map, delta: Inside, zeta: Outside) -> float:
    """R^2, below 0 where predicting nothing would be better."""
    energy = float((zeta**2).sum())
    if not energy > 0:
        raise ValueError(
            f"{len(zeta)} residuals outside U are all 0: there is nothing to explain; "
            "choose a frame of lower rank"
        )
    return 1 - float(((zeta - delta @ matrix.T) ** 2).sum()) / energy
