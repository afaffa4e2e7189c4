"""Phantom drift: projecting a cloud onto the sphere moves its mean.

    Z = mu + e,  E e = 0,  Cov e = S,  pi(z) = z / |z|,  r = |mu|,  a = mu / r
    drift            E pi(Z) - pi(mu)
    anchored drift   E pi(Z) - mu                                     against an un-projected anchor
    second order    -S a / r^2 - tr(S) a / (2 r^2) + 3 (a . S a) a / (2 r^2) + O(E|e|^3 / r^3)
    tangential part -(I - a a^T) S a / r^2,  zero for S = sigma^2 I

The two drifts are different vectors: mu lies inside the sphere and pi(mu) on it.

Source: arXiv:2602.07026v3, Sec. 3.4, 4.3, Thm. B.13-B.14. Caution: rows of contrastive encoders
have |e| / r of 2 to 3.5, far outside the range of the expansion; on an anisotropic Gaussian its
error is 0.6 % at tr S = 0.01 r^2, 8 % at 0.1 and 69 % at 1 (tests). So only the drift itself is
measured; `relative_spread` says how far the expansion is from being valid.

Letters: mu mean before the projection, e deviation, S covariance, a direction of the mean.
"""

from dataclasses import dataclass
from math import sqrt

import numpy as np
from jaxtyping import Float64

Rows = Float64[np.ndarray, "n dim"]
Vector = Float64[np.ndarray, " dim"]


@dataclass(frozen=True)
class PhantomDrift:
    """Both drifts, and sqrt(tr S) / r, which must be small for the expansion."""

    drift: Vector
    anchored: Vector
    relative_spread: float

    @property
    def length(self) -> float:
        return float(np.linalg.norm(self.drift))

    @property
    def anchored_length(self) -> float:
        return float(np.linalg.norm(self.anchored))


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
    return PhantomDrift(
        drift=projected - mean / length,
        anchored=projected - (mean if anchor is None else anchor),
        relative_spread=sqrt(float(np.square(placed - mean).sum()) / len(placed)) / length,
    )


def matched_drift(text: Rows, image: Float64[np.ndarray, "m dim"]) -> PhantomDrift:
    """Drift of the texts once they have the mean and the trace of the images, as after ReAlign's
    first step."""
    anchor, centred = image.mean(0), text - text.mean(0)
    trace = float(np.square(image - anchor).sum()) / len(image)
    scale = sqrt(trace / (float(np.square(centred).sum()) / len(text)))
    return phantom_drift(anchor + scale * centred, anchor)
