"""Paired rows for `stage=contrastive`: row i of an image set beside row i of a text set.

Both sets must have been embedded from the same records, one row each; the ids are compared row by
row once, because a shift by one row would train an encoder on wrong pairs without any sign of it.

Letters: n pairs of a batch, D_v and D_t the widths of the two sets.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice, zip_longest
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from revision.data.rows import StoredRows, unit_rows
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
        self.image, self.text = StoredRows(image_shards), StoredRows(text_shards)
        _check_pairs(self.image.reader, self.text.reader)
        self.block_sizes = [block.rows for block in self.image.reader.blocks]
        self.block_shards = self.image.block_shards

    def batch(self, numbers: Sequence[int], epoch: int = 0) -> PairedBatch:
        """The pairs of these rows, the same in every epoch."""
        chosen = np.array(numbers, np.int64)
        image, text = (_unit(side, chosen) for side in (self.image, self.text))
        return PairedBatch(image, text, window_targets=len(chosen))


def _unit(rows: StoredRows, numbers: np.ndarray) -> Tensor:
    def address(position: int) -> str:
        number = int(numbers[position])
        owner = next(islice(rows.reader.row_ids(), number, None))
        return f"{rows.shard_path(number)}: row {number} of the set, of record {owner!r}"

    return unit_rows(rows.gather(numbers), address)


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
