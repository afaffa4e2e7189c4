"""Gradients of a contrastive loss at the embeddings, and where they point relative to a frame.

    InfoNCE     l = sum_i 1/2 [-log P_ii - log C_ii],   P, C = softmax of s X Y^T over rows, columns
                M = P + C - 2 I,   dl/dX = s/2 M Y,   dl/dY = s/2 M^T X
    leakage     sqrt( sum |P_V g|^2 / sum |g|^2 );   nulls: a random direction, sqrt((D - r) / D),
                and the rows, sqrt(tr P_V S_t / tr S_t), whose mixtures the gradients are
    sin theta   singular values of Q_V^T Q_t, which keep all digits of a small angle; arccos of
                those of Q_U^T Q_t loses half of them
    rho_eig     corr[ lambda(Sigma_U), lambda(G_U) ], both descending; null: a broken stick for G_U

Source: arXiv:2602.07026v3, Sec. 3.2-3.3, Lemmas B.6, B.7. Leakage as an amplitude, G as the
covariance of the gradients of both sides about their common mean, the diagonal correlation and the
nulls are ours: the paper leaves them open.
Departs from the paper in measuring the leakage out of U_t itself, which Lemma B.7 takes for 0.
Whatever the gradients, leakage <= sin theta + leakage_now. The largest angle also follows a swap of
the axes r and r + 1, whose eigenvalues lie close; sin_theta_rms averages the squares of all r.

Letters: X, Y unit rows of a batch, image and text; s logit scale; g one row of a gradient; D width,
r rank; S_t sum of the covariances of both sides now; Q_U, Q_V axes of the frame inside and outside
U, Q_t axes of the instantaneous U_t; Sigma_U covariance of the paired residual inside U, G_U that
of the gradients.
"""

from dataclasses import dataclass
from math import sqrt

import numpy as np
from jaxtyping import Float, Float64

from revision.geometry.frame import Frame
from revision.geometry.spectrum import covariance_of, eigenvalues

SMALLEST_SHARE = 1e-12  # eigenvalues below this share of the largest have no logarithm


@dataclass(frozen=True)
class Gradients:
    """Of the loss, at the unit rows of both sides; batches may be concatenated."""

    image: Float64[np.ndarray, "n dim"]
    text: Float64[np.ndarray, "n dim"]

    @property
    def rows(self) -> Float64[np.ndarray, "both dim"]:
        return np.concatenate([self.image, self.text])


def info_nce_gradients(
    image: Float[np.ndarray, "n dim"], text: Float[np.ndarray, "n dim"], scale: float
) -> Gradients:
    """Of the symmetric InfoNCE of one batch, summed over its pairs (Lemma B.6, both directions)."""
    image, text = image.astype(np.float64), text.astype(np.float64)
    logits = scale * image @ text.T
    pull = _softmax(logits) + _softmax(logits.T).T - 2 * np.eye(len(logits))
    return Gradients(scale / 2 * pull @ text, scale / 2 * pull.T @ image)


def leakage(reference: Frame, now: Frame, gradients: Gradients) -> dict[str, float]:
    """How much of the gradients falls outside the reference and outside U_t, with two nulls.

    The angles only where the two frames are not one and the same.
    """
    rows = gradients.rows
    dim = rows.shape[1]
    share, share_now = (_outside_share(frame, rows) for frame in (reference, now))
    spread = ((reference.complement.T @ now.vectors) ** 2).sum(0)
    measured = {
        "leakage": sqrt(share),
        "leakage_squared": share,
        "leakage_now": sqrt(share_now),
        "leakage_null": sqrt((dim - reference.rank) / dim),
        "leakage_rows": sqrt(float(now.values @ spread) / float(now.values.sum())),
    }
    if reference is not now:
        sines = sines_of_angles(reference, now)
        measured["sin_theta"] = float(sines.max())
        measured["sin_theta_rms"] = sqrt(float((sines**2).mean()))
    return measured


def sines_of_angles(reference: Frame, now: Frame) -> Float64[np.ndarray, " rank"]:
    """Sines of the principal angles between the two subspaces, descending."""
    outside = reference.complement.T @ now.basis
    sines = np.zeros(now.rank)
    values = np.linalg.svd(outside, compute_uv=False)
    sines[: len(values)] = values
    return sines


def match(
    frame: Frame, residual: Float64[np.ndarray, "dim dim"], gradients: Gradients
) -> dict[str, float]:
    """Do the residuals in U spread where the gradients do? By spectra and by axes of the frame."""
    inside = frame.basis.T @ residual @ frame.basis
    pushes = covariance_of(gradients.rows @ frame.basis)
    return {
        **spectral_match(eigenvalues(inside), eigenvalues(pushes)),
        "diagonal_correlation": pearson(np.diag(inside), np.diag(pushes)),
    }


def spectral_match(
    residual: Float64[np.ndarray, " rank"], gradient: Float64[np.ndarray, " rank"]
) -> dict[str, float]:
    """rho_eig of two descending spectra, its log-log version, and both with a broken stick.

    Any two descending sequences correlate: k^-1 and k^-2 over 128 ranks by 0.93. The broken stick,
    1/r sum_{j >= k} 1/j, is the expected descending spectrum of variance cut at random points, so
    rho_eig means something only where it is above its null.
    """
    stick = np.cumsum(1 / np.arange(len(residual), 0, -1))[::-1] / len(residual)
    return {
        "rho_eig": pearson(residual, gradient),
        "rho_eig_null": pearson(residual, stick),
        "rho_eig_log": _log_pearson(residual, gradient),
        "rho_eig_log_null": _log_pearson(residual, stick),
    }


def cosine(one: Float64[np.ndarray, " dim"], other: Float64[np.ndarray, " dim"]) -> float:
    """nan where one of the two has no direction."""
    lengths = float(np.linalg.norm(one) * np.linalg.norm(other))
    return float(one @ other) / lengths if lengths > 0 else float("nan")


def pearson(one: Float64[np.ndarray, " n"], other: Float64[np.ndarray, " n"]) -> float:
    """Correlation; nan where one of the two does not vary."""
    return cosine(one - one.mean(), other - other.mean())


def _log_pearson(one: np.ndarray, other: np.ndarray) -> float:
    """Over the ranks where both spectra are above rounding."""
    kept = (one > SMALLEST_SHARE * one[0]) & (other > SMALLEST_SHARE * other[0])
    return pearson(np.log(one[kept]), np.log(other[kept])) if kept.any() else float("nan")


def _outside_share(frame: Frame, rows: np.ndarray) -> float:
    return float((frame.split(rows)[1] ** 2).sum() / max((rows**2).sum(), np.finfo(float).tiny))


def _softmax(logits: np.ndarray) -> np.ndarray:
    weights = np.exp(logits - logits.max(1, keepdims=True))
    return weights / weights.sum(1, keepdims=True)
