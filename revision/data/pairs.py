"""Paired rows for `stage=contrastive`: row i of an image set beside row i of a text set.

Both sets must have been embedded from the same records, one row each; the ids are compared row by
row once, because a shift by one row would train an encoder on wrong pairs without any sign of it.

Letters: n pairs of a batch, D_v and D_t the widths of the two sets.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from revision.data.sources import unit_rows
from revision.shards import ShardReader


@dataclass
class PairedBatch:
    """`batch["image"]` (n, D_v) and `batch["text"]` (n, D_t); every pair is one target."""

    image: Tensor
    text: Tensor
    window_targets: int = 0

    def __getitem__(self, side: str) -> Tensor:
        return {"image": self.image, "text": self.text}[side]

    def __len__(self) -> int:
        return len(self.image)

    @property
    def num_targets(self) -> int:
        return len(self.image)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "PairedBatch":
        image, text = (side.to(device, non_blocking=non_blocking) for side in self._sides())
        return replace(self, image=image, text=text)

    def pin_memory(self) -> "PairedBatch":
        image, text = (side.pin_memory() for side in self._sides())
        return replace(self, image=image, text=text)

    def _sides(self) -> tuple[Tensor, Tensor]:
        return self.image, self.text


class PairedRows:
    """The pairs of two feature sets, by number."""

    def __init__(self, image_shards: Path, text_shards: Path) -> None:
        self.image, self.text = _RowReader(image_shards), _RowReader(text_shards)
        _check_pairs(self.image.reader, self.text.reader)
        self.block_sizes = [block.rows for block in self.image.reader.blocks]

    def batch(self, numbers: Sequence[int], epoch: int = 0) -> PairedBatch:
        """The pairs of these rows, the same in every epoch."""
        image, text = self.image.rows(numbers), self.text.rows(numbers)
        return PairedBatch(image, text, window_targets=len(numbers))


class _RowReader:
    """Unit rows of a feature set by row number."""

    def __init__(self, directory: Path) -> None:
        self.reader = ShardReader(directory)
        self.starts = np.cumsum([0, *(block.rows for block in self.reader.blocks)])

    def rows(self, numbers: Sequence[int]) -> Tensor:
        stored = np.empty((len(numbers), self.reader.dim), np.float64)
        blocks = np.searchsorted(self.starts, np.array(numbers, np.int64), side="right") - 1
        for position, (number, block) in enumerate(zip(numbers, blocks, strict=True)):
            stored[position] = self.reader.features(int(block))[number - self.starts[block]]
        return unit_rows(stored, lambda position: self._address(numbers[position]))

    def _address(self, number: int) -> str:
        block = int(np.searchsorted(self.starts, number, side="right")) - 1
        row = number - int(self.starts[block])
        owner = np.searchsorted(self.reader.row_counts(block).cumsum(), row, side="right")
        shard = self.reader.directory / self.reader.blocks[block].shard
        return (
            f"{shard}: row {number} of the set, of record {self.reader.records(block)[owner].id!r}"
        )


def _check_pairs(image: ShardReader, text: ShardReader) -> None:
    """Compare the two sets record by record.

    Raises ValueError naming both counts, or the first row at which the records differ.
    """
    if image.num_rows != text.num_rows:
        raise ValueError(
            f"{image.directory} has {image.num_rows} rows and {text.directory} has "
            f"{text.num_rows}; embed both sides of the same records"
        )
    pairs = zip_longest(image.row_ids(), text.row_ids())
    for row, (image_id, text_id) in enumerate(pairs):
        if image_id != text_id:
            raise ValueError(
                f"row {row} is record {image_id!r} in {image.directory} and {text_id!r} in "
                f"{text.directory}; embed both sides of the same records"
            )
