"""How far two clouds differ in covariance, without pairs.

    G_Sigma   = |S_x - S_y|_F / (|S_x|_F + e)         the absolute |S_x - S_y|_F beside it
    C_lambda  = corr(ln l(S_x), ln l(S_y))            eigenvalues in descending order
    O_q       = |U_x^T U_y|_F^2 / q                   U the leading q eigenvectors of each
    angles    between those subspaces, accurate near 0 where arccos is not

Source: arXiv:2605.07825, Sec. 3.1-3.2, App. A.2 (ranks of C_lambda and e are not given: here all
ranks with l_k > 1e-12 l_1, the first half beside them, and e = 1e-12). The value 0.066 printed for
G_Sigma next to O_128 = 0.441 is more plausible for the absolute form, hence both.
Cautions: C_lambda is 1 for any two power laws, whatever their exponents, so it cannot show that the
exponents agree. Random subspaces have O_q = q / d on average (Lemma A.1).

Letters: x image, y text; S covariance, l eigenvalue, d the width.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64
from scipy.linalg import subspace_angles

from revision.geometry.spectrum import usable_ranks

EPSILON = 1e-12
OVERLAP_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)

Vector = Float64[np.ndarray, " dim"]
Matrix = Float64[np.ndarray, "dim dim"]


@dataclass(frozen=True)
class Overlap:
    """O_q of the leading q directions, and its expectation q / d for random ones."""

    size: int
    value: float
    null: float


def covariance_gap(source_covariance: Matrix, target_covariance: Matrix) -> float:
    """G_Sigma, relative to the image side: not symmetric."""
    difference = np.linalg.norm(target_covariance - source_covariance)
    return float(difference / (np.linalg.norm(target_covariance) + EPSILON))


def spectral_correlation(source: Vector, target: Vector, ranks: int | None = None) -> float:
    """C_lambda over the first `ranks` descending eigenvalues, negligible ones of either left out.

    Raises:
        ValueError: fewer than three ranks remain; through two any correlation is 1.
    """
    usable = min(
        usable_ranks(source), usable_ranks(target), len(source) if ranks is None else ranks
    )
    if usable < 3:
        raise ValueError(
            f"{usable} of {len(source)} eigenvalues can be compared and at least 3 are needed, "
            "or any two spectra correlate; take more rows or more ranks"
        )
    return float(np.corrcoef(np.log(source[:usable]), np.log(target[:usable]))[0, 1])


def overlap_curve(
    source_axes: Matrix, target_axes: Matrix, sizes: tuple[int, ...] = OVERLAP_SIZES
) -> tuple[Overlap, ...]:
    """O_q for every q of `sizes` that is not beyond the width, given the principal axes."""
    squares = np.cumsum(np.cumsum((source_axes.T @ target_axes) ** 2, axis=0), axis=1)
    dim = len(squares)
    return tuple(
        Overlap(size, float(squares[size - 1, size - 1]) / size, size / dim)
        for size in sizes
        if size <= dim
    )


def principal_angles(
    one: Float64[np.ndarray, "dim p"], two: Float64[np.ndarray, "dim q"]
) -> Float64[np.ndarray, " min_p_q"]:
    """Angles in radians between the column spaces, the largest first.

    Small angles come from their sine (scipy's method), where arccos would lose half the digits.
    """
    return subspace_angles(one, two)
