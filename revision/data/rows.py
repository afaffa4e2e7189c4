"""Rows of a feature set by number, many at a time, read from the shards and never mapped.

Pages of a mapped file stay in the resident memory of the process, and a mapped file that becomes
shorter kills it; a read that finds too little says so. Mapping takes a third less CPU time per
batch. What is kept is one open file for each of the blocks that were opened last.

Letters: n runs of `length` consecutive rows that are asked for, D feature width.
"""

import os
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import IO

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from revision.shards import ShardReader
from revision.shards.layout import MIN_NORM, truncated
from revision.sums import to_float64

_OPEN_BLOCKS = 64
_PIECE = 64  # rows whose float64 copy stays in the processor's cache


class StoredRows:
    """The rows of the feature set in `directory`. May be pickled to workers."""

    def __init__(self, directory: str | Path) -> None:
        self.reader = ShardReader(directory)
        self.starts = np.cumsum([0, *(block.rows for block in self.reader.blocks)], dtype=np.int64)
        self._open: OrderedDict[int, tuple[IO[bytes], int]] = OrderedDict()

    def __getstate__(self) -> dict[str, object]:
        return vars(self) | {"_open": OrderedDict()}

    @property
    def block_shards(self) -> list[int]:
        """Which shard each block lies in, counted from 0."""
        shards = {info.name: index for index, info in enumerate(self.reader.header.shards)}
        return [shards[block.shard] for block in self.reader.blocks]

    def gather(
        self, firsts: Int64[np.ndarray, " n"], length: int = 1
    ) -> Float[np.ndarray, "rows dim"]:
        """Rows `first` to `first + length` for each of `firsts`, as they are stored.

        Runs lie inside one block. Raises ValueError for a file that has become shorter.
        """
        rows = np.empty((len(firsts) * length, self.reader.dim), self.reader.header.dtype)
        size = self.reader.dim * rows.itemsize
        blocks = np.searchsorted(self.starts, firsts, side="right") - 1
        offsets = ((firsts - self.starts[blocks]) * size).tolist()
        target = rows.reshape(-1).view(np.uint8).data
        for run, (block, offset) in enumerate(zip(blocks.tolist(), offsets, strict=True)):
            file, start = self._open.get(block) or self._opened(block)
            place = target[run * length * size : (run + 1) * length * size]
            if os.preadv(file.fileno(), [place], start + offset) != len(place):
                path, found = self.shard_path(int(firsts[run])), f"its end is in block {block}"
                raise ValueError(truncated(path, found))
        return rows

    def shard_path(self, number: int) -> Path:
        """The shard file that holds row `number`."""
        block = int(np.searchsorted(self.starts, number, side="right")) - 1
        return self.reader.directory / self.reader.blocks[block].shard

    def _opened(self, block: int) -> tuple[IO[bytes], int]:
        """The file of a block and where its rows begin in it; the oldest block is let go."""
        mapped = self.reader.features(block)
        assert isinstance(mapped, np.memmap) and mapped.filename is not None, "it has rows"
        if len(self._open) >= _OPEN_BLOCKS:
            self._open.popitem(last=False)[1][0].close()
        file = open(mapped.filename, "rb", buffering=0)  # noqa: SIM115 (closed when let go)
        self._open[block] = file, mapped.offset
        return self._open[block]


def unit_rows(
    rows: Float[np.ndarray, "n dim"], address: Callable[[int], str]
) -> Float[Tensor, "n dim"]:
    """Rows of norm 1 in float32, divided in float64; `address` says where a row is stored.

    A row's result depends on it alone, whatever else is asked for.

    Raises ValueError for a row that is zero or not finite: every weight would become nan.
    """
    unit = torch.empty(rows.shape, dtype=torch.float32)
    for start in range(0, len(rows), _PIECE):
        wide = to_float64(rows[start : start + _PIECE])
        norms = torch.linalg.vector_norm(wide, dim=1, keepdim=True)
        bad = ~((norms >= MIN_NORM) & norms.isfinite())[:, 0]
        if bad.any():
            raise ValueError(
                f"{address(start + int(bad.nonzero()[0]))} has no direction (it is zero or not "
                "finite); write the feature set again"
            )
        unit[start : start + _PIECE] = wide.div_(norms)
    return unit
