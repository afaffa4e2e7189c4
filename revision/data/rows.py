"""Rows of a feature set by number, many at a time: mapped blocks, one indexing per block.

Nothing of a row stays in private memory; of the mapped files, the newest blocks stay mapped.

Letters: n rows that are asked for, D feature width.
"""

from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from revision.shards import ShardReader
from revision.shards.layout import MIN_NORM
from revision.sums import to_float64

_MAPPED_BLOCKS = 16


class StoredRows:
    """The rows of the feature set in `directory`. May be pickled to workers."""

    def __init__(self, directory: Path, mapped_blocks: int = _MAPPED_BLOCKS) -> None:
        self.reader = ShardReader(directory)
        self.mapped_blocks = mapped_blocks
        self.starts = np.cumsum([0, *(block.rows for block in self.reader.blocks)], dtype=np.int64)
        self._mapped: OrderedDict[int, np.ndarray] = OrderedDict()

    def __getstate__(self) -> dict[str, object]:
        return vars(self) | {"_mapped": OrderedDict()}

    def __len__(self) -> int:
        return int(self.starts[-1])

    @property
    def block_shards(self) -> list[int]:
        """Which shard each block lies in, counted from 0."""
        shards = {info.name: index for index, info in enumerate(self.reader.header.shards)}
        return [shards[block.shard] for block in self.reader.blocks]

    def gather(self, numbers: Int64[np.ndarray, " n"]) -> Float[np.ndarray, "n dim"]:
        """These rows as they are stored, in a copy."""
        blocks = np.searchsorted(self.starts, numbers, side="right") - 1
        wanted = np.unique(blocks)
        if len(wanted) == 1:
            return self._block(int(wanted[0]))[numbers - self.starts[wanted[0]]]
        rows = np.empty((len(numbers), self.reader.dim), self.reader.header.dtype)
        for block in wanted:
            here = np.flatnonzero(blocks == block)
            rows[here] = self._block(int(block))[numbers[here] - self.starts[block]]
        return rows

    def shard_path(self, number: int) -> Path:
        """The shard file that holds row `number`."""
        block = int(np.searchsorted(self.starts, number, side="right")) - 1
        return self.reader.directory / self.reader.blocks[block].shard

    def _block(self, block: int) -> np.ndarray:
        if block not in self._mapped:
            self._mapped[block] = np.asarray(self.reader.features(block))
            if len(self._mapped) > self.mapped_blocks:
                self._mapped.popitem(last=False)
        self._mapped.move_to_end(block)
        return self._mapped[block]


def unit_rows(
    rows: Float[np.ndarray, "n dim"], address: Callable[[int], str]
) -> Float[Tensor, "n dim"]:
    """Rows of norm 1 in float32, divided in float64; `address` says where a row is stored.

    A row's result depends on it alone, whatever else is asked for.

    Raises ValueError for a row that is zero or not finite: every weight would become nan.
    """
    wide = to_float64(rows)
    norms = torch.linalg.vector_norm(wide, dim=1, keepdim=True)
    bad = ~((norms >= MIN_NORM) & norms.isfinite())[:, 0]
    if bad.any():
        raise ValueError(
            f"{address(int(bad.nonzero()[0]))} has no direction (it is zero or not finite); write "
            "the feature set again"
        )
    return wide.div_(norms).float()
