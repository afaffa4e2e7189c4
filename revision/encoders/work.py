"""The work of embedding: an input cut into shards and batches that do not depend on who does them.

Place in the pipeline: records -> **batches** -> encoder -> feature shards. No Lightning here.

The stream of an input is cut into shards of R entries, refused ones included: shard k holds the
entries [kR, (k+1)R). A batch never crosses the border of a shard, so a shard has the same bytes
however many processes, workers and interruptions it took.

Worker w of W decodes the batches b = w mod W, and the loader takes from the workers in turn,
which restores the order. Every worker streams through all records (cheap beside decoding
pictures) and holds one batch at a time.

A record with several pictures gives several rows; if one of them cannot be used, the whole record
is rejected, because its conversation would no longer match its rows.

Letters: R `rows_per_shard`, the number of stream entries in a shard.
"""

import os
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from revision.encoders.base import DualEncoder, Side
from revision.encoders.plan import Entry, Plan
from revision.records import Record, Rejection, load_image

_TEXT_BATCHES = 16  # batches of the encoder in one of the loader: room to sort texts by length


@dataclass
class Batch:
    """Entries of one shard, ready for the encoder. `counts[i]` rows belong to `records[i]`.

    `inputs` holds what the encoder is called with, one call after the other; row i of their joint
    output belongs to place `order[i]`.
    """

    side: Side
    shard: int
    is_last: bool
    num_entries: int
    records: list[Record] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)
    rejected: list[Rejection] = field(default_factory=list)
    inputs: list[Any] = field(default_factory=list)
    order: list[int] = field(default_factory=list)

    def encode(self, encoder: DualEncoder) -> Tensor:
        """Rows in the order of the records."""
        if not self.inputs:
            return torch.empty(0, encoder.feature_dim(self.side))
        call = encoder.encode_images if self.side == "image" else encoder.encode_texts
        rows = torch.cat([call(inputs) for inputs in self.inputs])
        restored = torch.empty_like(rows)
        restored[self.order] = rows
        return restored

    def to(self, device: torch.device) -> "Batch":
        """The name by which Lightning moves a batch."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> "Batch":
        return self._map(Tensor.pin_memory)

    def _map(self, move: Any) -> "Batch":
        moved = [
            {key: move(t) for key, t in inputs.items()}
            if isinstance(inputs, dict)
            else move(inputs)
            for inputs in self.inputs
        ]
        return replace(self, inputs=moved)


class EmbeddingDataset(IterableDataset):
    """The batches of `shards` (of one rank), decoded by the worker that iterates."""

    def __init__(
        self, plan: Plan, encoder: DualEncoder, shards: Collection[int], batch_size: int
    ) -> None:
        self.plan = plan
        self.encoder = encoder
        self.shards = set(shards)
        self.batch_size = batch_size

    def __iter__(self) -> Iterator[Batch]:
        worker = get_worker_info()
        index, count = (worker.id, worker.num_workers) if worker else (0, 1)
        for number, (shard, is_last, entries) in enumerate(self._groups()):
            if number % count == index:
                batch = Batch(self.plan.source.side, shard, is_last, len(entries))
                yield self._load(batch, entries)

    def _groups(self) -> Iterator[tuple[int, bool, list[Entry]]]:
        """Cut the stream into batches: the shard, whether its end is reached, the entries."""
        limit = self.batch_size * (1 if self.plan.source.side == "image" else _TEXT_BATCHES)
        final = max(self.shards, default=-1)
        group: list[Entry] = []
        weight = 0
        for position, entry in enumerate(self.plan.source.entries()):
            shard, offset = divmod(position, self.plan.rows_per_shard)
            if shard > final:
                return
            if shard not in self.shards:
                continue
            group.append(entry)
            weight += _weight(entry)
            is_last = offset + 1 == self.plan.num_entries_in(shard)
            if is_last or weight >= limit:
                yield shard, is_last, group
                group, weight = [], 0

    def _load(self, batch: Batch, entries: list[Entry]) -> Batch:
        for entry in entries:
            if isinstance(entry, Rejection):
                batch.rejected.append(entry)
            elif batch.side == "image":
                self._add_images(batch, entry)
            else:
                batch.records.append(_light(entry))
                batch.counts.append(1)
        if batch.side == "image":
            _stack(batch)
        else:
            self._tokenize(batch)
        return batch

    def _add_images(self, batch: Batch, record: Record) -> None:
        """Decode all pictures of the record, or reject it."""
        decoded = []
        for source in record.images:
            try:
                image = load_image(source, image_root=self.plan.source.image_root)
                decoded.append(self.encoder.image_inputs(image))
            except ValueError as error:
                batch.rejected.append(Rejection(record.id, str(error), _address(source, record)))
                return
        batch.records.append(_light(record))
        batch.counts.append(len(decoded))
        batch.inputs.extend(decoded)

    def _tokenize(self, batch: Batch) -> None:
        """Texts of similar length together: less padding, the same rows up to rounding."""
        texts = [record.text or "" for record in batch.records]
        batch.order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        for start in range(0, len(texts), self.batch_size):
            chosen = batch.order[start : start + self.batch_size]
            batch.inputs.append(self.encoder.text_inputs([texts[i] for i in chosen]))


def _weight(entry: Entry) -> int:
    return max(1, len(entry.images)) if isinstance(entry, Record) else 1


def _stack(batch: Batch) -> None:
    batch.order = list(range(len(batch.inputs)))
    batch.inputs = [torch.stack(batch.inputs)] if batch.inputs else []


def _light(record: Record) -> Record:
    """The record as the shard will store it: without the bytes of its pictures."""
    return Record.from_json(record.to_json())


def _address(source: str | bytes, record: Record) -> str:
    return source if isinstance(source, str) else f"a picture of record {record.id!r}"


def quiet_worker(_: int) -> None:
    """Tokenizers must not start threads in a forked worker (and else say so at length)."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
