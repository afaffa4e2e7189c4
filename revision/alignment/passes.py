"""One pass over rows in a fixed order, shared among threads and processes.

Rows are cut into cells of `GRID_ROWS` by their position in the stream, whatever batches or shards
they arrive in. Each cell is summed by itself in blocks that fit in the cache, the cells of a span
are added in order, and then the spans. Threads share cells and processes share spans, so that the
number of neither changes a bit of a float64 sum.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import reduce
from itertools import islice
from operator import add
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from revision import parallel
from revision.progress import track
from revision.sums import BLOCK_ROWS, MIN_NORM, divide_by_norms_, is_bad, to_float64

GRID_ROWS = 4096
SPAN_CELLS = 8
DEVICE_BLOCK_ROWS = GRID_ROWS  # a GPU wants more rows at a time than a cache holds
KEPT_BYTES = 8 << 20
CPU = torch.device("cpu")

Batches = Iterable[np.ndarray]  # (n, dim) or (n, k, dim), where n may differ between batches
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
