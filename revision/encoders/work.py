"""The work of embedding: an input cut into shards and batches that do not depend on who does them.

Place in the pipeline: records -> **batches** -> encoder -> feature shards. No Lightning here.

The stream of an input is cut into shards of R entries, refused ones included: shard k holds the
entries [kR, (k+1)R). A batch never crosses the border of a shard, so a shard has the same bytes
however many processes, workers and interruptions it took.

Worker w of W decodes the batches b = w mod W, and the loader takes from the workers in turn,
which restores the order. Every worker streams through all records (cheap beside decoding
pictures) and holds one batch at a time.

A record with several pictures gives the rows of them all; if one of them cannot be used, the whole
record is rejected, because its conversation would no longer match its rows.

Texts come in groups of 2,048: tokenised once, sorted by length and cut by a budget of tokens.

Letters: R `rows_per_shard`, the number of stream entries in a shard.
"""

import os
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from revision.encoders.base import DualEncoder, Side
from revision.encoders.plan import Entry, Plan
from revision.encoders.text_batches import token_batches
from revision.parallel import end_with_parent
from revision.records import Record, Rejection

_TEXT_GROUP = 2048  # 4 batches of 16,384 tokens of 32-token captions; 1 % padding where they vary

Call = Callable[[Any], Tensor]


def encoder_call(encoder: DualEncoder, side: Side) -> Call:
    """What gives the rows of one of the `inputs` of a batch."""
    if side == "text":
        return encoder.encode_texts
    return lambda pixels: encoder.visual(pixels).flatten(0, 1)


@dataclass
class Batch:
    """Entries of one shard, ready for the encoder. `counts[i]` rows belong to `records[i]`.

    `inputs` holds what the encoder is called with, one call after the other; row i of their joint
    output belongs to place `order[i]`, in order where that is None. `num_truncated` texts were cut
    (None: nobody counted).
    """

    side: Side
    shard: int
    is_last: bool
    num_entries: int
    records: list[Record] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)
    rejected: list[Rejection] = field(default_factory=list)
    inputs: list[Any] = field(default_factory=list)
    order: Tensor | None = None
    num_truncated: int | None = None

    def encode(self, call: Call) -> Tensor | None:
        """Rows in the order of the records; None where there are none."""
        if not self.inputs:
            return None
        rows = torch.cat([call(inputs) for inputs in self.inputs])
        if self.order is None:
            return rows
        return torch.empty_like(rows).index_copy_(0, self.order, rows)

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
        order = None if self.order is None else move(self.order)
        return replace(self, inputs=moved, order=order)


class EmbeddingDataset(IterableDataset):
    """The batches of `shards` (of one rank), decoded by the worker that iterates."""

    def __init__(
        self,
        plan: Plan,
        encoder: DualEncoder,
        shards: Collection[int],
        *,
        batch_size: int,
        text_tokens: int,
    ) -> None:
        self.plan = plan
        self.encoder = encoder
        self.shards = set(shards)
        self.batch_size = batch_size
        self.text_tokens = text_tokens

    def __iter__(self) -> Iterator[Batch]:
        worker = get_worker_info()
        index, count = (worker.id, worker.num_workers) if worker else (0, 1)
        for number, (shard, is_last, entries) in enumerate(self._groups()):
            if number % count == index:
                batch = Batch(self.plan.source.side, shard, is_last, len(entries))
                yield self._load(batch, entries)

    def _groups(self) -> Iterator[tuple[int, bool, list[Entry]]]:
        """Cut the stream into batches: the shard, whether its end is reached, the entries."""
        limit = self.batch_size if self.plan.source.side == "image" else _TEXT_GROUP
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
                root = self.plan.source.image_root
                decoded.append(self.encoder.read_inputs(source, image_root=root))
            except ValueError as error:
                batch.rejected.append(Rejection(record.id, str(error), _address(source, record)))
                return
        batch.records.append(_light(record))
        batch.counts.append(len(decoded) * self.encoder.rows_per_image)
        batch.inputs.extend(decoded)

    def _tokenize(self, batch: Batch) -> None:
        """Texts of similar length together: less padding, the same rows up to rounding."""
        if not batch.records:
            return
        tokens = self.encoder.tokenize([record.text or "" for record in batch.records])
        batch.num_truncated = tokens.num_truncated
        cut = list(token_batches(tokens.inputs, self.text_tokens))
        batch.order = torch.cat([chosen for chosen, _ in cut])
        batch.inputs = [inputs for _, inputs in cut]


def _weight(entry: Entry) -> int:
    return max(1, len(entry.images)) if isinstance(entry, Record) else 1


def _stack(batch: Batch) -> None:
    batch.inputs = [torch.stack(batch.inputs)] if batch.inputs else []


def _light(record: Record) -> Record:
    """The record as the shard will store it: without the bytes of its pictures."""
    return Record.from_json(record.to_json())


def _address(source: str | bytes, record: Record) -> str:
    return source if isinstance(source, str) else f"a picture of record {record.id!r}"


def begin_worker(_: int) -> None:
    """Tokenizers must not start threads in a forked worker (and else say so at length)."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    end_with_parent()
