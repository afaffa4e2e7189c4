"""What remains between the two sides of a pair once the mean gap is removed. Needs pairs.

    D_i = x_i - y_i,   m = mean(D),   r_i = D_i - m,   S_r = mean(r r^T)
    E|x - y|^2 = |m|^2 + tr S_r = 2 - 2 E[x . y]

    R_energy = tr S_r / (|m|^2 + tr S_r)      rho = |m|^2 / E|D|^2 = 1 - R_energy
    R_dist   = E|r| / E|x - y|                D_center = tr S_r
    A_r, E(K), d_eff of S_r as in `spectrum`; cos(D_i, m) says how consistent the direction is

Source: arXiv:2605.07825, Sec. 3.2, App. A.3 (residual); arXiv:2503.22655v2, Sec. 2 (rho, cosines).
D_center is a square here: only so do the printed 1.264, 0.89 and 0.392 agree with each other and
with a paired cosine of 0.29 (0.392^2 + 1.264 = 1.418 = 2 - 2 * 0.291, 1.264 / 1.418 = 0.892).
After a map T the residual is r_i^T = x_i - z_i and its second moment is not centred (App. B.2).

Letters: x image row, y text row, z aligned text row, m mean gap, D gap of a pair, r residual.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

from revision.geometry.angles import cosine_density
from revision.geometry.spectrum import (
    anisotropy,
    cumulative_energy,
    effective_dimension,
    eigenvalues,
)

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)

Rows = Float64[np.ndarray, "n dim"]


@dataclass(frozen=True)
class ResidualSpectrum:
    """Shape of a residual second moment; `energy` holds E(1) ... E(d)."""

    trace: float
    anisotropy: float
    effective_dimension: float
    energy: Float64[np.ndarray, " dim"]


@dataclass(frozen=True)
class DirectionConsistency:
    """Distribution of cos(D_i, m) over pairs; `peak` is the mode of its density."""

    mean: float
    std: float
    peak: float
    quantiles: Float64[np.ndarray, " 5"]


@dataclass(frozen=True)
class PairedGap:
    """The gap of pairs, split into its mean and the rest; `center_discrepancy` is D_center."""

    mean_gap: float
    center_discrepancy: float
    residual_length: float
    residual_energy_share: float
    residual_distance_share: float
    mean_share: float
    paired_cosine: float
    residual: ResidualSpectrum
    direction: DirectionConsistency


def paired_gap(text: Rows, image: Rows) -> PairedGap:
    """Measure unit rows of which row i of both sides is a pair.

    Raises:
        ValueError: fewer than two pairs, or pairs that do not differ beyond the mean gap.
    """
    check_pairs(text, image)
    gaps = image - text
    mean = gaps.mean(0)
    residual = gaps - mean
    spectrum = describe_residual(residual)
    energy = float((gaps**2).sum(1).mean())
    lengths = np.linalg.norm(residual, axis=1)
    return PairedGap(
        mean_gap=float(np.linalg.norm(mean)),
        center_discrepancy=spectrum.trace,
        residual_length=float(lengths.mean()),
        residual_energy_share=spectrum.trace / energy,
        residual_distance_share=float(lengths.mean() / np.linalg.norm(gaps, axis=1).mean()),
        mean_share=float(mean @ mean) / energy,
        paired_cosine=float((text * image).sum(1).mean()),
        residual=spectrum,
        direction=direction_consistency(gaps),
    )


def describe_residual(residual: Rows) -> ResidualSpectrum:
    """Shape of E[r r^T], not centred: pass x - z for the residual after a map."""
    values = eigenvalues(residual.T @ residual / len(residual))
    return ResidualSpectrum(
        trace=float(values.sum()),
        energy=cumulative_energy(values),
        anisotropy=anisotropy(values),
        effective_dimension=effective_dimension(values),
    )


def direction_consistency(gaps: Rows) -> DirectionConsistency:
    """How well single gaps D_i point along their mean."""
    cosines = direction_cosines(gaps)
    grid, density = cosine_density(cosines)
    return DirectionConsistency(
        mean=float(cosines.mean()),
        std=float(cosines.std()),
        peak=float(grid[density.argmax()]),
        quantiles=np.quantile(cosines, QUANTILES),
    )


def direction_cosines(gaps: Rows) -> Float64[np.ndarray, " n"]:
    """cos(D_i, m); 0 for a pair without a gap."""
    mean = gaps.mean(0)
    lengths = np.linalg.norm(gaps, axis=1) * np.linalg.norm(mean)
    return np.divide(gaps @ mean, lengths, out=np.zeros(len(gaps)), where=lengths > 0)


def check_pairs(text: np.ndarray, image: np.ndarray) -> None:
    """Raise unless both sides have the same number of rows, two at least."""
    if len(text) != len(image) or len(text) < 2:
        raise ValueError(
            f"{len(text)} text rows and {len(image)} image rows; pairs need the same number, at "
            "least 2, or the residual would mix records; pass rows of the same records in order"
        )
