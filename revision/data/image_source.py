"""Samples whose pictures are decoded on the fly; the frozen encoder of the model embeds them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from revision.data.index import RecordIndex
from revision.data.sources import Mask, Numbers, SampleSource
from revision.data.turn_encoder import TurnEncoder
from revision.encoders.base import DualEncoder
from revision.records import Record


def prepared(record: Record, place: int, encoder: DualEncoder, image_root: Path | None) -> Tensor:
    """Picture `place` of a record as `encoder` takes it. Raises ValueError naming the record."""
    try:
        return encoder.read_inputs(record.images[place], image_root=image_root)
    except ValueError as error:
        raise ValueError(f"record {record.id!r}: {error}; repair or remove it") from error


class ImageSource(SampleSource):
    """Samples with pixels, prepared by `encoder.read_inputs` in the loading process."""

    def __init__(
        self,
        index: RecordIndex,
        turns: TurnEncoder,
        *,
        image_root: Path | None,
        encoder: DualEncoder,
        **options: Any,
    ) -> None:
        self.index, self.image_root, self.encoder = index, image_root, encoder
        self.dim = encoder.dim
        self.block_sizes = index.block_sizes
        self.block_shards = [0] * len(self.block_sizes)
        super().__init__(turns, rows_per_image=encoder.rows_per_image, **options)

    def record(self, number: int) -> Record:
        return self.index[number]

    def records(self) -> Iterator[Record]:
        return iter(self.index)

    def num_images(self, numbers: Numbers) -> Numbers:
        if self.tokens is not None:
            return self.tokens.num_images(numbers)
        return np.array([len(self.index[n].images) for n in numbers.tolist()], np.int64)

    def pictures(self, owners: Numbers, places: Numbers, epoch: int = 0) -> dict[str, Tensor]:
        asked = zip(owners.tolist(), places.tolist(), strict=True)
        return {"pixels": torch.stack([self._pixels(number, place) for number, place in asked])}

    def same_picture(self, numbers: Numbers, others: Numbers) -> Mask:
        pairs = zip(numbers.tolist(), others.tolist(), strict=True)
        return np.array([self._pixels(a, 0).equal(self._pixels(b, 0)) for a, b in pairs], bool)

    def data_identity(self) -> dict[str, Any]:
        return {"index": self.index.directory.name}

    def _pixels(self, number: int, place: int) -> Tensor:
        return prepared(self.index[number], place, self.encoder, self.image_root)
