"""Sources: where samples come from. A source knows its blocks and makes a batch of record numbers.

    ShardSource    feature shards (images, texts or aligned texts), rows read as unit vectors
    ImageSource    pictures decoded on the fly; the frozen encoder of the model embeds them

A record with conversations gives a conversation; a record with a text alone gives a caption
sample. `visual` replaces what the model sees: "zero" is the blind control, "shuffled" the one
that sees another record's pictures.

Letters: R rows of one picture (1), D feature width.
"""

import json
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from revision.alignment.base import AlignmentMap
from revision.alignment.noise import row_keys
from revision.data.index import RecordIndex
from revision.data.samples import Batch, Sample, collate, dummy_sample
from revision.data.templates import check_turns
from revision.data.turn_encoder import TurnEncoder
from revision.encoders.base import DualEncoder
from revision.records import IMAGE_MARK, Record, Turn, load_image
from revision.shards import ShardReader
from revision.shards.layout import MIN_NORM

VISUALS = ("real", "zero", "shuffled")
CAPTION_PROMPT = "Describe the image."
_INDEX_BLOCK = 4096


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


class SampleSource(ABC):
    """Base of the sources. `block_sizes` counts records; `batch` takes record numbers.

    What is random in a sample depends on its record and on `epoch` alone.
    """

    block_sizes: list[int]

    def __init__(
        self,
        turns: TurnEncoder,
        *,
        visual: str = "real",
        max_caption_words: int | None = None,
        caption_prompt: str = CAPTION_PROMPT,
    ) -> None:
        if visual not in VISUALS:
            raise ValueError(f"unknown visual={visual!r}; choose from {VISUALS}")
        self.turns, self.visual = turns, visual
        self.max_caption_words, self.caption_prompt = max_caption_words, caption_prompt

    def __len__(self) -> int:
        return sum(self.block_sizes)

    @abstractmethod
    def record(self, number: int) -> Record: ...

    @abstractmethod
    def num_images(self, number: int) -> int: ...

    @abstractmethod
    def images(self, number: int, epoch: int = 0) -> dict[str, Tensor]:
        """The pictures of a record as `visual` or `pixels` of a sample."""

    @abstractmethod
    def blank(self, num_images: int) -> dict[str, Tensor]:
        """As many pictures whose feature is zero."""

    def sample(self, number: int, epoch: int = 0) -> Sample:
        record, num_images = self.record(number), self.num_images(number)
        turns = record_turns(
            record,
            num_images,
            plain=self.turns.ends_at_newline,
            caption_prompt=self.caption_prompt,
            max_caption_words=self.max_caption_words,
        )
        try:
            input_ids, labels = self.turns(turns)
        except ValueError as error:
            raise ValueError(f"record {record.id!r}: {error}") from error
        return Sample(record.id, input_ids, labels, **self._seen(number, num_images, epoch))

    def batch(self, numbers: Sequence[int], epoch: int = 0) -> Batch:
        """The batch of these records; without any, one sample without targets."""
        samples = [self.sample(number, epoch) for number in numbers]
        return collate(samples or [dummy_sample(self.turns.filler_id)])

    def _seen(self, number: int, num_images: int, epoch: int) -> dict[str, Tensor]:
        if num_images == 0:
            return {}
        if self.visual == "zero":
            return self.blank(num_images)
        if self.visual == "real":
            return self.images(number, epoch)
        rows = torch.arange(num_images)
        other = self._others_images(number, epoch)
        return {name: images[rows % len(images)] for name, images in other.items()}

    def _others_images(self, number: int, epoch: int) -> dict[str, Tensor]:
        """The pictures of a record half the data away, the same one in every run; of the next one
        where that has none, or the very same picture (several questions about one)."""
        own, total = self.images(number, epoch), len(self)
        for step in range(total):
            other = (number + total // 2 + step) % total
            if self.num_images(other):
                images = self.images(other, epoch)
                if all(not torch.equal(images[name][0], own[name][0]) for name in own):
                    return images
        raise ValueError("visual='shuffled' needs records with at least two different pictures")


class ShardSource(SampleSource):
    """Samples of a feature set, mapped when they are read, without a copy.

    `alignment` maps text rows, whatever the set is; `image_map` those of a set of images, and is
    for alignments that move images too. Rows are divided by their norm whatever is stored: float16
    rows of both modalities are then treated alike (the public code re-normalises only text). Rows
    keep their norm only where the alignment that made them says so (`normalize=False`).
    """

    def __init__(
        self,
        directory: Path,
        turns: TurnEncoder,
        *,
        alignment: RowMap | None = None,
        image_map: AlignmentMap | None = None,
        cache_blocks: int = 16,
        **options: Any,
    ) -> None:
        super().__init__(turns, **options)
        self.reader = ShardReader(directory)
        self.dim = self.reader.dim
        self.alignment = alignment
        self.image_map = image_map if self.reader.header.kind == "image" else None
        made_by = (self.reader.header.alignment or {}).get("options", {})
        self._keeps_norms = not made_by.get("normalize", True)
        self.block_sizes = [block.records for block in self.reader.blocks]
        self._starts = np.concatenate([[0], np.cumsum(self.block_sizes, dtype=np.int64)])
        self._cache: OrderedDict[int, tuple[list[bytes], np.ndarray]] = OrderedDict()
        self._cache_blocks = cache_blocks

    def record(self, number: int) -> Record:
        block, index = self._locate(number)
        return Record.from_json(json.loads(self._block(block)[0][index]))

    def num_images(self, number: int) -> int:
        block, index = self._locate(number)
        rows = self._block(block)[1]
        return int(rows[index + 1] - rows[index])

    def images(self, number: int, epoch: int = 0) -> dict[str, Tensor]:
        block, index = self._locate(number)
        first, last = self._block(block)[1][index : index + 2]
        stored = np.array(self.reader.features(block)[first:last])
        shard = self.reader.directory / self.reader.blocks[block].shard
        rows = unit_rows(
            stored, lambda row: f"{shard}: row {row} of record {self.record(number).id!r}"
        )
        if self.alignment is not None:
            rows = self._aligned(self.alignment, torch.from_numpy(stored), number, epoch)
        elif self.image_map is not None:
            rows = self.image_map.forward_images(rows)
        elif self._keeps_norms:
            rows = torch.from_numpy(stored).float()
        return {"visual": rows[:, None]}

    def blank(self, num_images: int) -> dict[str, Tensor]:
        return {"visual": torch.zeros(num_images, 1, self.dim)}

    def _aligned(self, alignment: RowMap, stored: Tensor, number: int, epoch: int) -> Tensor:
        """The rows that `apply_alignment` would have stored, as this source would read those."""
        keys = None
        if alignment.is_random:
            keys = row_keys([self.record(number).id] * len(stored), epoch)
        rows = alignment(stored, keys)
        if not alignment.normalize:
            return rows
        return unit_rows(rows.numpy(), lambda row: f"aligned row {row} of record number {number}")

    def _locate(self, number: int) -> tuple[int, int]:
        block = int(np.searchsorted(self._starts, number, side="right")) - 1
        return block, number - int(self._starts[block])

    def _block(self, block: int) -> tuple[list[bytes], np.ndarray]:
        """The record lines of a block and the first row of each; the newest blocks are kept."""
        if block not in self._cache:
            lines = self.reader.record_lines(block)
            counts = self.reader.row_counts(block)
            self._cache[block] = (lines, np.concatenate([[0], counts.cumsum()]))
            if len(self._cache) > self._cache_blocks:
                self._cache.popitem(last=False)
        self._cache.move_to_end(block)
        return self._cache[block]


class ImageSource(SampleSource):
    """Samples with pixels, prepared by `encoder.image_inputs` in the loading process."""

    def __init__(
        self,
        index: RecordIndex,
        turns: TurnEncoder,
        *,
        image_root: Path | None,
        encoder: DualEncoder,
        **options: Any,
    ) -> None:
        super().__init__(turns, **options)
        self.index, self.image_root, self.encoder = index, image_root, encoder
        self.dim = encoder.dim
        full, rest = divmod(len(index), _INDEX_BLOCK)
        self.block_sizes = [_INDEX_BLOCK] * full + ([rest] if rest else [])

    def record(self, number: int) -> Record:
        return self.index[number]

    def num_images(self, number: int) -> int:
        return len(self.index[number].images)

    def images(self, number: int, epoch: int = 0) -> dict[str, Tensor]:
        record = self.index[number]
        try:
            loaded = [load_image(image, image_root=self.image_root) for image in record.images]
        except ValueError as error:
            raise ValueError(f"record {record.id!r}: {error}; repair or remove it") from error
        return {"pixels": torch.stack([self.encoder.image_inputs(i) for i in loaded])}

    def blank(self, num_images: int) -> dict[str, Tensor]:
        return {"visual": torch.zeros(num_images, 1, self.dim)}


def record_turns(
    record: Record,
    num_images: int,
    *,
    plain: bool,
    caption_prompt: str = CAPTION_PROMPT,
    max_caption_words: int | None = None,
) -> tuple[Turn, ...]:
    """The conversation of a record; where there is none, a request for its caption.

    With `plain` always the caption: the text, else the first answer. `max_caption_words` cuts a
    caption to its first words. Raises ValueError for a record with neither text nor conversation.
    """
    if record.conversations and not plain:
        return record.conversations
    answers = [turn.text for turn in record.conversations if turn.role == "assistant"]
    caption = record.text or next(iter(answers), None)
    if not caption:
        raise ValueError(f"record {record.id!r} has neither a text nor a conversation to learn")
    if max_caption_words is not None:
        caption = " ".join(caption.split()[:max_caption_words])
    request = f"{IMAGE_MARK}\n" * num_images + caption_prompt
    return (Turn("user", request), Turn("assistant", caption.strip()))


def check_record(record: Record) -> None:
    """Raise ValueError for a record that no template could turn into a sample with a target."""
    turns = check_turns(record_turns(record, len(record.images), plain=False))
    if not any(turn.role == "assistant" and turn.text for turn in turns):
        raise ValueError("the conversation has no answer to learn")


def unit_rows(
    rows: Float[np.ndarray, "rows dim"], address: Callable[[int], str]
) -> Float[Tensor, "rows dim"]:
    """Rows of norm 1 in float32, divided in float64; `address` says where a row is stored.

    Raises ValueError for a row that is zero or not finite: every weight would become nan.
    """
    wide = torch.from_numpy(np.array(rows, dtype=np.float64))
    norms = wide.norm(dim=1, keepdim=True)
    bad = ~((norms >= MIN_NORM) & norms.isfinite())[:, 0]
    if bad.any():
        raise ValueError(
            f"{address(int(bad.nonzero()[0]))} has no direction (it is zero or not finite); write "
            "the feature set again"
        )
    return (wide / norms).float()
