"""Sources: where samples come from. A source knows its blocks and makes a batch of record numbers.

    ShardSource    feature shards, see `revision.data.shard_source`
    ImageSource    pictures decoded on the fly, see `revision.data.image_source`

A record with conversations gives a conversation; a record with a text alone gives a caption
sample. Texts are tokenised online, or come from the token cache; both give the same batches.
`visual` replaces what the model sees: "zero" is the blind control, "shuffled" the one that sees
another record's pictures.

Letters: n records or pictures.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int32, Int64
from torch import Tensor

from revision.captions import Controls
from revision.data.record_turns import CAPTION_PROMPT, WHOLE, record_turns
from revision.data.samples import IMAGE_SLOT, Batch, Sample, collate, dummy_sample, padded
from revision.data.tokens import build_tokens
from revision.data.turn_encoder import Encoded, TurnEncoder
from revision.records import Record, Turn

VISUALS = ("real", "zero", "shuffled")
Numbers = Int64[np.ndarray, " n"]
Mask = Bool[np.ndarray, " n"]


class SampleSource(ABC):
    """Base of the sources. `block_sizes` counts records and `block_shards` tells in which shard a
    block lies; `batch` takes record numbers.

    What is random in a sample depends on its record and on `epoch` alone. With a `token_root` the
    texts come from the token cache of this source there, which is built now unless it exists.
    `turns.tokens_per_image` counts the positions of one row. `captions` cuts captions; its filters
    are left to `revision.data.selected`: a source has all its records.
    """

    block_sizes: list[int]
    block_shards: list[int]
    dim: int

    def __init__(
        self,
        turns: TurnEncoder,
        *,
        visual: str = "real",
        captions: Controls = WHOLE,
        caption_prompt: str = CAPTION_PROMPT,
        token_root: Path | None = None,
        rows_per_image: int = 1,
    ) -> None:
        if visual not in VISUALS:
            raise ValueError(f"unknown visual={visual!r}; choose from {VISUALS}")
        self.visual, self.rows_per_image = visual, rows_per_image
        self.turns = replace(turns, tokens_per_image=turns.tokens_per_image * rows_per_image)
        self.captions, self.caption_prompt = captions, caption_prompt
        self.tokens = None
        if token_root is not None:
            self.tokens = build_tokens(self, token_root)

    def __len__(self) -> int:
        return sum(self.block_sizes)

    @abstractmethod
    def record(self, number: int) -> Record: ...

    @abstractmethod
    def records(self) -> Iterator[Record]:
        """All records in their order, each block of them read once."""

    @abstractmethod
    def num_images(self, numbers: Numbers) -> Numbers:
        """How many pictures each of these records has."""

    @abstractmethod
    def pictures(self, owners: Numbers, places: Numbers, epoch: int = 0) -> dict[str, Tensor]:
        """Picture `places[i]` of record `owners[i]` for all i, as `visual` or `pixels`."""

    @abstractmethod
    def same_picture(self, numbers: Numbers, others: Numbers) -> Mask:
        """Whether the first pictures of two records are the very same."""

    @abstractmethod
    def data_identity(self) -> dict[str, Any]:
        """What tells these records from others."""

    def identity(self) -> dict[str, Any]:
        """What decides the texts that this source gives: the fingerprint of its token cache."""
        return {
            **self.turns.identity(),
            **self.data_identity(),
            "max_caption_words": self.captions.max_caption_words,
            "max_caption_sentences": self.captions.max_caption_sentences,
            "caption_prompt": self.caption_prompt,
        }

    def encode(self, numbers: Sequence[int]) -> list[tuple[str, Encoded | ValueError]]:
        """The id of each record, and its tokens or why it has none."""
        records = [self.record(number) for number in numbers]
        counts = self.num_images(np.array(numbers, np.int64)).tolist()
        made = [self._turns(record, count) for record, count in zip(records, counts, strict=True)]
        encoded = iter(self.turns.encode_all(t for t in made if not isinstance(t, ValueError)))
        results = [turns if isinstance(turns, ValueError) else next(encoded) for turns in made]
        return [
            (record.id, _with_slots(result, count))
            for record, result, count in zip(records, results, counts, strict=True)
        ]

    def _turns(self, record: Record, num_images: int) -> tuple[Turn, ...] | ValueError:
        try:
            return record_turns(
                record,
                num_images,
                plain=self.turns.ends_at_newline,
                caption_prompt=self.caption_prompt,
                captions=self.captions,
            )
        except ValueError as error:
            return error

    def lengths(self) -> Int32[np.ndarray, " records"]:
        """LLM positions of each record with its slots filled.

        Raises ValueError where texts are tokenised online.
        """
        if self.tokens is None:
            raise ValueError(
                "the lengths of the records are known only when all of them have been tokenised; "
                "use data.tokens=cached"
            )
        return self.tokens.lengths

    def sample(self, number: int, epoch: int = 0) -> Sample:
        """One record by itself."""
        one = self.batch([number], epoch)
        return Sample(one.ids[0], one.input_ids[0], one.labels[0], one.visual, one.pixels)

    def batch(self, numbers: Sequence[int], epoch: int = 0) -> Batch:
        """The batch of these records; without any, one sample without targets."""
        if not len(numbers):
            return collate([dummy_sample(self.turns.filler_id)])
        chosen = np.array(numbers, np.int64)
        texts = self._texts(chosen) if self.tokens is None else self.tokens.batch(chosen)
        seen = self._seen(chosen, epoch)
        return replace(texts, **seen)

    def _texts(self, numbers: Numbers) -> Batch:
        ids, sequences, targets = [], [], []
        for id, encoded in self.encode(numbers.tolist()):
            if isinstance(encoded, ValueError):
                raise ValueError(f"record {id!r}: {encoded}") from encoded
            ids.append(id)
            sequences.append(encoded.input_ids)
            targets.append(encoded.labels)
        batch = padded(ids, sequences, targets)
        batch.window_targets = batch.num_targets
        return batch

    def _seen(self, numbers: Numbers, epoch: int) -> dict[str, Any]:
        """What the model sees of these records, one picture after the other."""
        counts = self.num_images(numbers)
        numbers, counts = numbers[counts > 0], counts[counts > 0]
        if not len(numbers):
            return {}
        if self.visual == "zero":
            return {"visual": torch.zeros(int(counts.sum()), self.rows_per_image, self.dim)}
        places = np.arange(counts.sum()) - np.repeat(counts.cumsum() - counts, counts)
        if self.visual == "real":
            return self.pictures(np.repeat(numbers, counts), places, epoch)
        owners = np.repeat(self._others(numbers), counts)
        return self.pictures(owners, places % self.num_images(owners), epoch)

    def _others(self, numbers: Numbers) -> Numbers:
        """The record half the data away for each, the same one in every run; the next one where
        that has no picture, or the very same (several questions about one)."""
        total = len(self)
        others = (numbers + total // 2) % total
        for _ in range(total):
            unfit = self.num_images(others) == 0
            unfit[~unfit] = self.same_picture(numbers[~unfit], others[~unfit])
            if not unfit.any():
                return others
            others[unfit] = (others[unfit] + 1) % total
        raise ValueError("visual='shuffled' needs records with at least two different pictures")


def _with_slots(encoded: Encoded | ValueError, num_images: int) -> Encoded | ValueError:
    """Refuse a record whose pictures would silently move to other samples."""
    if isinstance(encoded, ValueError):
        return encoded
    slots = int((encoded.input_ids == IMAGE_SLOT).sum())
    if slots == num_images:
        return encoded
    return ValueError(
        f"it has {slots} <image> marks and {num_images} images; give every image exactly one mark"
    )
