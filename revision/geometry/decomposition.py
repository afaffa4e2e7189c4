"""The gap in a fixed frame: bias and residual, inside and outside of its main subspace.

    x_i - y_i = beta + gamma + delta_i + zeta_i,   m = mean(x - y)
    beta  = P_U m    mean gap inside U (PMB)       gamma  = P_V m    outside (COB, also POB)
    delta = P_U(x_i - y_i - m)                     zeta   = P_V(x_i - y_i - m)
    E|x - y|^2 = |beta|^2 + |gamma|^2 + tr Cov(delta) + tr Cov(zeta)
    eta_U = tr Cov(delta) / tr S_r                 share of the residual that an unpaired frame has

Shape of the residual in U and in V: kappa_eff and A (see `spectrum`) among the eigenvalues of that
subspace, beside what as many rows of an isotropic cloud give; the angle between gamma and the
direction v1 of largest spread in V, arccos |cos|; and kappa_vMF = R (D - R^2) / (1 - R^2) with
R = |E Norm(P_V(x_i - y_i))|, D = d - r.

Source: arXiv:2602.07026v3, Sec. 3.1, 3.3, Lemma B.3, Prop. B.4 (kappa_eff and kappa_vMF are only
named there: the definitions are choices made here); arXiv:2605.07825, App. A.5.3 (eta_U).
Caution: random directions are nearly orthogonal, too: E|cos| = sqrt(2 / (pi D)), 87.7 degrees for
D = 384. The angle of that mean is reported beside the angle.

Letters: x image row, y text row, m mean gap, U span of the frame's first r axes, V the rest.
"""

from dataclasses import dataclass
from math import acos, degrees, pi, sqrt

import numpy as np
from jaxtyping import Float64

from revision.geometry.frame import Frame
from revision.geometry.paired import check_pairs
from revision.geometry.spectrum import anisotropy, covariance_of, eigenvalues, kappa_eff, kappa_null

Rows = Float64[np.ndarray, "n dim"]
Vector = Float64[np.ndarray, " dim"]


@dataclass(frozen=True)
class Bias:
    """The mean gap in a frame. Needs no pairs. The shares of |m|^2 are 0 where m is 0."""

    beta: Vector
    gamma: Vector
    principal: float
    orthogonal: float
    principal_share: float
    orthogonal_share: float


@dataclass(frozen=True)
class SubspaceShape:
    """Covariance of the residual inside one subspace of `dim` directions.

    Anisotropy and kappa are None where the residual does not vary there.
    """

    dim: int
    energy: float
    kappa: float | None
    kappa_null: float
    anisotropy: float | None


@dataclass(frozen=True)
class Decomposition:
    """Bias and residual of pairs. Angles in degrees; those and kappa_vMF are None if V is empty."""

    bias: Bias
    inside: SubspaceShape
    outside: SubspaceShape
    coverage: float
    spread_angle: float | None
    spread_angle_null: float | None
    concentration: float | None


def decompose(text: Rows, image: Rows, frame: Frame) -> Decomposition:
    """Measure unit rows of which row i of both sides is a pair."""
    check_pairs(text, image)
    gaps = image - text
    inside, outside = residual_coordinates(gaps, frame)
    bias = split_bias(gaps.mean(0), frame)
    shapes = subspace_shape(inside), subspace_shape(outside)
    total = shapes[0].energy + shapes[1].energy
    spreads = frame.rank < len(frame.values) and shapes[1].energy > 0
    return Decomposition(
        bias=bias,
        inside=shapes[0],
        outside=shapes[1],
        coverage=shapes[0].energy / total if total > 0 else 1.0,
        spread_angle=(
            spread_angle(bias.gamma @ frame.complement, covariance_of(outside)) if spreads else None
        ),
        spread_angle_null=random_angle(outside.shape[1]) if spreads else None,
        concentration=concentration(gaps @ frame.complement) if spreads else None,
    )


def split_bias(gap: Vector, frame: Frame) -> Bias:
    """beta and gamma of the mean gap (image minus text)."""
    beta, gamma = frame.split(gap)
    principal, orthogonal = float(beta @ beta), float(gamma @ gamma)
    total = max(principal + orthogonal, np.finfo(float).tiny)
    return Bias(
        beta=beta,
        gamma=gamma,
        principal=sqrt(principal),
        orthogonal=sqrt(orthogonal),
        principal_share=principal / total,
        orthogonal_share=orthogonal / total,
    )


def residual_coordinates(
    gaps: Rows, frame: Frame
) -> tuple[Float64[np.ndarray, "n rank"], Float64[np.ndarray, "n rest"]]:
    """delta and zeta of pair gaps x - y, in the axes of U and of V."""
    residual = gaps - gaps.mean(0)
    return residual @ frame.basis, residual @ frame.complement


def subspace_shape(rows: Float64[np.ndarray, "n axes"]) -> SubspaceShape:
    """Shape of centred residuals given in the axes of their subspace, which may have none."""
    num_rows, dim = rows.shape
    if dim == 0 or not rows.any():
        return SubspaceShape(dim, 0.0, None, kappa_null(dim, num_rows), None)
    values = eigenvalues(covariance_of(rows))
    return SubspaceShape(
        dim=dim,
        energy=float(values.sum()),
        kappa=kappa_eff(values),
        kappa_null=kappa_null(dim, num_rows),
        anisotropy=anisotropy(values),
    )


def spread_angle(
    gamma: Float64[np.ndarray, " rest"], outside: Float64[np.ndarray, "rest rest"]
) -> float:
    """Degrees in [0, 90] between gamma and the direction of largest spread, in axes of V."""
    leading = np.linalg.eigh(outside)[1][:, -1]
    length = float(np.linalg.norm(gamma))
    return degrees(acos(min(1.0, abs(float(gamma @ leading)) / length))) if length > 0 else 90.0


def random_angle(dim: int) -> float:
    """Degrees at the mean |cos| of two random directions of a wide space."""
    return degrees(acos(min(1.0, sqrt(2 / (pi * dim)))))


def concentration(rows: Float64[np.ndarray, "n rest"]) -> float:
    """kappa_vMF of the directions of the rows: 0 if they cancel, inf if all agree."""
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    directions = np.divide(rows, lengths, out=np.zeros_like(rows), where=lengths > 0)
    length = float(np.linalg.norm(directions.mean(0)))
    spread = 1 - length**2
    return length * (rows.shape[1] - length**2) / spread if spread > 1e-12 else np.inf
