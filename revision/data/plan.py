"""The plan: which record stands where in a run, as a function of (seed, epoch, position) alone.

    epoch e:   permute the shards, and the blocks inside each; cut that order into groups of
               `shuffle_blocks`; permute the records inside each group
    step s:    the next G positions of its epoch, G = batch_size * processes * accumulate;
               micro-batch a of process r takes the slice (a * processes + r) of `batch_size`

So a run resumes at any step without replaying, every record is seen once per epoch, one step
is the same set of records for every number of processes that gives the same G, and memory grows
with the number of blocks and with one group, never with the number of records. A shard is visited
once per epoch, not all over it: one that is remote or in no page cache is read once. The tail of
an epoch leaves slices short or empty; nothing is dropped.

A run that continues with another G takes up the order at the position where it stopped
(`Place`): no record is lost or repeated, the rest of the epoch comes in steps of the new G.

A subset of k records holds those with the k smallest hashes of their position, so subsets are
nested and do not depend on the seed. Where caption controls keep some records only, it is one of
those, and the shards, blocks and groups are the same without the others.
"""

from bisect import bisect_right
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int, Int64, UInt8, UInt64

_CHUNK = 1 << 20
_COARSE_BITS = 16


@runtime_checkable
class Order(Protocol):
    """The records of every epoch by position; a position holds one record or a whole batch."""

    def length(self, epoch: int) -> int:
        """The number of positions of `epoch`."""

    def records(self, epoch: int, first: int, last: int) -> Int64[np.ndarray, " n"]:
        """The numbers of the records at the positions `first`..`last`-1."""


class Recent:
    """`make` with its last two results kept; a pickle leaves them behind."""

    def __init__(self, make: Callable[..., Any]) -> None:
        self.make = make
        self.kept: dict[Hashable, Any] = {}

    def __call__(self, *key: Hashable) -> Any:
        if key not in self.kept:
            if len(self.kept) > 1:
                del self.kept[next(iter(self.kept))]
            self.kept[key] = self.make(*key)
        return self.kept[key]

    def __reduce__(self) -> tuple[Any, ...]:
        return Recent, (self.make,)


def slice_pieces(
    ends: Int[np.ndarray, " pieces"],
    piece: Callable[[int], Int64[np.ndarray, " m"]],
    first: int,
    last: int,
) -> Int64[np.ndarray, " n"]:
    """`first`..`last`-1 of the pieces behind each other, `ends` being where each of them ends."""
    parts = [np.empty(0, np.int64)]
    first_piece, last_piece = np.searchsorted(ends, [first, last - 1], side="right").tolist()
    for index in range(first_piece, last_piece + 1):
        start = int(ends[index - 1]) if index else 0
        parts.append(piece(index)[max(0, first - start) : last - start])
    return np.concatenate(parts)


class EpochPlan:
    """The order of the records of a source with blocks of `block_sizes` records.

    `block_shards` tells the shard of each block by any number or name; without it all are in one.
    `kept` has a bit for each record, as `np.packbits` puts them, and the others are left out.
    Raises ValueError for a source without records and for more samples than there are records.
    """

    def __init__(
        self,
        block_sizes: Sequence[int],
        *,
        block_shards: Sequence[int | str] | None = None,
        seed: int = 0,
        shuffle_blocks: int = 8,
        num_samples: int | None = None,
        kept: UInt8[np.ndarray, " bytes"] | None = None,
    ) -> None:
        self.starts = np.concatenate([[0], np.cumsum(block_sizes, dtype=np.int64)])
        self.kept, total = kept, int(self.starts[-1])
        left = total if kept is None else sum(map(len, _chunks(total, kept)))
        self.num_samples = left if num_samples is None else num_samples
        if not 0 < self.num_samples <= left:
            of = "" if kept is None else f", of which the caption controls keep {left}"
            raise ValueError(
                f"num_samples={self.num_samples}, but the data has {total} records{of}; "
                "choose between 1 and that"
            )
        if shuffle_blocks < 1:
            raise ValueError(f"shuffle_blocks={shuffle_blocks}; a group has at least 1 block")
        self.seed, self.shuffle_blocks = seed, shuffle_blocks
        self._threshold = None
        if self.num_samples < left:
            self._threshold = hash_threshold(total, self.num_samples, kept)
        blocks, everything = range(len(block_sizes)), self.num_samples == total
        sizes = block_sizes if everything else [len(self._chosen(block)) for block in blocks]
        self._sizes = np.array(sizes, np.int64)
        shards = [0] * len(block_sizes) if block_shards is None else block_shards
        self._shards = np.unique(shards, return_inverse=True)[1].astype(np.int32)
        self._epoch_order = Recent(self._order_of_epoch)
        self._group_order = Recent(self._order_of_group)

    def length(self, epoch: int) -> int:
        """The number of records of an epoch, the same for all."""
        return self.num_samples

    def records(self, epoch: int, first: int, last: int) -> Int64[np.ndarray, " n"]:
        """The numbers of the records at the positions `first`..`last`-1 of `epoch`."""
        _, ends = self._epoch_order(epoch)
        return slice_pieces(ends, lambda group: self._group_order(epoch, group), first, last)

    def _order_of_epoch(
        self, epoch: int
    ) -> tuple[Int[np.ndarray, " blocks"], Int[np.ndarray, " groups"]]:
        """The order of the blocks, and the position behind the last record of every group."""
        rng = np.random.default_rng([self.seed, epoch])
        blocks = rng.permutation(len(self._sizes))
        rank = rng.permutation(int(self._shards.max()) + 1)  # of each shard
        blocks = blocks[np.argsort(rank[self._shards[blocks]], kind="stable")]
        firsts = np.arange(0, len(blocks), self.shuffle_blocks)
        return blocks, np.add.reduceat(self._sizes[blocks], firsts).cumsum()

    def _order_of_group(self, epoch: int, group: int) -> Int64[np.ndarray, " records"]:
        blocks, _ = self._epoch_order(epoch)
        chosen = blocks[group * self.shuffle_blocks : (group + 1) * self.shuffle_blocks]
        records = np.concatenate([self._chosen(int(block)) for block in chosen])
        return np.random.default_rng([self.seed, epoch, group]).permutation(records)

    def _chosen(self, block: int) -> Int64[np.ndarray, " records"]:
        """The records of a block that are kept and belong to the subset."""
        records = members(self.kept, int(self.starts[block]), int(self.starts[block + 1]))
        if self._threshold is None:
            return records
        return records[position_hash(records) <= self._threshold]


@dataclass(frozen=True)
class Place:
    """Where a run stands before `step`: the first `position` positions of `epoch` are behind it."""

    step: int = 0
    epoch: int = 0
    position: int = 0


@dataclass(frozen=True)
class StepPlan:
    """What one process does in each step: `window(step)` lists the records of its micro-batches.

    A run that continues begins at `start`. `batch_size` counts positions of `order`.
    """

    order: Order
    batch_size: int
    accumulate: int = 1
    rank: int = 0
    world_size: int = 1
    start: Place = Place()
    _ends: list[int] = field(default_factory=list, init=False, repr=False, compare=False)

    @property
    def global_batch(self) -> int:
        return self.batch_size * self.accumulate * self.world_size

    def end(self, epoch: int) -> int:
        """The step behind the last one of `epoch`; `start.step` for an epoch before the start."""
        while self.start.epoch + len(self._ends) <= epoch:
            self._count_epoch()
        return (
            self._ends[epoch - self.start.epoch] if epoch >= self.start.epoch else self.start.step
        )

    def place(self, step: int) -> Place:
        """Where `step` begins."""
        assert step >= self.start.step, f"step {step} lies before the start {self.start}"
        while not self._ends or self._ends[-1] <= step:
            self._count_epoch()
        index = bisect_right(self._ends, step)
        begin = self._ends[index - 1] if index else self.start.step
        behind = 0 if index else self.start.position
        position = behind + (step - begin) * self.global_batch
        return Place(step, self.start.epoch + index, position)

    def window(self, step: int) -> list[list[int]]:
        """The records of each micro-batch of this process; a list may be short or empty."""
        place = self.place(step)
        return [self._slice(place, index) for index in range(self.accumulate)]

    def _count_epoch(self) -> None:
        epoch = self.start.epoch + len(self._ends)
        behind = self.start.position if not self._ends else 0
        begin = self._ends[-1] if self._ends else self.start.step
        left = self.order.length(epoch) - behind
        self._ends.append(begin + -(-left // self.global_batch))

    def _slice(self, place: Place, index: int) -> list[int]:
        offset = (index * self.world_size + self.rank) * self.batch_size
        first = place.position + offset
        last = min(first + self.batch_size, self.order.length(place.epoch))
        if last <= first:
            return []
        numbers: list[int] = self.order.records(place.epoch, first, last).tolist()
        return numbers


def position_hash(positions: Int[np.ndarray, " n"]) -> UInt64[np.ndarray, " n"]:
    """splitmix64: a bijection of 64-bit integers, so hashes never tie."""
    x = positions.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def members(
    bits: UInt8[np.ndarray, " bytes"] | None, first: int, last: int
) -> Int64[np.ndarray, " n"]:
    """Those of the numbers `first`..`last`-1 whose bit is set; all of them without bits.

    Example:
        >>> members(np.packbits([0, 1, 1, 0, 1, 0, 0, 0, 0, 1]), 2, 10)
        array([2, 4, 9])
    """
    numbers = np.arange(first, last)
    if bits is None:
        return numbers
    begin = first & 7
    inside = np.unpackbits(bits[first >> 3 : -(-last >> 3)])[begin : begin + len(numbers)]
    return numbers[inside.astype(bool)]


def hash_threshold(
    total: int, count: int, kept: UInt8[np.ndarray, " bytes"] | None = None
) -> np.uint64:
    """The `count`-th smallest hash of the positions 0..total-1, or of those whose bit in `kept` is
    set, in two passes and little memory."""
    shift = np.uint64(64 - _COARSE_BITS)
    histogram = np.zeros(1 << _COARSE_BITS, np.int64)
    for hashes in map(position_hash, _chunks(total, kept)):
        histogram += np.bincount((hashes >> shift).astype(np.int64), minlength=len(histogram))
    below = histogram.cumsum()
    coarse = int(np.searchsorted(below, count))
    hashed = map(position_hash, _chunks(total, kept))
    inside = [hashes[(hashes >> shift) == np.uint64(coarse)] for hashes in hashed]
    rank = count - int(below[coarse] - histogram[coarse])
    return np.uint64(np.sort(np.concatenate(inside))[rank - 1])


def _chunks(
    total: int, kept: UInt8[np.ndarray, " bytes"] | None
) -> Iterator[Int64[np.ndarray, " n"]]:
    """The positions 0..total-1 whose bit is set."""
    for start in range(0, total, _CHUNK):
        yield members(kept, start, min(start + _CHUNK, total))
