"""Moments of unit rows in one streaming pass: what every alignment map is fitted on.

A row r enters as x = r / |r|, re-normalised in float64, because stored embeddings are float16 or
float32 and not exactly unit norm. One pass over the rows keeps n, S = sum x and q = sum |x|^2, and

    mean       = S / n
    trace      = E|x - mean|^2 = q / n - |mean|^2     (population form, trace of the covariance)
    covariance = C / n - mean mean^T,   C = sum x x^T (only where a method asks for it)

The subtraction is safe: the trace of contrastive embeddings is of order 1, so its absolute error is
about 1e-16 (arXiv:2602.07026, Sec. 4, gives the two-pass form; both agree to 1e-12 in the tests).

Rows that are not finite or have a norm below 1e-6 never reach a sum; their positions are returned.

S and q are exact sums: every number is first rounded to a multiple of 2^-44 (6e-14, three orders
below what float32 storage keeps of a unit row), and such numbers add up without any error, as
integers. The mean and the trace are therefore the same bits for every order of rows, batches,
shards, threads and processes, and sums of parts merge exactly (`MomentSums`). C is a float64 sum
in the order of a grid: rows are cut into cells of `GRID_ROWS` by their position in the stream,
each cell is summed by itself, and the cells are added in order.

Letters: n rows, dim the width, S, q and C the sums above.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

GRID_ROWS = 4096
BLOCK_ROWS = 256  # 2.6 MB of float64 at width 1280: larger blocks leave the cache
MIN_NORM = 1e-6
RESOLUTION = 2.0**-44  # of the exact sums: 256 numbers of at most 2 fill the 53 bits of a float64
ROUNDER = 1.5 * 2.0**8
LIMB = 2**32

Batches = Iterable[np.ndarray]  # (n, dim) or (n, k, dim), where n may differ between batches
Transform = Callable[[Float64[Tensor, "n dim"]], Float64[Tensor, "n dim"]]
Second = Literal["trace", "diagonal", "covariance"]  # the second moments that a method needs
Statistic = Callable[[Float64[Tensor, "n *stack dim"]], tuple[Tensor, ...]]


@dataclass(frozen=True)
class Moments:
    """Count, mean and mean squared norm of unit rows, and the positions of the rows left out.

    `second` holds the second moments that were asked for: variances (dim,), the population
    covariance (dim, dim), or nothing.
    """

    count: int
    mean: Float64[np.ndarray, " dim"]
    mean_square: float
    rejected: tuple[int, ...] = ()
    second: Float64[np.ndarray, "*square"] | None = None

    @property
    def trace(self) -> float:
        """Trace of the population covariance, 0 where rounding would make it negative."""
        return max(0.0, self.mean_square - float(self.mean @ self.mean))

    @property
    def variance(self) -> Float64[np.ndarray, " dim"]:
        """Variance of each coordinate, population form."""
        second = self._second("variances", (1, 2))
        return second if second.ndim == 1 else np.ascontiguousarray(np.diagonal(second))

    @property
    def covariance(self) -> Float64[np.ndarray, "dim dim"]:
        """The population covariance."""
        return self._second("a covariance", (2,))

    @property
    def num_rows(self) -> int:
        """Rows seen, good and bad."""
        return self.count + len(self.rejected)

    def merge(self, other: "Moments") -> "Moments":
        """Moments of these rows followed by `other`'s: equal to one pass up to rounding.

        `MomentSums` add up without rounding; this is for moments whose sums are gone.
        """
        if self.mean.shape != other.mean.shape:
            raise ValueError(
                f"moments of width {len(self.mean)} and {len(other.mean)} do not add up; "
                "they come from different encoders"
            )
        count = self.count + other.count
        share = other.count / count
        return Moments(
            count=count,
            mean=self.mean + share * (other.mean - self.mean),
            mean_square=self.mean_square + share * (other.mean_square - self.mean_square),
            rejected=self.rejected + tuple(self.num_rows + row for row in other.rejected),
            second=_merged_second(self, other, share),
        )

    def _second(self, what: str, ranks: tuple[int, ...]) -> np.ndarray:
        if self.second is None or self.second.ndim not in ranks:
            raise ValueError(
                f"these moments hold no {what.removeprefix('a ')}; collect {what} with "
                "moments_of(rows, second='covariance')"
            )
        return self.second


def _merged_second(one: Moments, two: Moments, share: float) -> np.ndarray | None:
    if one.second is None or two.second is None:
        return None
    gap = two.mean - one.mean
    between = np.outer(gap, gap) if one.second.ndim == 2 else gap**2
    return (1 - share) * one.second + share * two.second + share * (1 - share) * between


@dataclass(frozen=True)
class MomentSums:
    """Exact sums over unit rows, in units of 2^-44: parts of any size add up without rounding.

    `limbs` are the high and low 32 bits of S: integers that hold 2^40 rows and more.
    """

    count: int
    limbs: Int64[np.ndarray, "2 dim"]
    square_sum: int

    def __add__(self, other: "MomentSums") -> "MomentSums":
        if self.limbs.shape != other.limbs.shape:
            raise ValueError(
                f"sums of width {self.limbs.shape[1]} and {other.limbs.shape[1]} do not add up; "
                "they come from different encoders"
            )
        limbs = _carried(self.limbs + other.limbs)
        return MomentSums(self.count + other.count, limbs, self.square_sum + other.square_sum)

    @property
    def mean(self) -> Float64[np.ndarray, " dim"]:
        """S / n; the same bits whatever the sums were added up from."""
        high, low = self.limbs.astype(np.float64)
        return (high * (LIMB / self.count) + low / self.count) * RESOLUTION

    @property
    def mean_square(self) -> float:
        return self.square_sum / self.count * RESOLUTION

    def moments(self, rejected: tuple[int, ...] = ()) -> Moments:
        return Moments(self.count, self.mean, self.mean_square, rejected)


def exact_sums(rows: Float64[Tensor, "n dim"]) -> MomentSums:
    """Sums over rows whose elements lie in [-2, 2], as those of unit rows do; rows are rounded."""
    limbs = np.zeros((2, rows.shape[1]), np.int64)
    square_sum = 0
    for block in rows.split(BLOCK_ROWS):
        squares = _rounded((block * block).sum(1)).sum()
        square_sum += int(squares / RESOLUTION)
        total = torch.ones(len(block), dtype=torch.float64) @ _rounded(block)
        units = (total / RESOLUTION).numpy().astype(np.int64)
        limbs += np.stack([units >> 32, units & (LIMB - 1)])
    return MomentSums(len(rows), _carried(limbs), square_sum)


def _rounded(numbers: Tensor) -> Tensor:
    """In place to the nearest multiple of 2^-44: adding 384 leaves no smaller bits."""
    return numbers.add_(ROUNDER).sub_(ROUNDER)


def _carried(limbs: np.ndarray) -> np.ndarray:
    return np.stack([limbs[0] + (limbs[1] >> 32), limbs[1] & (LIMB - 1)])


def moments_of(batches: Batches, *, second: Second = "trace") -> Moments:
    """Moments of all rows of `batches`, with the second moments that `second` asks for.

    Raises:
        ValueError: no usable row, or batches of different widths.
    """
    return moments_of_transformed(batches, lambda rows: rows, second=second)


def moments_of_transformed(
    batches: Batches, transform: Transform, *, second: Second = "trace"
) -> Moments:
    """Moments of `transform(x)` over the good rows; `transform` may overwrite its argument."""
    sums: list[MomentSums] = []

    def statistic(rows: Float64[Tensor, "n dim"]) -> tuple[Tensor, ...]:
        moved = transform(rows)
        products = _products(moved, second)
        block = exact_sums(moved)
        sums[:] = [sums[0] + block if sums else block]
        return products

    totals, _, rejected = accumulate(batches, statistic)
    moments = sums[0].moments(rejected)
    return replace(moments, second=_centred(totals[0].numpy(), moments)) if totals else moments


def _products(rows: Float64[Tensor, "n dim"], second: Second) -> tuple[Tensor, ...]:
    if second == "trace":
        return ()
    return ((rows * rows).sum(0) if second == "diagonal" else rows.T @ rows,)


def _centred(products: np.ndarray, moments: Moments) -> np.ndarray:
    """Second moments about the mean; no variance falls below 0 by rounding."""
    mean = moments.mean
    if products.ndim == 1:
        return np.maximum(products / moments.count - mean**2, 0.0)
    return products / moments.count - np.outer(mean, mean)


@contextmanager
def one_thread() -> Iterator[None]:
    """Keep torch to one thread inside: also usable as a decorator.

    Blocks that fit in the cache are too short to share. With two threads on a busy two-core machine
    the same pass took 5 to 15 times the CPU time; and sums do not depend on the number of cores.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@one_thread()
def accumulate(
    batches: Batches, statistic: Statistic
) -> tuple[tuple[Tensor, ...], int, tuple[int, ...]]:
    """Sum `statistic(unit rows)` over the good rows of `batches`, in the fixed order of the grid.

    `statistic` gets up to `BLOCK_ROWS` unit rows in float64, may overwrite them, and returns sums
    over them. A batch may hold tuples of rows (n, k, dim); a tuple is good if all its rows are.

    Returns:
        The sums, the number of good rows (or tuples), and the positions of the others.
    """
    totals: tuple[Tensor, ...] = ()
    count, position = 0, 0
    rejected: list[int] = []
    for cell in grid(batches):
        sums, bad = _sum_cell(cell, statistic)
        totals = _add(totals, sums)
        rejected += (np.flatnonzero(bad) + position).tolist()
        position += len(cell)
        count = position - len(rejected)
    if count == 0:
        raise ValueError(
            f"no usable row: all {position} are missing, not finite or of norm below {MIN_NORM:g}"
        )
    return totals, count, tuple(rejected)


def grid(batches: Batches, size: int = GRID_ROWS) -> Iterator[np.ndarray]:
    """Recut `batches` into arrays of `size` rows (the last may be shorter), order kept."""
    pending: list[np.ndarray] = []
    missing, width = size, None
    for batch in batches:
        width = width or batch.shape[1:]
        if batch.shape[1:] != width:
            raise ValueError(f"rows of width {batch.shape[1:]} after rows of width {width}")
        while len(batch):
            pending.append(batch[:missing])
            batch = batch[missing:]
            missing -= len(pending[-1])
            if missing == 0:
                yield pending[0] if len(pending) == 1 else np.concatenate(pending)
                pending, missing = [], size
    if pending:
        yield np.concatenate(pending)


def to_float64(rows: np.ndarray | Tensor) -> Float64[Tensor, "n *stack dim"]:
    """A float64 copy of `rows`; numbers of any other type than floating point are refused."""
    copy = torch.tensor(rows) if isinstance(rows, np.ndarray) else rows.detach().clone()
    if not copy.is_floating_point():
        raise ValueError(f"embedding rows must be floating point, not {copy.dtype}")
    return copy.float().double() if copy.itemsize < 4 else copy.double()  # via float32: 1.6x faster


def normalize_(rows: Float64[Tensor, "n *stack dim"]) -> Bool[Tensor, " n *stack"]:
    """Divide each row by its norm in place; true where a row has no usable norm."""
    norms = torch.linalg.vector_norm(rows, dim=-1, keepdim=True)
    rows.div_(norms)
    return _is_bad(norms.squeeze(-1))


def bad_rows(rows: Float[np.ndarray, "n dim"]) -> Bool[np.ndarray, " n"]:
    """True where a row is not finite or (nearly) zero, so that it has no direction."""
    norms = np.empty(len(rows))
    for start in range(0, len(rows), BLOCK_ROWS):
        block = to_float64(rows[start : start + BLOCK_ROWS])
        norms[start : start + BLOCK_ROWS] = torch.linalg.vector_norm(block, dim=-1)
    return _is_bad(torch.tensor(norms)).numpy()


def unit_rows(rows: Float[np.ndarray, "n dim"]) -> Float64[np.ndarray, "n dim"]:
    """A few rows in float64 with norm 1. They must have a direction."""
    unit = to_float64(rows)
    normalize_(unit)
    return unit.numpy()


def _is_bad(norms: Float64[Tensor, "*rows"]) -> Bool[Tensor, "*rows"]:
    return ~((norms >= MIN_NORM) & torch.isfinite(norms))


def _sum_cell(cell: np.ndarray, statistic: Statistic) -> tuple[tuple[Tensor, ...], np.ndarray]:
    totals: tuple[Tensor, ...] = ()
    masks = []
    for start in range(0, len(cell), BLOCK_ROWS):
        rows = to_float64(cell[start : start + BLOCK_ROWS])
        bad = normalize_(rows).reshape(len(rows), -1).any(1)
        totals = _add(totals, statistic(rows[~bad] if bad.any() else rows))
        masks.append(bad.numpy())
    return totals, np.concatenate(masks)


def _add(totals: tuple[Tensor, ...], sums: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(t + s for t, s in zip(totals, sums, strict=True)) if totals else sums
