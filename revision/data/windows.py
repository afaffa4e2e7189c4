"""Windows: the micro-batches of one optimiser step, prepared together so that each of them knows
the number of targets of all of them (the denominator of the loss), and loaders over them.

A loader item is a whole window; the loop sees single micro-batches. A step's micro-batches are
made by one worker, so the number of workers never changes what is in them.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch.utils.data import DataLoader, Dataset

from revision.data.plan import StepPlan
from revision.parallel import end_with_parent


@runtime_checkable
class CountedBatch(Protocol):
    """What a stage's model takes: knows its own targets and is told those of its window."""

    window_targets: int

    @property
    def num_targets(self) -> int: ...


@runtime_checkable
class BatchSource(Protocol):
    """Makes batches of record numbers; an empty list gives a batch without targets.

    `epoch` counts the visits of the data: what is random in a record is drawn anew in each.
    """

    block_sizes: list[int]

    def batch(self, numbers: Sequence[int], epoch: int = 0) -> Any: ...


class WindowDataset(Dataset[list[CountedBatch]]):
    """Item s is the list of micro-batches of this process in step s."""

    def __init__(self, source: BatchSource, plan: StepPlan) -> None:
        self.source, self.plan = source, plan

    def __getitem__(self, step: int) -> list[CountedBatch]:
        epoch = self.plan.place(step).epoch
        batches: list[CountedBatch] = [
            self.source.batch(numbers, epoch) for numbers in self.plan.window(step)
        ]
        num_targets = sum(batch.num_targets for batch in batches)
        for batch in batches:
            batch.window_targets = num_targets
        return batches


class HeldOutDataset(Dataset[list[CountedBatch]]):
    """Item i is the i-th micro-batch of this process, in the order of the records.

    All processes have the same number of items; the last ones may hold no record.
    """

    def __init__(
        self, source: BatchSource, *, batch_size: int, rank: int = 0, world_size: int = 1
    ) -> None:
        self.source, self.batch_size = source, batch_size
        self.rank, self.world_size = rank, world_size
        self.num_records = sum(source.block_sizes)

    def __len__(self) -> int:
        return math.ceil(self.num_records / (self.batch_size * self.world_size))

    def __getitem__(self, index: int) -> list[CountedBatch]:
        first = (index * self.world_size + self.rank) * self.batch_size
        last = min(first + self.batch_size, self.num_records)
        return [self.source.batch(range(first, last))]


class WindowLoader:
    """Iterates over the micro-batches of steps `first_step()`..`num_steps`-1.

    Its length is that of the whole run: a trainer that resumes counts from the start, and
    `first_step` (asked when iteration begins) tells where it is.
    """

    def __init__(
        self,
        dataset: Dataset[list[CountedBatch]],
        *,
        num_steps: int,
        batches_per_step: int = 1,
        first_step: Callable[[], int] = lambda: 0,
        num_workers: int = 0,
        pin_memory: bool = False,
    ) -> None:
        self.dataset, self.num_steps, self.first_step = dataset, num_steps, first_step
        self.batches_per_step = batches_per_step
        self.num_workers, self.pin_memory = num_workers, pin_memory

    def __len__(self) -> int:
        return self.num_steps * self.batches_per_step

    def __iter__(self) -> Iterator[CountedBatch]:
        if not self.num_workers and not self.pin_memory:  # without torch's 0.1 ms per window
            for step in range(self.first_step(), self.num_steps):
                yield from self.dataset[step]
            return
        windows: DataLoader[Any] = DataLoader(
            self.dataset,
            batch_size=None,
            sampler=range(self.first_step(), self.num_steps),
            num_workers=self.num_workers,
            worker_init_fn=end_with_parent,
            pin_memory=self.pin_memory,
            generator=torch.Generator(),  # the default one belongs to the training step
        )
        try:
            for window in windows:
                yield from window
        except (RuntimeError, ConnectionError, EOFError) as error:
            if not _says_death(error):
                raise
            raise ChildProcessError(
                "a process that loads data died, often because memory ran out; lower "
                "data.num_workers, then the same command continues after the last checkpoint"
            ) from error


def _says_death(error: Exception) -> bool:
    """Whether a loading process died; what it raised itself arrives as "Caught ... in worker"."""
    told = str(error).startswith("DataLoader worker")
    cut_off = isinstance(error, (ConnectionError, EOFError)) and "Caught" not in str(error)
    return told or cut_off
