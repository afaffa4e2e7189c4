"""What of the text a map leaves in place. Needs the rows before and after, no images.

    Phi     = mean(y_i . z_i)                            cosine with the row itself
    Psi     = corr(y_i . y_j, z_i . z_j)                 over random pairs i != j
    Omega_k = mean |N_k^Y(i) and N_k^Z(i)| / k           neighbours kept (`neighbours`)
    Phi    <= mean|y + v| - v . mean(z)                  for any v; equality iff z = Norm(y + v)

The identity has Phi = Psi = Omega = 1; a common rotation of all outputs leaves Psi and Omega at 1.
A Phi above the bound means a mistake or mixed protocols. The bound is Cauchy-Schwarz on
(y + v) . z; it is tightest at the v of the map itself (`AlignmentMap.shift`).

Source: arXiv:2605.07825, App. B.2; arXiv:2602.07026v3, App. F.4 (Omega with k = 10). The number of
pairs is not given: 200 000 here.

Letters: y text row, z aligned text row, v shift, k neighbours.
"""

import numpy as np
from jaxtyping import Float64

from revision.geometry.angles import NUM_PAIRS, pair_cosines, random_pairs

Rows = Float64[np.ndarray, "n dim"]
PerPair = Float64[np.ndarray, " pairs"]


def phi(text: Rows, aligned: Rows) -> float:
    """Mean cosine of a row with its aligned version."""
    return float(np.einsum("nd,nd->n", text, aligned).mean())


def phi_bound(text: Rows, aligned: Rows, shift: Float64[np.ndarray, " dim"]) -> float:
    """Largest Phi of any map of these rows whose output has the mean of `aligned`."""
    return float(np.linalg.norm(text + shift, axis=1).mean() - shift @ aligned.mean(0))


def psi(text: Rows, aligned: Rows, *, count: int = NUM_PAIRS, seed: int = 0) -> float:
    """Correlation of the pairwise cosines before and after."""
    pairs = random_pairs(len(text), count, seed)
    return pearson(pair_cosines(text, pairs), pair_cosines(aligned, pairs))


def pearson(one: PerPair, two: PerPair, weights: PerPair | None = None) -> float:
    """Correlation, of weighted pairs in a bootstrap.

    Raises:
        ValueError: one side does not vary, as with rows that a map made equal.
    """
    one, two = (a - np.average(a, weights=weights) for a in (one, two))
    squares = (float(np.average(a * a, weights=weights)) for a in (one, two))
    scale = float(np.sqrt(np.prod(list(squares))))
    if not scale > 1e-20:
        raise ValueError(
            f"cosines of {len(one)} pairs do not vary on one side (scale {scale:.3g}), so they "
            "have no correlation; a map made all rows equal, or there is one pair"
        )
    return float(np.average(one * two, weights=weights)) / scale
