"""Samples of a feature set (images, texts or aligned texts): rows by number, as unit vectors.

    stored row -> alignment, where there is one -> unit norm in float64, float32

A batch is a few numpy indexings where the texts come from the token cache; without it the records
of a block are parsed when the first of them is asked for.

Letters: n pictures, R rows of one picture (1 for pooled features), D feature width.
"""

import json
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from revision.alignment.base import AlignmentMap
from revision.alignment.noise import row_keys
from revision.data.rows import StoredRows, unit_rows
from revision.data.sources import Mask, Numbers, SampleSource
from revision.data.turn_encoder import TurnEncoder
from revision.records import Record
from revision.shards import ShardReader


@runtime_checkable
class RowMap(Protocol):
    """What text rows go through when they are read: an alignment map, or noise alone."""

    @property
    def is_random(self) -> bool: ...

    @property
    def normalize(self) -> bool: ...

    def __call__(
        self, rows: Float[Tensor, "n dim"], keys: Int64[Tensor, " n"] | None
    ) -> Tensor: ...


class ShardSource(SampleSource):
    """Samples of a feature set, mapped when they are read, without a copy.

    `alignment` maps text rows, whatever the set is; `image_map` those of a set of images, and is
    for alignments that move images too. Rows are divided by their norm whatever is stored: float16
    rows of both modalities are then treated alike (the public code re-normalises only text). Rows
    keep their norm where the alignment that made them says so (`normalize=False`), and where a
    picture has several of them (patches).

    Raises ValueError for an alignment of patches: it was fitted on pooled rows.
    """

    def __init__(
        self,
        directory: str | Path,
        turns: TurnEncoder,
        *,
        alignment: RowMap | None = None,
        image_map: AlignmentMap | None = None,
        cache_blocks: int = 16,
        **options: Any,
    ) -> None:
        self.rows = StoredRows(directory)
        self.reader: ShardReader = self.rows.reader
        header = self.reader.header
        self.dim = header.dim
        self.alignment = alignment
        self.image_map = image_map if header.kind == "image" else None
        made_by = (header.alignment or {}).get("options", {})
        self._keeps_norms = not made_by.get("normalize", True)
        self.block_sizes = [block.records for block in self.reader.blocks]
        self.block_shards = self.rows.block_shards
        self._starts = np.concatenate([[0], np.cumsum(self.block_sizes, dtype=np.int64)])
        self._cache: OrderedDict[int, tuple[list[bytes], np.ndarray]] = OrderedDict()
        self._cache_blocks = cache_blocks
        patches = header.encoder.get("rows_per_image", 1)
        if patches > 1 and (self.alignment or self.image_map):
            raise ValueError(
                f"{directory} holds {patches} rows per picture (patches), and an alignment moves "
                "the pooled row of a whole picture; leave data.alignment out, or embed with "
                "encoder.pooling=pooled"
            )
        super().__init__(turns, rows_per_image=patches, **options)

    def record(self, number: int) -> Record:
        block, index = self._locate(number)
        return Record.from_json(json.loads(self._block(block)[0][index]))

    def records(self) -> Iterator[Record]:
        for block in range(len(self.block_sizes)):
            yield from self.reader.records(block)

    def num_images(self, numbers: Numbers) -> Numbers:
        if self.tokens is not None:
            return self.tokens.num_images(numbers)
        return np.diff(self._picture_bounds(numbers))[:, 0]

    def pictures(self, owners: Numbers, places: Numbers, epoch: int = 0) -> dict[str, Tensor]:
        stored = self._stored(owners, places)
        if self.rows_per_image > 1:
            shape = len(owners), self.rows_per_image, self.dim
            return {"visual": self._finite(torch.from_numpy(stored).float().view(shape), owners)}
        # first of all a check, also of rows that an alignment or their own norm will replace
        rows = unit_rows(stored, lambda row: self._address(int(owners[row]), int(places[row])))
        if self.alignment is not None:
            rows = self._aligned(self.alignment, torch.from_numpy(stored), owners, epoch)
        elif self.image_map is not None:
            rows = self.image_map.forward_images(rows)
        elif self._keeps_norms:
            rows = torch.from_numpy(stored).float()
        return {"visual": rows[:, None]}

    def same_picture(self, numbers: Numbers, others: Numbers) -> Mask:
        first = np.zeros_like(numbers)
        equal = self._stored(numbers, first) == self._stored(others, first)
        return equal.reshape(len(numbers), self.rows_per_image * self.dim).all(1)

    def data_identity(self) -> dict[str, Any]:
        shards = [[info.name, info.sha256] for info in self.reader.header.shards]
        return {"shards": shards, "rows_per_image": self.rows_per_image}

    def _stored(self, owners: Numbers, places: Numbers) -> np.ndarray:
        """The rows of these pictures as they are stored."""
        pictures = self._picture_starts(owners) + places
        return self.rows.gather(pictures * self.rows_per_image, self.rows_per_image)

    def _finite(self, patches: Tensor, owners: Numbers) -> Tensor:
        """Patches as they are. Raises ValueError for one that is not finite."""
        bad = (~patches.isfinite().all(dim=2)).nonzero()
        if len(bad):
            picture, patch = bad[0].tolist()
            raise ValueError(
                f"{self.reader.directory}: patch {patch} of a picture of record "
                f"{self.record(int(owners[picture])).id!r} is not finite; write the feature set "
                "again"
            )
        return patches

    def _address(self, owner: int, place: int) -> str:
        row = int(self._picture_starts(np.array([owner]))[0]) + place  # one row per picture
        return f"{self.rows.shard_path(row)}: row {place} of record {self.record(owner).id!r}"

    def _aligned(self, alignment: RowMap, stored: Tensor, owners: Numbers, epoch: int) -> Tensor:
        """The rows that `apply_alignment` would have stored, as this source would read those."""
        keys = row_keys(self._ids(owners), epoch) if alignment.is_random else None
        rows = alignment(stored, keys)
        if not alignment.normalize:
            return rows
        return unit_rows(rows.numpy(), lambda row: f"aligned row of record number {owners[row]}")

    def _ids(self, numbers: Numbers) -> list[str]:
        if self.tokens is not None:
            return self.tokens.ids(numbers)
        return [self.record(number).id for number in numbers.tolist()]

    def _picture_starts(self, numbers: Numbers) -> Numbers:
        """How many pictures stand before each of these records."""
        if self.tokens is not None:
            return self.tokens.picture_starts(numbers)
        return self._picture_bounds(numbers)[:, 0]

    def _picture_bounds(self, numbers: Numbers) -> Int64[np.ndarray, "n 2"]:
        """The first picture of each of these records, and the one behind its last."""
        places = map(self._locate, numbers.tolist())
        bounds = [self._block(block)[1][index : index + 2] for block, index in places]
        return np.array(bounds, np.int64).reshape(-1, 2)

    def _locate(self, number: int) -> tuple[int, int]:
        """The block of a record and its place there."""
        block = int(np.searchsorted(self._starts, number, side="right")) - 1
        return block, number - int(self._starts[block])

    def _block(self, block: int) -> tuple[list[bytes], np.ndarray]:
        """The record lines of a block and the first picture of each; the newest blocks are kept."""
        if block not in self._cache:
            lines = self.reader.record_lines(block)
            counts, rest = np.divmod(self.reader.row_counts(block), self.rows_per_image)
            if rest.any():
                raise ValueError(
                    f"{self.reader.directory}: a record of block {block} has rows for no whole "
                    f"number of pictures of {self.rows_per_image} rows; embed the set again"
                )
            first = self.rows.starts[block] // self.rows_per_image
            self._cache[block] = (lines, np.concatenate([[0], counts.cumsum()]) + first)
            if len(self._cache) > self._cache_blocks:
                self._cache.popitem(last=False)
        self._cache.move_to_end(block)
        return self._cache[block]
