"""Moments of unit rows in one streaming pass: what every alignment map is fitted on.

One pass over the rows x = r / |r| keeps n, S = sum x and q = sum |x|^2 (`revision.sums`), and

    mean       = S / n
    trace      = E|x - mean|^2 = q / n - |mean|^2     (population form, trace of the covariance)
    covariance = C / n - mean mean^T,   C = sum x x^T (only where a method asks for it)

The subtraction is safe: the trace of contrastive embeddings is of order 1 and its absolute error
below 1e-13 (arXiv:2602.07026v3, Sec. 4, gives the two-pass form; both agree to 1e-12 in the tests).
Against cancellation a trace below 1e-12, that of rows which are all alike, is 0.

Rows that are not finite or have a norm below 1e-6 never reach a sum; their positions are returned.

n, S and q are exact sums, so the mean and the trace are the same bits for every order of rows,
batches, shards, threads and processes. C and whatever else is summed up is a float64 sum in the
order of a grid: rows are cut into cells of `GRID_ROWS` by their position in the stream, each cell
is summed by itself, the cells of a span are added in order, and then the spans. Threads share
cells and processes share spans, so neither changes a bit either.

Letters: n rows, dim the width, S, q and C the sums above.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import reduce
from itertools import islice
from operator import add
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

from revision import parallel
from revision.progress import track
from revision.sums import (
    BLOCK_ROWS,
    MIN_NORM,
    MomentSums,
    divide_by_norms_,
    exact_sums,
    is_bad,
    to_float64,
    unit_sums,
)

GRID_ROWS = 4096
SPAN_CELLS = 8
DEVICE_BLOCK_ROWS = GRID_ROWS  # a GPU wants more rows at a time than a cache holds
CANCELLED = 1e-12  # where a trace is nothing but the rounding of its two terms
KEPT_BYTES = 8 << 20
CPU = torch.device("cpu")

Batches = Iterable[np.ndarray]  # (n, dim) or (n, k, dim), where n may differ between batches
Transform = Callable[[Float64[Tensor, "n dim"]], Float64[Tensor, "n dim"]]
Second = Literal["trace", "diagonal", "covariance"]  # the second moments that a method needs
Sums = tuple[Any, ...]  # tensors and `MomentSums`
Statistic = Callable[[Float64[Tensor, "n *stack dim"]], Sums]


@dataclass(frozen=True)
class Cells:
    """Rows that any thread or process can load: `load(start, stop)`. Also an iterable of cells."""

    num_rows: int
    load: Callable[[int, int], np.ndarray]
    description: str
    num_workers: int = 1
    size: int = GRID_ROWS

    def __len__(self) -> int:
        return -(-self.num_rows // self.size)

    def __iter__(self) -> Iterator[np.ndarray]:
        for cell in track(range(len(self)), self.description):
            yield self.load(*self.bounds(cell))

    def bounds(self, cell: int) -> tuple[int, int]:
        """The first row of a cell, and the one after its last."""
        return cell * self.size, min((cell + 1) * self.size, self.num_rows)


@dataclass(frozen=True)
class Moments:
    """Count, mean and mean squared norm of unit rows, and the positions of the rows left out.

    `second` holds the second moments that were asked for: variances (dim,), the population
    covariance (dim, dim), or nothing. It may come from a sample of `second_count` rows.
    """

    count: int
    mean: Float64[np.ndarray, " dim"]
    mean_square: float
    rejected: tuple[int, ...] = ()
    second: Float64[np.ndarray, "*square"] | None = None
    sample_count: int | None = None

    @classmethod
    def of_sums(cls, sums: MomentSums, rejected: tuple[int, ...] = ()) -> "Moments":
        """Moments without second ones.

        Raises:
            ValueError: sums over no rows.
        """
        if sums.count == 0:
            raise ValueError(
                f"no usable row: all {len(rejected)} are missing, not finite or of norm below "
                f"{MIN_NORM:g}"
            )
        return cls(sums.count, sums.mean, sums.mean_square, rejected)

    @property
    def trace(self) -> float:
        """Trace of the population covariance; 0 where it would be nothing but rounding."""
        trace = self.mean_square - float(self.mean @ self.mean)
        return trace if trace > CANCELLED else 0.0

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
    def second_count(self) -> int:
        """How many rows the second moments are of."""
        return self.count if self.sample_count is None else self.sample_count

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


def moments_of(batches: Batches, *, second: Second = "trace") -> Moments:
    """Moments of all rows of `batches`, with the second moments that `second` asks for.

    Raises:
        ValueError: no usable row, or batches of different widths.
    """

    def statistic(rows: Float64[Tensor, "n dim"]) -> Sums:
        return *_products(rows, second), unit_sums(rows)

    return _moments(accumulate(batches, statistic))


def moments_of_transformed(
    batches: Batches, transform: Transform, *, second: Second = "trace", device: torch.device = CPU
) -> Moments:
    """Moments of `transform(x)` over the good rows; `transform` may overwrite its argument.

    Rows are transformed on `device`, where the tensors that `transform` uses must be.
    """

    def statistic(rows: Float64[Tensor, "n dim"]) -> Sums:
        moved = transform(rows)
        return *_products(moved, second), exact_sums(moved)

    return _moments(accumulate(batches, statistic, device=device))


def _products(rows: Float64[Tensor, "n dim"], second: Second) -> tuple[Tensor, ...]:
    if second == "trace":
        return ()
    return ((rows * rows).sum(0) if second == "diagonal" else rows.T @ rows,)


def _moments(accumulated: tuple[Sums, int, tuple[int, ...]]) -> Moments:
    (*products, sums), _, rejected = accumulated
    moments = Moments.of_sums(sums, rejected)
    return replace(moments, second=_centred(products[0].numpy(), moments)) if products else moments


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

    A large buffer is freed first: glibc then keeps the smaller ones that follow, instead of handing
    each back to the system and clearing it anew (a tenth of the CPU time of a pass).
    """
    torch.empty(KEPT_BYTES, dtype=torch.uint8)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@dataclass(frozen=True)
class _Part:
    """Sums over some consecutive rows, how many rows these are, and which of them are bad."""

    sums: Sums = ()
    num_rows: int = 0
    rejected: tuple[int, ...] = ()

    def __add__(self, other: "_Part") -> "_Part":
        sums = self.sums or other.sums
        if self.sums and other.sums:
            sums = tuple(a + b for a, b in zip(self.sums, other.sums, strict=True))
        later = tuple(self.num_rows + row for row in other.rejected)
        return _Part(sums, self.num_rows + other.num_rows, self.rejected + later)


@one_thread()
def accumulate(
    batches: Batches, statistic: Statistic, *, device: torch.device = CPU
) -> tuple[Sums, int, tuple[int, ...]]:
    """Sum `statistic(unit rows)` over the good rows of `batches`, in the fixed order of the grid.

    `statistic` gets up to `BLOCK_ROWS` unit rows in float64, may overwrite them, and returns sums
    over them. A batch may hold tuples of rows (n, k, dim); a tuple is good if all its rows are.
    `Cells` are shared among their threads and all processes; `statistic` must allow that.

    Returns:
        The sums, the number of good rows (or tuples), and the positions of the others.
    """
    if isinstance(batches, Cells):
        total = _shared(batches, statistic, device)
    else:
        parts = (_sum_cell(_from(cell), 0, len(cell), statistic, device) for cell in grid(batches))
        total = _total(_spans(parts))
    count = total.num_rows - len(total.rejected)
    if count == 0:
        raise ValueError(
            f"no usable row: all {total.num_rows} are missing, not finite or of norm below "
            f"{MIN_NORM:g}"
        )
    return total.sums, count, total.rejected


def _shared(cells: Cells, statistic: Statistic, device: torch.device) -> _Part:
    """The total over cells of which every process sums its own spans."""
    num_spans = -(-len(cells) // SPAN_CELLS)
    own = [
        cell
        for span in range(parallel.rank(), num_spans, parallel.world_size())
        for cell in range(span * SPAN_CELLS, min((span + 1) * SPAN_CELLS, len(cells)))
    ]
    shown = track(own, cells.description) if parallel.rank() == 0 else own
    parts = parallel.in_order(
        lambda cell: _sum_cell(cells.load, *cells.bounds(cell), statistic, device),
        shown,
        cells.num_workers,
    )
    return parallel.from_first(_total(parallel.collected(_spans(parts), num_spans)))


def _spans(parts: Iterable[_Part]) -> Iterator[_Part]:
    parts = iter(parts)
    for first in parts:
        yield reduce(add, islice(parts, SPAN_CELLS - 1), first)


def _total(spans: Iterable[_Part]) -> _Part:
    return reduce(add, spans, _Part())


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


def block_rows(device: torch.device) -> int:
    """How many rows to compute with at a time."""
    return BLOCK_ROWS if device == CPU else DEVICE_BLOCK_ROWS


def normalize_(rows: Float64[Tensor, "n *stack dim"]) -> Bool[Tensor, "n *stack"]:
    """Divide each row by its norm in place; true where a row has no usable norm."""
    return is_bad(divide_by_norms_(rows))


def bad_rows(rows: Float[np.ndarray, "n dim"]) -> Bool[np.ndarray, " n"]:
    """True where a row is not finite or (nearly) zero, so that it has no direction."""
    norms = np.empty(len(rows))
    for start in range(0, len(rows), BLOCK_ROWS):
        block = to_float64(rows[start : start + BLOCK_ROWS])
        norms[start : start + BLOCK_ROWS] = torch.linalg.vector_norm(block, dim=-1)
    return is_bad(torch.tensor(norms)).numpy()


def unit_rows(rows: Float[np.ndarray, "n dim"]) -> Float64[np.ndarray, "n dim"]:
    """A few rows in float64 with norm 1. They must have a direction."""
    unit = to_float64(rows)
    normalize_(unit)
    return unit.numpy()


def _sum_cell(
    load: Callable[[int, int], np.ndarray],
    first: int,
    last: int,
    statistic: Statistic,
    device: torch.device,
) -> _Part:
    part, size = _Part(), block_rows(device)
    for start in range(first, last, size):
        rows = to_float64(load(start, min(start + size, last)), device)
        bad = normalize_(rows).reshape(len(rows), -1).any(1)
        sums = statistic(rows[~bad] if bad.any() else rows)
        part += _Part(tuple(map(_on_cpu, sums)), len(rows), tuple(bad.nonzero()[:, 0].tolist()))
    return part


def _from(cell: np.ndarray) -> Callable[[int, int], np.ndarray]:
    return lambda start, stop: cell[start:stop]


def _on_cpu(total: Any) -> Any:
    return total.cpu() if isinstance(total, Tensor) else total
