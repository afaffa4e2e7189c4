"""The plan: which record stands where in a run, as a function of (seed, epoch, position) alone.

    epoch e:   permute the blocks; cut that order into groups of `shuffle_blocks`; permute the
               records inside each group
    step s:    positions [s G, (s+1) G) of its epoch, G = batch_size * processes * accumulate;
               micro-batch a of process r takes the slice (a * processes + r) of `batch_size`

So a run resumes at any step without replaying, every record is seen once per epoch, one step
is the same set of records for every number of processes that gives the same G, and memory grows
with the number of blocks and with one group, never with the number of records. The tail of an
epoch leaves slices short or empty; nothing is dropped.

A subset of k records holds those with the k smallest hashes of their position, so subsets are
nested and do not depend on the seed.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from jaxtyping import Int, UInt64

_CHUNK = 1 << 20
_COARSE_BITS = 16


class EpochPlan:
    """The order of the records of a source with blocks of `block_sizes` records.

    Raises ValueError for a source without records and for more samples than there are records.
    """

    def __init__(
        self,
        block_sizes: Sequence[int],
        *,
        seed: int = 0,
        shuffle_blocks: int = 8,
        num_samples: int | None = None,
    ) -> None:
        self.starts = np.concatenate([[0], np.cumsum(block_sizes, dtype=np.int64)])
        total = int(self.starts[-1])
        self.num_samples = total if num_samples is None else num_samples
        if not 0 < self.num_samples <= total:
            raise ValueError(
                f"num_samples={self.num_samples}, but the data has {total} records; "
                "choose between 1 and that"
            )
        if shuffle_blocks < 1:
            raise ValueError(f"shuffle_blocks={shuffle_blocks}; a group has at least 1 block")
        self.seed, self.shuffle_blocks = seed, shuffle_blocks
        everything = self.num_samples == total
        self._threshold = None if everything else hash_threshold(total, self.num_samples)
        blocks = range(len(block_sizes))
        sizes = block_sizes if everything else [len(self._kept(block)) for block in blocks]
        self._sizes = np.array(sizes, np.int64)
        self._epoch_order = lru_cache(maxsize=2)(self._order_of_epoch)
        self._group_order = lru_cache(maxsize=2)(self._order_of_group)

    def __getstate__(self) -> dict[str, object]:
        return {k: v for k, v in vars(self).items() if k not in ("_epoch_order", "_group_order")}

    def __setstate__(self, state: dict[str, object]) -> None:
        vars(self).update(state)
        self._epoch_order = lru_cache(maxsize=2)(self._order_of_epoch)
        self._group_order = lru_cache(maxsize=2)(self._order_of_group)

    def record(self, epoch: int, position: int) -> int:
        """The number of the record at `position` of `epoch`."""
        _, ends = self._epoch_order(epoch)
        group = int(np.searchsorted(ends, position, side="right"))
        first = int(ends[group - 1]) if group else 0
        return int(self._group_order(epoch, group)[position - first])

    def _order_of_epoch(
        self, epoch: int
    ) -> tuple[Int[np.ndarray, " blocks"], Int[np.ndarray, " groups"]]:
        """The order of the blocks, and the position behind the last record of every group."""
        blocks = np.random.default_rng([self.seed, epoch]).permutation(len(self._sizes))
        firsts = np.arange(0, len(blocks), self.shuffle_blocks)
        return blocks, np.add.reduceat(self._sizes[blocks], firsts).cumsum()

    def _order_of_group(self, epoch: int, group: int) -> Int[np.ndarray, " records"]:
        blocks, _ = self._epoch_order(epoch)
        chosen = blocks[group * self.shuffle_blocks : (group + 1) * self.shuffle_blocks]
        records = np.concatenate([self._kept(int(block)) for block in chosen])
        return np.random.default_rng([self.seed, epoch, group]).permutation(records)

    def _kept(self, block: int) -> Int[np.ndarray, " records"]:
        """The records of a block that belong to the subset."""
        records = np.arange(self.starts[block], self.starts[block + 1])
        if self._threshold is None:
            return records
        return records[position_hash(records) <= self._threshold]


@dataclass(frozen=True)
class StepPlan:
    """What one process does in each step: `window(step)` lists the records of its micro-batches."""

    epoch_plan: EpochPlan
    batch_size: int
    accumulate: int = 1
    rank: int = 0
    world_size: int = 1

    @property
    def global_batch(self) -> int:
        return self.batch_size * self.accumulate * self.world_size

    @property
    def steps_per_epoch(self) -> int:
        return -(-self.epoch_plan.num_samples // self.global_batch)

    def epoch(self, step: int) -> int:
        """Which visit of the data the step belongs to, from 0."""
        return step // self.steps_per_epoch

    def window(self, step: int) -> list[list[int]]:
        """The records of each micro-batch of this process; a list may be short or empty."""
        epoch, step_of_epoch = divmod(step, self.steps_per_epoch)
        return [self._slice(epoch, step_of_epoch, index) for index in range(self.accumulate)]

    def _slice(self, epoch: int, step_of_epoch: int, index: int) -> list[int]:
        offset = (index * self.world_size + self.rank) * self.batch_size
        first = step_of_epoch * self.global_batch + offset
        last = min(first + self.batch_size, self.epoch_plan.num_samples)
        return [self.epoch_plan.record(epoch, position) for position in range(first, last)]


def position_hash(positions: Int[np.ndarray, " n"]) -> UInt64[np.ndarray, " n"]:
    """splitmix64: a bijection of 64-bit integers, so hashes never tie."""
    x = positions.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def hash_threshold(total: int, count: int) -> np.uint64:
    """The `count`-th smallest hash of the positions 0..total-1, in two passes and little memory."""
    shift = np.uint64(64 - _COARSE_BITS)
    histogram = np.zeros(1 << _COARSE_BITS, np.int64)
    for hashes in _hash_chunks(total):
        histogram += np.bincount((hashes >> shift).astype(np.int64), minlength=len(histogram))
    below = histogram.cumsum()
    coarse = int(np.searchsorted(below, count))
    inside = [h[(h >> shift) == np.uint64(coarse)] for h in _hash_chunks(total)]
    rank = count - int(below[coarse] - histogram[coarse])
    return np.uint64(np.sort(np.concatenate(inside))[rank - 1])


def _hash_chunks(total: int) -> Iterator[UInt64[np.ndarray, " n"]]:
    for start in range(0, total, _CHUNK):
        yield position_hash(np.arange(start, min(start + _CHUNK, total)))
