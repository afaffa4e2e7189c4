"""Cosines between rows of one cloud, their density, and how two such densities differ.

    c_ij = u_i . u_j over random pairs i != j of unit rows (all pairs where there are fewer)
    density: Gaussian kernel, Silverman bandwidth h = std(c) (3 n / 4)^(-1/5), on [-1, 1]
    JS(p, q) = KL(p | (p + q) / 2) / 2 + KL(q | (p + q) / 2) / 2;   at most ln 2 = 1 bit

Source: arXiv:2602.07026v3, App. D.2, Fig. 4. Number of pairs, bandwidth, grid and base of the
logarithm are not given there: 200 000 pairs, Silverman, 1024 points, and nats and bits both.
Departs from a plain kernel sum in two points: cosines are first rounded to a grid four times as
fine, which moves the density by less than 1e-3 of its height (tests) and takes milliseconds instead
of seconds; and h is never below one step of the grid, so equal rows give a spike and not a refusal.

Letters: u unit row, c cosine, n number of cosines, h bandwidth.
"""

from dataclasses import dataclass
from math import log

import numpy as np
from jaxtyping import Float64, Int64
from scipy.ndimage import gaussian_filter1d
from scipy.special import rel_entr

NUM_PAIRS = 200_000
NUM_POINTS = 1024
FINER = 4  # grid of the rounding against grid of the density
BLOCK_PAIRS = 4096
REACH = 8.0  # the kernel is cut at this many bandwidths

Rows = Float64[np.ndarray, "n dim"]
Pairs = Int64[np.ndarray, "pairs 2"]
Density = Float64[np.ndarray, " points"]


@dataclass(frozen=True)
class JensenShannon:
    """Divergence of two densities."""

    nats: float

    @property
    def bits(self) -> float:
        return self.nats / log(2)


def random_pairs(num_rows: int, count: int = NUM_PAIRS, seed: int = 0) -> Pairs:
    """`count` pairs i != j drawn with replacement; every pair i < j once if there are no more."""
    if num_rows < 2:
        raise ValueError(f"{num_rows} rows have no pair to take a cosine of; 2 are needed")
    if num_rows * (num_rows - 1) // 2 <= count:
        return np.stack(np.triu_indices(num_rows, 1), axis=1).astype(np.int64)
    rng = np.random.default_rng(seed)
    first = rng.integers(num_rows, size=count)
    return np.stack([first, (first + rng.integers(1, num_rows, size=count)) % num_rows], axis=1)


def pair_cosines(rows: Rows, pairs: Pairs) -> Float64[np.ndarray, " pairs"]:
    """u_i . u_j of unit rows for each pair."""
    cosines = np.empty(len(pairs))
    for start in range(0, len(pairs), BLOCK_PAIRS):
        block = pairs[start : start + BLOCK_PAIRS]
        products = np.einsum("nd,nd->n", rows[block[:, 0]], rows[block[:, 1]])
        cosines[start : start + BLOCK_PAIRS] = products
    return np.clip(cosines, -1.0, 1.0)


def silverman(cosines: Float64[np.ndarray, " n"]) -> float:
    """Bandwidth of the density, at least one step of its grid."""
    width = cosines.std(ddof=1) if len(cosines) > 1 else 0.0
    return max(float(width) * (0.75 * len(cosines)) ** -0.2, 2 / (NUM_POINTS - 1))


def cosine_density(
    cosines: Float64[np.ndarray, " n"],
    *,
    weights: Float64[np.ndarray, " n"] | None = None,
    bandwidth: float | None = None,
) -> tuple[Density, Density]:
    """Grid on [-1, 1] and the density there, normalised to an integral of 1 on it.

    A given `bandwidth` keeps all draws of a bootstrap, which come as `weights`, comparable.
    """
    last = FINER * (NUM_POINTS - 1)
    step = 2 / last
    bins = np.rint((cosines + 1) / step).astype(np.int64)
    counts = np.bincount(bins, weights=weights, minlength=last + 1).astype(np.float64)
    sigma = (silverman(cosines) if bandwidth is None else bandwidth) / step
    density = gaussian_filter1d(counts, sigma, mode="constant", truncate=REACH)[::FINER]
    return np.linspace(-1, 1, NUM_POINTS), density / (density.sum() * step * FINER)


def jensen_shannon(one: Density, two: Density) -> JensenShannon:
    """Divergence of two densities on the same grid, of any scale."""
    p, q = one / one.sum(), two / two.sum()
    middle = (p + q) / 2
    return JensenShannon(float(rel_entr(p, middle).sum() + rel_entr(q, middle).sum()) / 2)


def angle_divergence(
    one: Rows, two: Float64[np.ndarray, "m dim"], *, count: int = NUM_PAIRS, seed: int = 0
) -> JensenShannon:
    """JS of the pairwise cosines within `one` and within `two`."""
    densities = (
        cosine_density(pair_cosines(rows, random_pairs(len(rows), count, seed)))[1]
        for rows in (one, two)
    )
    return jensen_shannon(*densities)
