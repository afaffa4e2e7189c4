"""The fixed reference frame U + V: where both clouds vary, and the directions that are left.

    S = Sigma_x + Sigma_y + l I = Q L Q^T, descending;   Q_U = [q_1 .. q_r],   U = span(Q_U)
    P_U a = Q_U Q_U^T a,   P_V a = a - P_U a
    mean gap m = mu_x - mu_y = beta + gamma,   beta = P_U m,   gamma = P_V m

The rank r is given, or is the smallest r whose eigenvalues hold a share `energy` of tr S. The ridge
l = ridge * tr S / D moves eigenvalues and no eigenvector: it matters for condition numbers only,
and r is chosen without it.

Source: arXiv:2602.07026v3, Sec. 3.1 (S at a reference step, an energy threshold of unstated value,
top 128 tracked in App. H.1); arXiv:2605.07825, Sec. 4.1 (ridge and rank unstated). r = 128 is ours.
Departs from both in fixing signs: each eigenvector's entry of largest magnitude is positive, the
first one where two are equal. Nothing that depends on U alone sees the signs.
Letters: x image row, y text row, Sigma covariance, D width, Q_U basis of U.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

NEGATIVE_SHARE = 1e-9  # of the largest eigenvalue; rounding leaves at most about -1e-11 of it


@dataclass(frozen=True)
class Frame:
    """Eigenvectors (columns) and eigenvalues of S, descending; the first `rank` columns span U."""

    vectors: Float64[np.ndarray, "dim dim"]
    values: Float64[np.ndarray, " dim"]
    rank: int

    @property
    def basis(self) -> Float64[np.ndarray, "dim rank"]:
        """Q_U: an orthonormal basis of U, most variance first."""
        return self.vectors[:, : self.rank]

    @property
    def complement(self) -> Float64[np.ndarray, "dim rest"]:
        """An orthonormal basis of V, most variance first."""
        return self.vectors[:, self.rank :]

    @property
    def energy(self) -> float:
        """Share of tr S that lies in U."""
        return float(self.values[: self.rank].sum() / self.values.sum())

    def split(
        self, vectors: Float64[np.ndarray, "*n dim"]
    ) -> tuple[Float64[np.ndarray, "*n dim"], Float64[np.ndarray, "*n dim"]]:
        """The parts of `vectors` in U and in V; the mean gap gives (beta, gamma)."""
        inside = vectors @ self.basis @ self.basis.T
        return inside, vectors - inside


def reference_frame(
    source_cov: Float64[np.ndarray, "dim dim"],
    target_cov: Float64[np.ndarray, "dim dim"],
    *,
    rank: int | None = 128,
    energy: float | None = None,
    ridge: float = 0.0,
) -> Frame:
    """Frame of two marginal covariances; the rows behind them need not be pairs.

    `rank` fixes r; `energy` in (0, 1] chooses it and wants `rank=None`. `ridge` is relative to the
    mean eigenvalue of S.

    Raises:
        ValueError: not exactly one of `rank` and `energy`, a rank outside 1..D, or a matrix that is
            no covariance, whose eigenvectors would have looked like a frame.
    """
    check_frame_options(rank=rank, energy=energy)
    if ridge < 0:
        raise ValueError(f"ridge must not be negative, not {ridge}: S would lose its positive sign")
    values, vectors = principal_axes(source_cov + target_cov)
    chosen = _rank_of_energy(values, energy) if rank is None else rank
    if chosen > len(values):
        raise ValueError(
            f"a frame of rank {chosen} does not fit rows of width {len(values)}; "
            f"give rank <= {len(values)}, or rank=None with an energy"
        )
    return Frame(vectors, values + ridge * values.mean(), chosen)


def check_frame_options(*, rank: int | None, energy: float | None) -> None:
    """Refuse a choice of rank that no data can satisfy."""
    if (rank is None) == (energy is None):
        raise ValueError(
            f"rank is {rank} and energy {energy}: give one and set the other to None, or the "
            "subspace would be chosen by the one that happens to be read first"
        )
    if rank is not None and rank < 1:
        raise ValueError(f"a frame needs rank >= 1, not {rank}")
    if energy is not None and not 0 < energy <= 1:
        raise ValueError(f"energy is a share of the variance in (0, 1], not {energy}")


def principal_axes(
    covariance: Float64[np.ndarray, "dim dim"],
) -> tuple[Float64[np.ndarray, " dim"], Float64[np.ndarray, "dim dim"]]:
    """Eigenvalues (descending, clipped at 0) and eigenvectors (columns, signs fixed).

    Raises:
        ValueError: an entry is not finite, the matrix is not symmetric or not positive
            semidefinite; the eigenvalues of another matrix would have been returned.
    """
    if not np.isfinite(covariance).all():
        raise ValueError(
            f"{(~np.isfinite(covariance)).sum()} entries of a covariance are not finite"
        )
    scale, skew = np.abs(covariance).max(), np.abs(covariance - covariance.T).max()
    if skew > NEGATIVE_SHARE * scale:
        raise ValueError(f"no covariance: asymmetry {skew:.3g} beside entries up to {scale:.3g}")
    values, vectors = np.linalg.eigh((covariance + covariance.T) / 2)
    values, vectors = values[::-1], vectors[:, ::-1]
    if values[-1] < -NEGATIVE_SHARE * max(values[0], 0.0):
        raise ValueError(
            f"no covariance: smallest eigenvalue {values[-1]:.3g}, largest {values[0]:.3g}; "
            "it must be positive semidefinite"
        )
    return np.clip(values, 0.0, None), vectors * _signs(vectors)


def _rank_of_energy(values: Float64[np.ndarray, " dim"], energy: float | None) -> int:
    """Smallest r whose first r values hold `energy` of their sum, up to the rounding of sums."""
    assert energy is not None
    shares = np.cumsum(values)
    wanted = energy * shares[-1] * (1 - 1e-12)
    return int(np.searchsorted(shares, wanted)) + 1


def _signs(vectors: Float64[np.ndarray, "dim dim"]) -> Float64[np.ndarray, " dim"]:
    largest = np.abs(vectors).argmax(0)
    return np.where(np.take_along_axis(vectors, largest[None], 0)[0] < 0, -1.0, 1.0)
