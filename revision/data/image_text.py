"""Pictures with captions for training whole towers: pixels beside token ids, row i of both a pair.

The pictures are decoded by `encoder.read_inputs` where the data is loaded. Texts are padded on the
right to the longest of the batch.

Letters: n pairs of a batch, T tokens of the longest text.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from revision.data.image_source import prepared
from revision.data.index import RecordIndex
from revision.data.pairs import PairedBatch
from revision.encoders.base import DualEncoder
from revision.records import Record


class ImageTextPairs:
    """The pairs of an index, by number. The first `keep_pictures` that are decoded are kept."""

    def __init__(
        self,
        index: RecordIndex,
        *,
        image_root: Path | None,
        encoder: DualEncoder,
        keep_pictures: int = 0,
    ) -> None:
        self.index, self.image_root, self.encoder = index, image_root, encoder
        self.keep_pictures = keep_pictures
        self._kept: dict[int, Tensor] = {}
        self.block_sizes = index.block_sizes
        self.block_shards = [0] * len(self.block_sizes)

    def batch(self, numbers: Sequence[int], epoch: int = 0) -> PairedBatch:
        records = [self.index[number] for number in numbers]
        tokens = self.encoder.text_inputs([record.text or "" for record in records])["input_ids"]
        pixels = [self._pixels(*each) for each in zip(numbers, records, strict=True)]
        return PairedBatch(torch.stack(pixels), tokens, window_targets=len(numbers))

    def _pixels(self, number: int, record: Record) -> Tensor:
        if number in self._kept:
            return self._kept[number]
        pixels = prepared(record, 0, self.encoder, self.image_root)
        if len(self._kept) < self.keep_pictures:
            self._kept[number] = pixels
        return pixels


def check_pair(record: Record) -> None:
    """Raise ValueError for a record that is not one picture with a caption."""
    if len(record.images) != 1 or not (record.text or "").strip():
        raise ValueError(
            f"{len(record.images)} pictures and {'a' if record.text else 'no'} caption; a pair "
            "has one of each"
        )
