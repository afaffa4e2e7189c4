"""What the arithmetic costs a mean: rounding of the accumulator, of the mean, and of the storage.

    fixed_point         integer sums of numbers rounded to 2^-44: what every fit here uses
    float64             one float64 sum, row after row
    float32_chunked     float32 sums over chunks of 4096 rows, added up in float32
    float32_sequential  one float32 sum, row after row

    error = |computed mean - exact mean|,   cosine loss = 1 - mean cos(row, row as stored)

Source: arXiv:2602.07026v3, App. E.2, which compares float32 with float64 sums and leaves the order
of the summation open; sequential and chunked float32 differ by a factor of 40 at 500 000 rows.
The exact mean splits every number into a multiple of 2^-44, of which 256 add up without rounding,
and a rest below 2^-45, whose sum in float64 is good to 2^-80; block sums are added by `math.fsum`.

Letters: n rows, dim the width.
"""

from collections.abc import Callable, Iterator
from math import fsum

import numpy as np
import torch
from jaxtyping import Float, Float64

from revision.alignment.moments import moments_of, unit_rows
from revision.alignment.passes import Batches, grid

BLOCK_ROWS = 256
COARSE = 1.5 * 2.0**8  # a number below 128 plus this, less this: rounded to a multiple of 2^-44

Mean = Float64[np.ndarray, " dim"]


def mean_of(batches: Batches, accumulator: str) -> Mean:
    """Mean of the unit rows of `batches`, which must all have a direction.

    Raises:
        ValueError: there is no row, or no such accumulator.
    """
    if accumulator == "fixed_point":
        return moments_of(batches).mean
    sums = {
        "float64": lambda chunks: _running_sum(chunks, np.float64),
        "float32_sequential": lambda chunks: _running_sum(chunks, np.float32),
        "float32_chunked": _chunked_sum,
    }
    if accumulator not in sums:
        known = ", ".join(["fixed_point", *sums])
        raise ValueError(f"accumulator is one of {known}, not {accumulator!r}")
    return _mean(batches, sums[accumulator])


def exact_mean(batches: Batches) -> Mean:
    """The mean up to the last bit of float64."""
    return _mean(batches, _exact_sum)


def stored(rows: Float[np.ndarray, "n dim"], storage: str) -> Float[np.ndarray, "n dim"]:
    """Unit rows as a file of this type would give them back; `as_stored` leaves them alone."""
    if storage == "as_stored":
        return rows
    unit = torch.tensor(unit_rows(rows))
    kept = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
    if storage not in kept:
        raise ValueError(f"storage is as_stored or one of {', '.join(kept)}, not {storage!r}")
    return unit.to(kept[storage]).float().numpy()


def cosine_loss(batches: Batches, storage: str) -> float:
    """1 - mean cos of rows with what a file of this type keeps of them."""
    total, count = 0.0, 0
    for rows in batches:
        kept, unit = unit_rows(stored(rows, storage)), unit_rows(rows)
        total += float(np.square(kept - unit).sum()) / 2  # 1 - cos without cancellation
        count += len(rows)
    return total / count


def _mean(batches: Batches, add_up: Callable[[Iterator[np.ndarray]], np.ndarray]) -> Mean:
    count = 0

    def chunks() -> Iterator[np.ndarray]:
        nonlocal count
        for rows in grid(batches):
            count += len(rows)
            yield unit_rows(rows)

    total = add_up(chunks())
    return total.astype(np.float64) / count


def _running_sum(chunks: Iterator[np.ndarray], dtype: type[np.floating]) -> np.ndarray:
    """One sum row after row: over the first axis of a row-major array numpy adds in this order."""
    total: np.ndarray | None = None
    for rows in chunks:
        rows = rows.astype(dtype)
        stack = rows if total is None else np.concatenate([total[None], rows])
        total = np.add.reduce(stack, axis=0)
    return _some(total)


def _chunked_sum(chunks: Iterator[np.ndarray]) -> np.ndarray:
    total: np.ndarray | None = None
    for rows in chunks:
        part = np.add.reduce(rows.astype(np.float32), axis=0)
        total = part if total is None else total + part
    return _some(total)


def _exact_sum(chunks: Iterator[np.ndarray]) -> Mean:
    parts: list[np.ndarray] = []
    for rows in chunks:
        for start in range(0, len(rows), BLOCK_ROWS):
            block = rows[start : start + BLOCK_ROWS]
            coarse = (block + COARSE) - COARSE
            parts += [coarse.sum(0), (block - coarse).sum(0)]
    if not parts:
        _some(None)
    return np.array([fsum(column) for column in np.stack(parts, axis=1)])


def _some(total: np.ndarray | None) -> np.ndarray:
    if total is None:
        raise ValueError("a mean of 0 rows; give at least one")
    return total
