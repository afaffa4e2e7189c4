"""Moments of unit rows in one streaming pass: what every alignment map is fitted on.

A row r enters as x = r / |r|, re-normalised in float64, because stored embeddings are float16 or
float32 and not exactly unit norm. One pass over the rows keeps n, S = sum x and q = sum |x|^2, and

    mean  = S / n
    trace = E|x - mean|^2 = q / n - |mean|^2        (population form, the trace of the covariance)

The subtraction is safe: the trace of contrastive embeddings is of order 1, so its absolute error is
about 1e-16 (arXiv:2602.07026, Sec. 4, gives the two-pass form; both agree to 1e-12 in the tests).

Rows that are not finite or have a norm below 1e-6 never reach a sum; their positions are returned.

The order of summation is fixed: rows are cut into a grid of `GRID_ROWS` by their position in the
whole stream, whatever batches or shards they arrive in, each cell is summed in blocks of
`BLOCK_ROWS`, and the cells are added in order. The same rows therefore give the same bits.

Letters: n rows, dim the width, S and q the sums above.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

GRID_ROWS = 4096
BLOCK_ROWS = 256  # 2.6 MB of float64 at width 1280: larger blocks leave the cache
MIN_NORM = 1e-6

Batches = Iterable[np.ndarray]  # (n, dim) or (n, k, dim), where n may differ between batches
Transform = Callable[[Float64[Tensor, "n dim"]], Float64[Tensor, "n dim"]]
Statistic = Callable[[Float64[Tensor, "n *stack dim"]], tuple[Tensor, ...]]


@dataclass(frozen=True)
class Moments:
    """Count, mean and mean squared norm of unit rows, and the positions of the rows left out."""

    count: int
    mean: Float64[np.ndarray, " dim"]
    mean_square: float
    rejected: tuple[int, ...] = ()

    @property
    def trace(self) -> float:
        """Trace of the population covariance, 0 where rounding would make it negative."""
        return max(0.0, self.mean_square - float(self.mean @ self.mean))

    @property
    def num_rows(self) -> int:
        """Rows seen, good and bad."""
        return self.count + len(self.rejected)

    def merge(self, other: "Moments") -> "Moments":
        """Moments of these rows followed by `other`'s: equal to one pass up to rounding.

        For corpora that lie apart, each with a pass of its own. No command of this repository
        calls it: `fit_alignment` makes one pass over one set, whose bits are reproducible.
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
        )


def moments_of(batches: Batches) -> Moments:
    """Moments of all rows of `batches`.

    Raises:
        ValueError: no usable row, or batches of different widths.
    """
    return moments_of_transformed(batches, lambda rows: rows)


def moments_of_transformed(batches: Batches, transform: Transform) -> Moments:
    """Moments of `transform(x)` over the good rows; `transform` may overwrite its argument."""
    (sums, squares), count, rejected = accumulate(
        batches, lambda rows: _sum_and_squares(transform(rows))
    )
    return Moments(
        count=count,
        mean=(sums / count).numpy(),
        mean_square=float(squares) / count,
        rejected=rejected,
    )


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


def _sum_and_squares(rows: Float64[Tensor, "n dim"]) -> tuple[Tensor, ...]:
    flat = rows.reshape(-1)
    return torch.ones(len(rows), dtype=torch.float64) @ rows, flat @ flat
