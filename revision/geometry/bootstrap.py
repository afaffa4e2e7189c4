"""Percentile bootstrap intervals over rows, cheap enough for every number of a report.

A draw gives every row i of a group a count w_i, multinomial with n draws: resampling with
replacement, without copying a row. Rows that belong together (pairs, or a text row and its aligned
version) share one group and hence one count; groups are drawn apart.

    bootstrap        any statistic of the counts; `np.repeat(rows, w, axis=0)` are the rows drawn
    bootstrap_means  a function of means of features: the means are one product W F / n per block

The interval holds the central `level` of the statistics of the draws. Two cautions, both tests.
Resampling pushes a norm of a mean up as sampling did: the square of a gap by its floor squared, so
that plain percentiles near the floor lie above the estimate. Every interval states its bias, and
`intervals` takes it off, of a length in its square. And copies of a row are each other's nearest
neighbours, so kNN statistics must not be recomputed on drawn rows: their per-row contributions are
resampled with the neighbours kept as they are.

Source: Efron and Tibshirani, An Introduction to the Bootstrap, 1993, Ch. 13.
Letters: n rows of a group, w counts, F features of the rows, W counts of many draws.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64

DRAWS = 1000
LEVEL = 0.95
BLOCK_COUNTS = 2_000_000  # counts held at a time: 16 MB, and as much again as float64

Features = Float64[np.ndarray, "_ _"]  # groups differ in rows, features in width
Pairs = Int64[np.ndarray, "pairs 2"]


@dataclass(frozen=True)
class Interval:
    """An estimate and the interval that `level` of its draws fall into."""

    estimate: float
    low: float
    high: float
    level: float
    bias: float
    draws: int


def bootstrap(
    statistic: Callable[..., float],
    num_rows: Sequence[int],
    *,
    draws: int = DRAWS,
    level: float = LEVEL,
    seed: int = 0,
) -> Interval:
    """Interval of `statistic(w_1, w_2, ...)`, with one vector of counts per group.

    `num_rows` gives the rows of each group; the estimate has all counts at 1.
    """
    _check(num_rows, draws, level)
    estimate = statistic(*(np.ones(n, np.int64) for n in num_rows))
    values = [
        statistic(*counts)
        for block in _draw(num_rows, draws, seed)
        for counts in zip(*block, strict=True)
    ]
    return _interval(estimate, np.array(values), level)


def bootstrap_means(
    statistic: Callable[..., float],
    groups: Sequence[tuple[Features, ...]],
    *,
    draws: int = DRAWS,
    level: float = LEVEL,
    seed: int = 0,
) -> Interval:
    """Interval of `statistic(mean_1, mean_2, ...)`, one mean per array in the order of the groups.

    Arrays of one tuple keep their rows together: [(text, image)] for pairs, [(text,), (image,)]
    otherwise. Products and squares of rows are further arrays of their group.
    """
    num_rows = [_group_size(group) for group in groups]
    _check(num_rows, draws, level)
    values: list[float] = []
    for block in _draw(num_rows, draws, seed):
        means = [
            counts.astype(np.float64) @ array / counts.shape[1]
            for counts, group in zip(block, groups, strict=True)
            for array in group
        ]
        values += [statistic(*each) for each in zip(*means, strict=True)]
    estimate = statistic(*(array.mean(0) for group in groups for array in group))
    return _interval(estimate, np.array(values), level)


def bootstrap_rows(
    contributions: Float64[np.ndarray, " n"],
    *,
    draws: int = DRAWS,
    level: float = LEVEL,
    seed: int = 0,
) -> Interval:
    """Interval of the mean of one number per row: Phi, overlap, mixing, a paired cosine."""
    features = contributions[:, None]
    return bootstrap_means(
        lambda mean: float(mean[0]), [(features,)], draws=draws, level=level, seed=seed
    )


def bootstrap_squared_gap(
    groups: Sequence[tuple[Features, ...]], *, draws: int = DRAWS, seed: int = 0
) -> Interval:
    """Interval of the squared distance of two means: of [(text, image)], or [(text,), (image,)].

    Its `bias` is the squared floor; `intervals.length_number` takes it off and takes the root.
    """

    def square(one: np.ndarray, two: np.ndarray) -> float:
        return float(np.square(two - one).sum())

    return bootstrap_means(square, groups, draws=draws, seed=seed)


def pair_weights(counts: Int64[np.ndarray, " n"], pairs: Pairs) -> Float64[np.ndarray, " pairs"]:
    """w_i w_j: weight of a pair i != j of rows, for statistics of pairwise cosines."""
    return (counts[pairs[:, 0]] * counts[pairs[:, 1]]).astype(np.float64)


def _draw(num_rows: Sequence[int], draws: int, seed: int) -> Iterator[list[np.ndarray]]:
    """Counts of each group, (draws of the block, rows). Every group has a stream of its own, and
    the blocks it is cut into do not change it."""
    streams = [np.random.default_rng([seed, group]) for group in range(len(num_rows))]
    step = max(1, BLOCK_COUNTS // max(num_rows))
    for start in range(0, draws, step):
        size = min(step, draws - start)
        yield [
            np.stack([_counts(rng, rows) for _ in range(size)])
            for rng, rows in zip(streams, num_rows, strict=True)
        ]


def _counts(rng: np.random.Generator, num_rows: int) -> Int64[np.ndarray, " n"]:
    return np.bincount(rng.integers(num_rows, size=num_rows), minlength=num_rows)


def _group_size(group: tuple[np.ndarray, ...]) -> int:
    sizes = sorted({len(array) for array in group})
    if len(sizes) != 1:
        raise ValueError(
            f"arrays of one group have {sizes} rows: a pair drawn together would mix records; "
            "give rows that are no pairs as groups of their own"
        )
    return sizes[0]


def _check(num_rows: Sequence[int], draws: int, level: float) -> None:
    if min(num_rows) < 2 or draws < 2 or not 0 < level < 1:
        raise ValueError(
            f"{min(num_rows)} rows, {draws} draws and level {level} give no interval; at least 2 "
            "rows and 2 draws and a level between 0 and 1 are needed"
        )


def _interval(estimate: float, values: np.ndarray, level: float) -> Interval:
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    bias = float(values.mean()) - estimate
    return Interval(float(estimate), float(low), float(high), level, bias, len(values))
