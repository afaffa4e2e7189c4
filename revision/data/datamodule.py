"""DataModules: Lightning asks them for loaders; what is in a batch is decided by sources and plan.

One flat run of `num_steps` optimiser steps over all epochs, so that a run resumes at
`trainer.global_step` exactly, for any number of workers. Where it continues with another number
of records in a step, `start` says which of them are behind it.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.utilities import rank_zero_only

from revision.captions import Selection
from revision.data.index import QUARANTINE, RecordIndex
from revision.data.packing import MeasuredSource, PackedOrder, steps_for_tokens
from revision.data.plan import EpochPlan, Order, Place, StepPlan
from revision.data.schedule import Schedule
from revision.data.windows import BatchSource, HeldOutDataset, WindowDataset, WindowLoader
from revision.records import described_input


class PlannedDataModule(L.LightningDataModule):
    """Base: `make_sources` names the data, everything about order and loading is here.

    With `pack_tokens` a micro-batch of training is a batch of at most that many LLM positions, and
    the `batch_size` of the schedule counts the records of held-out batches only.
    """

    def __init__(
        self,
        *,
        schedule: Schedule,
        num_samples: int | None = None,
        shuffle_blocks: int = 8,
        pack_tokens: int | None = None,
        num_workers: int = 0,
        val_batch_size: int | None = None,
    ) -> None:
        super().__init__()
        self.schedule, self.num_samples = schedule, num_samples
        self.shuffle_blocks, self.pack_tokens = shuffle_blocks, pack_tokens
        self.num_workers = num_workers
        self.val_batch_size = val_batch_size or schedule.batch_size
        self.start = Place()
        """Where the run continues; set before the first plan is asked for."""
        self._sources: tuple[BatchSource, BatchSource | None] | None = None
        self._order: Order | None = None

    def make_sources(self) -> tuple[BatchSource, BatchSource | None]:
        """The training data and, where there is one, the held-out data."""
        raise NotImplementedError

    def make_order(self) -> Order:
        """The order of the training data, one record at a position."""
        return self._epoch_plan(self.sources[0], self.schedule.seed, self.num_samples)

    @property
    def sources(self) -> tuple[BatchSource, BatchSource | None]:
        if self._sources is None:
            self._sources = self.make_sources()
        return self._sources

    @property
    def order(self) -> Order:
        """The order of the training data, packed where that is asked for; made once."""
        if self._order is None:
            self._order = self.make_order()
            if self.pack_tokens is not None:
                self._order = self._packed(self._order, self.pack_tokens)
        return self._order

    def num_steps(self, world_size: int = 1) -> int:
        """Optimiser steps of the whole run with `world_size` processes from `start` on, those
        before it included."""
        schedule = self.schedule
        if schedule.max_steps is not None:
            return schedule.max_steps
        plan = self.plan(0, world_size)
        if schedule.max_tokens is not None:
            return steps_for_tokens(plan, _measured(self.sources[0]), schedule.max_tokens)
        return plan.end(schedule.epochs - 1)

    def first_batches(self, count: int) -> list[Any]:
        """The first batches of the first epoch, fewer where it has fewer, for one process."""
        plan = replace(self.plan(0, 1), start=Place())
        windows = [plan.window(step) for step in range(min(count, plan.end(0)))]
        return [self.sources[0].batch(numbers) for window in windows for numbers in window]

    def held_out_batches(self) -> list[Any]:
        """All held-out records in their order; no batch where there are none."""
        held_out = self.sources[1]
        if held_out is None:
            return []
        dataset = HeldOutDataset(held_out, batch_size=self.val_batch_size)
        return [batch for index in range(len(dataset)) for batch in dataset[index]]

    def prepare_data(self) -> None:
        """Check, index and order the data once, before the other processes look at it."""
        _ = self.order

    def train_dataloader(self) -> WindowLoader:
        trainer = self.trainer
        assert trainer is not None
        plan = self.plan(trainer.global_rank, trainer.world_size)
        return WindowLoader(
            WindowDataset(self.sources[0], plan),
            num_steps=self.num_steps(trainer.world_size),
            batches_per_step=self.schedule.accumulate,
            first_step=lambda: trainer.global_step,
            **self._loading(),
        )

    def val_dataloader(self) -> WindowLoader | list[Any]:
        held_out = self.sources[1]
        if held_out is None:
            return []
        trainer = self.trainer
        assert trainer is not None
        dataset = HeldOutDataset(
            held_out,
            batch_size=self.val_batch_size,
            rank=trainer.global_rank,
            world_size=trainer.world_size,
        )
        return WindowLoader(dataset, num_steps=len(dataset), **self._loading())

    def plan(self, rank: int, world_size: int) -> StepPlan:
        """What process `rank` of `world_size` does in each step from `start` on."""
        size = self.schedule.batch_size if self.pack_tokens is None else 1  # positions of the order
        return StepPlan(self.order, size, self.schedule.accumulate, rank, world_size, self.start)

    def facts(self, step: int, world_size: int) -> dict[str, Any]:
        """Where the data stands before `step`, for the checkpoint."""
        plan = self.plan(0, world_size)
        place = plan.place(step)
        return {
            "epoch": place.epoch,
            "position": place.position,
            "unit": "record" if self.pack_tokens is None else "packed batch",
            "global_batch": plan.global_batch,
        }

    def _loading(self) -> dict[str, Any]:
        on_gpu = self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"
        return {"num_workers": self.num_workers, "pin_memory": on_gpu}

    def _epoch_plan(
        self,
        source: BatchSource,
        seed: int,
        num_samples: int | None,
        selection: Selection | None = None,
    ) -> EpochPlan:
        return EpochPlan(
            source.block_sizes,
            block_shards=getattr(source, "block_shards", None),
            seed=seed,
            shuffle_blocks=self.shuffle_blocks,
            num_samples=num_samples,
            kept=None if selection is None else selection.bits[0],
        )

    def _packed(self, order: Order, pack_tokens: int) -> PackedOrder:
        packed = PackedOrder(
            order, _measured(self.sources[0]), pack_tokens, seed=self.schedule.seed
        )
        tell(
            f"packed {order.length(0)} samples into {packed.length(0)} batches of at most "
            f"{pack_tokens} tokens, fill {packed.fill(0):.1%}"
        )
        return packed


def _measured(source: BatchSource) -> MeasuredSource:
    assert isinstance(source, MeasuredSource), f"{type(source).__name__} has no lengths"
    return source


def tell_index(input: str | Path, index: RecordIndex) -> None:
    """Say how `input` is read, and where those of its records that cannot be used are listed."""
    tell(described_input(input, "auto"))
    if index.num_rejected:
        tell(
            f"{input}: {len(index)} records, {index.num_rejected} rejected, "
            f"see {index.directory / QUARANTINE}"
        )


@rank_zero_only
def tell(message: str) -> None:
    """Print on the first process."""
    print(message, flush=True)
