"""Phantom drift: projecting a cloud onto the sphere moves its mean.

    Z = mu + e,  E e = 0,  Cov e = S,  pi(z) = z / |z|,  r = |mu|,  a = mu / r
    drift            E pi(Z) - pi(mu)
    anchored drift   E pi(Z) - mu                                     against an un-projected anchor
    second order    -S a / r^2 - tr(S) a / (2 r^2) + 3 (a . S a) a / (2 r^2) + O(E|e|^3 / r^3)
    tangential part -(I - a a^T) S a / r^2,  zero for S = sigma^2 I

The two drifts are different vectors: mu lies inside the sphere and pi(mu) on it.

Source: arXiv:2602.07026v3, Sec. 3.4, 4.3, Thm. B.13-B.14. Caution: rows of contrastive encoders
have |e| / r of 2 to 3.5, far outside the range of the expansion; on an anisotropic Gaussian its
error is 0.6 % at tr S = 0.01 r^2, 8 % at 0.1 and 69 % at 1. Use the drift itself, and
`relative_spread` to see how far the expansion is from being valid.

Letters: mu mean before the projection, e deviation, S covariance, a direction of the mean.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

from revision.geometry.spectrum import covariance_of

Rows = Float64[np.ndarray, "n dim"]
Vector = Float64[np.ndarray, " dim"]


@dataclass(frozen=True)
class PhantomDrift:
    """Both drifts, the expansion of the first, and sqrt(tr S) / r, which must be small for it."""

    drift: Vector
    anchored: Vector
    expansion: Vector
    relative_spread: float

    @property
    def expansion_error(self) -> float:
        """Error of the expansion relative to the drift; inf where nothing drifts."""
        length = float(np.linalg.norm(self.drift))
        error = float(np.linalg.norm(self.expansion - self.drift))
        return error / length if length > 0 else np.inf


def phantom_drift(placed: Rows, anchor: Vector | None = None) -> PhantomDrift:
    """Measure rows as a map places them, before they are projected.

    `anchor` is where their mean should be, as the image mean; their own mean if not given.

    Raises:
        ValueError: a row, or the mean, at the origin, which has no direction.
    """
    mean = placed.mean(0)
    lengths = np.linalg.norm(placed, axis=1)
    length = float(np.linalg.norm(mean))
    if not (lengths > 0).all() or length == 0:
        raise ValueError(
            f"{int((lengths == 0).sum())} of {len(placed)} rows lie at the origin and their mean "
            f"has length {length:g}: they have no direction on the sphere; leave them out"
        )
    projected = (placed / lengths[:, None]).mean(0)
    covariance = covariance_of(placed)
    return PhantomDrift(
        drift=projected - mean / length,
        anchored=projected - (mean if anchor is None else anchor),
        expansion=second_order_drift(mean, covariance),
        relative_spread=float(np.sqrt(np.trace(covariance))) / length,
    )


def second_order_drift(mean: Vector, covariance: Float64[np.ndarray, "dim dim"]) -> Vector:
    """The expansion, valid for a spread far below the length of the mean."""
    square = float(mean @ mean)
    axis = mean / np.sqrt(square)
    pushed = covariance @ axis
    radial = 1.5 * float(axis @ pushed) - 0.5 * float(np.trace(covariance))
    return (radial * axis - pushed) / square
