"""Polar blocks of frame coordinates, and the radial quantile map between two modalities.

    c = Q_U^T w,  block k of c is (a_k, b_k)
    rho_k = sqrt(a_k^2 + b_k^2 + e),  theta_k = atan2(b_k, a_k)
    T_k = F_k^{x,-1} o F_k^y          gives the radii of texts the distribution of the images'

Polar coordinates are about the origin, not about a mean. T_k is piecewise linear between quantiles
at the same levels 0, 1/(q-1), .., 1 of both modalities; below the first and above the last text
quantile it is constant, so that no radius leaves the range of the images.

Source: arXiv:2605.07825, Sec. 4 and App. A.7; the number of quantiles, the interpolation and the
tails are ours, since the paper states none.
Letters: Q_U frame basis (D x r), m = r/2 blocks, e epsilon, F_k distribution of the radii of block
k, x images, y texts, q number of quantiles.
"""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor


class Polar(NamedTuple):
    """Radii (at least sqrt(epsilon)) and phases in [-pi, pi] of the m blocks of each row."""

    radii: Float[Tensor, "n blocks"]
    phases: Float[Tensor, "n blocks"]


def to_polar(coordinates: Float[Tensor, "n rank"], epsilon: float) -> Polar:
    """Blocks (0, 1), (2, 3), ... of the coordinates."""
    first, second = coordinates[:, 0::2], coordinates[:, 1::2]
    radii = (first.square() + second.square() + epsilon).sqrt()
    return Polar(radii, torch.atan2(second, first))


def to_cartesian(polar: Polar) -> Float[Tensor, "n rank"]:
    """The inverse of `to_polar` for epsilon = 0, otherwise longer by epsilon / (2 rho^2)."""
    pairs = torch.stack([polar.phases.cos(), polar.phases.sin()], dim=2)
    return (pairs * polar.radii[:, :, None]).flatten(1)


def haar_rotation(size: int, seed: int) -> Float64[np.ndarray, "size size"]:
    """An orthogonal matrix drawn uniformly: it mixes the frame's axes before they are paired."""
    gaussian = np.random.default_rng(seed).standard_normal((size, size))
    orthogonal, triangular = np.linalg.qr(gaussian)
    return orthogonal * np.sign(np.diag(triangular))


def radial_quantiles(radii: Float64[Tensor, "n blocks"], count: int) -> Float64[Tensor, "blocks q"]:
    """Each block's quantiles at `count` even levels, interpolated between order statistics."""
    ordered = radii.sort(dim=0).values
    places = torch.linspace(0, len(radii) - 1, count, dtype=torch.float64)
    low = places.floor().long().clamp(max=max(len(radii) - 2, 0))
    high = (low + 1).clamp(max=len(radii) - 1)
    return torch.lerp(ordered[low], ordered[high], (places - low)[:, None]).T.contiguous()


def map_radii(
    radii: Float64[Tensor, "n blocks"],
    source: Float64[Tensor, "blocks q"],
    target: Float64[Tensor, "blocks q"],
) -> Float64[Tensor, "n blocks"]:
    """T_k of each radius. Where text quantiles coincide, T_k jumps: it never decreases."""
    columns = radii.T.contiguous()
    low = torch.searchsorted(source, columns, right=True).sub_(1).clamp_(0, source.shape[1] - 2)
    start, end = source.gather(1, low), source.gather(1, low + 1)
    share = ((columns - start) / (end - start)).clamp(0, 1)
    share = torch.where(end > start, share, (columns >= end).double())
    return torch.lerp(target.gather(1, low), target.gather(1, low + 1), share).T
