"""Whether embeddings are fit to be used: bad rows, norms, copies, dead dimensions, outliers.

Two passes of different reach. `scan` reads every row once and keeps a few sums: rows without a
direction, norms, exact copies. `sample_quality` looks closer at a sample in memory.

    copies      1 - distinct rows / rows, by a 64-bit hash of the row's bytes
    off unit    | |r| - 1 | > 0.01
    share_j     Var(x_j) / tr Cov(x)                 collapsed: share_j < 1e-3 / dim; constant: 0
    z           (v - median v) / (1.4826 MAD v)      v the cosine to the mean, or to the k-th
                                                     neighbour; an outlier has z < -6 in one of them

Memory of `scan` does not grow with the number of rows: once `MAX_HASHES` distinct hashes are kept,
only those in a half (quarter, ...) of the hash space stay. All copies of a row share their hash, so
the share of copies among what stays estimates the share among all, which a sample of rows does not.

Source: none of the papers; the public code promises a detection of bad embeddings and has none.
Letters: r stored row, x = r / |r|, MAD median absolute deviation.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from hashlib import blake2b
from math import inf, sqrt
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Float64

from revision.sums import MIN_NORM

UNIT_TOLERANCE = 0.01
MAX_HASHES = 1 << 19  # 46 MB
NEAR_COPY_COSINE = 0.9999
COLLAPSED_SHARE = 1e-3
CONSTANT_SHARE = 1e-12
OUTLIER_Z = 6.0
LISTED = 10


@dataclass(frozen=True)
class Scan:
    """What one pass over every row says; `copies` is estimated where `hashed_share` is below 1."""

    num_rows: int
    bad_positions: tuple[int, ...]
    num_off_unit: int
    norm_min: float
    norm_max: float
    norm_mean: float
    norm_std: float
    copies: float
    largest_group: int
    hashed_share: float

    @property
    def num_bad(self) -> int:
        return len(self.bad_positions)

    def to_json(self) -> dict[str, Any]:
        """Every number; of the bad rows how many there are, and where the first ones stand."""
        fields = asdict(self) | {"num_bad": self.num_bad}
        return fields | {"bad_positions": list(self.bad_positions[:LISTED])}


def scan(batches: Iterable[np.ndarray]) -> Scan:
    """Read all rows once; rows that are not finite or (nearly) zero count as bad and stop there.

    Raises:
        ValueError: no row at all.
    """
    seen, norms = _Hashes(), _Norms()
    for batch in batches:
        lengths = row_norms(batch)
        good = np.isfinite(lengths) & (lengths >= MIN_NORM)
        norms.add(lengths, good)
        seen.add(batch[good])
    if norms.num_rows == 0:
        raise ValueError("0 rows to scan, at least 1 is needed: the feature set is empty")
    return Scan(
        num_rows=norms.num_rows,
        bad_positions=tuple(norms.bad),
        num_off_unit=norms.off_unit,
        norm_min=norms.low if norms.count else 0.0,
        norm_max=norms.high,
        norm_mean=norms.mean,
        norm_std=norms.std,
        copies=seen.copies,
        largest_group=max(seen.counts.values(), default=0),
        hashed_share=1 / seen.thinning,
    )


def row_norms(rows: Float[np.ndarray, "n dim"]) -> Float64[np.ndarray, " n"]:
    """Norms in float64, so that the square of a float16 does not overflow."""
    wide = np.asarray(rows, np.float64)
    return np.sqrt(np.einsum("nd,nd->n", wide, wide))


def row_hashes(rows: Float[np.ndarray, "n dim"]) -> list[int]:
    """A 64-bit hash of each row's bytes; 0.0 and -0.0 are the same number and the same hash."""
    plain = np.ascontiguousarray(rows + rows.dtype.type(0))
    return [int.from_bytes(blake2b(row, digest_size=8).digest(), "little") for row in plain]


def shared_rows(rows: Float[np.ndarray, "n dim"], others: Float[np.ndarray, "m dim"]) -> float:
    """Share of `rows` that stand, bit for bit, among `others`."""
    known = set(row_hashes(others))
    return sum(key in known for key in row_hashes(rows)) / len(rows)


def sample_quality(
    rows: Float64[np.ndarray, "n dim"],
    nearest: Float64[np.ndarray, " n"],
    distant: Float64[np.ndarray, " n"],
) -> dict[str, Any]:
    """What a sample of unit rows says; a JSON object. Positions are those of the sample.

    `nearest` is each row's cosine to its nearest other row, `distant` to its k-th.
    """
    mean = rows.mean(0)
    centrality = rows @ mean / max(float(np.linalg.norm(mean)), MIN_NORM)
    odd = {"cosine to the mean": robust_z(centrality), "cosine to neighbours": robust_z(distant)}
    lowest = np.minimum.reduce(list(odd.values()))
    worst = np.argsort(lowest, kind="stable")[: min(LISTED, int((lowest < -OUTLIER_Z).sum()))]
    return {
        "num_rows": len(rows),
        "near_copies": float((nearest > NEAR_COPY_COSINE).mean()),
        "outliers": float((lowest < -OUTLIER_Z).mean()),
        "outlier_positions": worst.tolist(),
        "outlier_z": [float(lowest[i]) for i in worst],
        "mean_cosine": float(mean @ mean),
        **dimension_quality(rows),
    }


def dimension_quality(rows: Float64[np.ndarray, "n dim"]) -> dict[str, Any]:
    """Coordinates that never change, hardly change, or hold most of the variance."""
    variance = rows.var(0)
    total = max(float(variance.sum()), np.finfo(float).tiny)
    shares = variance / total
    largest = int(shares.argmax())
    constant = shares <= CONSTANT_SHARE
    collapsed = (shares < COLLAPSED_SHARE / len(shares)) & ~constant
    return {
        "dim": len(shares),
        "num_constant": int(constant.sum()),
        "constant_dims": np.flatnonzero(constant)[:LISTED].tolist(),
        "num_collapsed": int(collapsed.sum()),
        "collapsed_dims": np.flatnonzero(collapsed)[:LISTED].tolist(),
        "largest_dim": largest,
        "largest_share": float(shares[largest]),
    }


def robust_z(values: Float64[np.ndarray, " n"]) -> Float64[np.ndarray, " n"]:
    """Distance from the median in robust standard deviations; 0 where most values are equal."""
    centred = values - np.median(values)
    spread = 1.4826 * np.median(np.abs(centred))
    return centred / spread if spread > 1e-12 else np.zeros_like(centred)


class _Norms:
    """Running count, range, mean and deviation of the norms of good rows."""

    def __init__(self) -> None:
        self.num_rows = self.count = self.off_unit = 0
        self.low, self.high = inf, 0.0
        self.bad: list[int] = []
        self._sum = self._square = 0.0

    def add(self, norms: Float64[np.ndarray, " n"], good: Bool[np.ndarray, " n"]) -> None:
        self.bad += (np.flatnonzero(~good) + self.num_rows).tolist()
        self.num_rows += len(norms)
        norms = norms[good]
        if not len(norms):
            return
        self.count += len(norms)
        self.off_unit += int((np.abs(norms - 1) > UNIT_TOLERANCE).sum())
        self.low, self.high = min(self.low, float(norms.min())), max(self.high, float(norms.max()))
        self._sum += float((norms - 1).sum())  # about 1, where norms of embeddings lie
        self._square += float(np.square(norms - 1).sum())

    @property
    def mean(self) -> float:
        return 1 + self._sum / max(self.count, 1)

    @property
    def std(self) -> float:
        square = self._square / max(self.count, 1) - (self.mean - 1) ** 2
        return sqrt(max(square, 0.0))


class _Hashes:
    """How often each hash was seen, for hashes that `thinning` (a power of two) divides."""

    def __init__(self) -> None:
        self.counts: dict[int, int] = {}
        self.thinning = 1

    def add(self, rows: np.ndarray) -> None:
        for key in row_hashes(rows):
            if key % self.thinning == 0:
                self.counts[key] = self.counts.get(key, 0) + 1
        while len(self.counts) > MAX_HASHES:
            self.thinning *= 2
            self.counts = {k: n for k, n in self.counts.items() if k % self.thinning == 0}

    @property
    def copies(self) -> float:
        total = sum(self.counts.values())
        return 1 - len(self.counts) / total if total else 0.0
