"""DataModules: Lightning asks them for loaders; what is in a batch is decided by sources and plan.

One flat run of `num_steps` optimiser steps over all epochs, so that a run resumes at
`trainer.global_step` exactly, for any number of workers.
"""

from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.utilities import rank_zero_only

from revision.alignment.base import AlignmentMap
from revision.data.index import QUARANTINE, RecordIndex, build_index
from revision.data.plan import EpochPlan, StepPlan
from revision.data.sources import (
    CAPTION_PROMPT,
    ImageSource,
    RowMap,
    SampleSource,
    ShardSource,
    check_record,
)
from revision.data.turn_encoder import TurnEncoder
from revision.data.windows import BatchSource, HeldOutDataset, WindowDataset, WindowLoader
from revision.encoders.base import DualEncoder


class PlannedDataModule(L.LightningDataModule):
    """Base: `make_sources` names the data, everything about order and loading is here.

    `batch_size` counts records per device and micro-batch; `max_steps` overrides `epochs`.
    """

    def __init__(
        self,
        *,
        batch_size: int,
        accumulate: int = 1,
        epochs: int = 1,
        max_steps: int | None = None,
        seed: int = 0,
        num_samples: int | None = None,
        shuffle_blocks: int = 8,
        num_workers: int = 0,
        val_batch_size: int | None = None,
    ) -> None:
        super().__init__()
        self.batch_size, self.accumulate = batch_size, accumulate
        self.epochs, self.max_steps = epochs, max_steps
        self.seed, self.num_samples, self.shuffle_blocks = seed, num_samples, shuffle_blocks
        self.num_workers = num_workers
        self.val_batch_size = val_batch_size or batch_size
        self._sources: tuple[BatchSource, BatchSource | None] | None = None

    def make_sources(self) -> tuple[BatchSource, BatchSource | None]:
        """The training data and, where there is one, the held-out data."""
        raise NotImplementedError

    @property
    def sources(self) -> tuple[BatchSource, BatchSource | None]:
        if self._sources is None:
            self._sources = self.make_sources()
        return self._sources

    def num_steps(self, world_size: int = 1) -> int:
        """Optimiser steps of the whole run with `world_size` processes."""
        if self.max_steps is not None:
            return self.max_steps
        return self.epochs * self._plan(0, world_size).steps_per_epoch

    def first_batches(self, count: int) -> list[Any]:
        """The first batches of the first epoch, fewer where it has fewer, for one process."""
        plan = self._plan(0, 1)
        windows = [plan.window(step) for step in range(min(count, plan.steps_per_epoch))]
        return [self.sources[0].batch(numbers) for window in windows for numbers in window]

    def held_out_batches(self) -> list[Any]:
        """All held-out records in their order; no batch where there are none."""
        held_out = self.sources[1]
        if held_out is None:
            return []
        dataset = HeldOutDataset(held_out, batch_size=self.val_batch_size)
        return [batch for index in range(len(dataset)) for batch in dataset[index]]

    def prepare_data(self) -> None:
        """Check and index the data once, before the other processes look at it."""
        _ = self.sources

    def train_dataloader(self) -> WindowLoader:
        trainer = self.trainer
        assert trainer is not None
        plan = self._plan(trainer.global_rank, trainer.world_size)
        return WindowLoader(
            WindowDataset(self.sources[0], plan),
            num_steps=self.num_steps(trainer.world_size),
            batches_per_step=self.accumulate,
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

    def _loading(self) -> dict[str, Any]:
        on_gpu = self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"
        return {"num_workers": self.num_workers, "pin_memory": on_gpu}

    def _plan(self, rank: int, world_size: int) -> StepPlan:
        epoch_plan = EpochPlan(
            self.sources[0].block_sizes,
            seed=self.seed,
            shuffle_blocks=self.shuffle_blocks,
            num_samples=self.num_samples,
        )
        return StepPlan(epoch_plan, self.batch_size, self.accumulate, rank, world_size)


class VisualDataModule(PlannedDataModule):
    """Samples for `pretrain`, `sft` and their variants.

    The training data is either `shards` (a feature set) or `input` with `image_root` (pictures on
    the fly, which needs `encoder`); the held-out data `val_shards` or `val_input` alike.
    `alignment` maps the rows of `shards` when they are read; held-out rows are taken as they are.
    """

    def __init__(
        self,
        *,
        turns: TurnEncoder,
        shards: str | Path | None = None,
        input: str | Path | None = None,
        image_root: str | Path | None = None,
        val_shards: str | Path | None = None,
        val_input: str | Path | None = None,
        encoder: DualEncoder | None = None,
        alignment: RowMap | None = None,
        image_map: AlignmentMap | None = None,
        visual: str = "real",
        max_caption_words: int | None = None,
        caption_prompt: str = CAPTION_PROMPT,
        index_root: str | Path = "runs/.index",
        batch_size: int,
        accumulate: int = 1,
        epochs: int = 1,
        max_steps: int | None = None,
        seed: int = 0,
        num_samples: int | None = None,
        shuffle_blocks: int = 8,
        num_workers: int = 0,
        val_batch_size: int | None = None,
    ) -> None:
        super().__init__(
            batch_size=batch_size,
            accumulate=accumulate,
            epochs=epochs,
            max_steps=max_steps,
            seed=seed,
            num_samples=num_samples,
            shuffle_blocks=shuffle_blocks,
            num_workers=num_workers,
            val_batch_size=val_batch_size,
        )
        _check_one("data.", shards, input)
        self.turns, self.encoder = turns, encoder
        self.alignment, self.image_map = alignment, image_map
        self.train_data, self.val_data = (shards, input), (val_shards, val_input)
        self.image_root = None if image_root is None else Path(image_root)
        self.visual, self.max_caption_words = visual, max_caption_words
        self.caption_prompt, self.index_root = caption_prompt, Path(index_root)

    def make_sources(self) -> tuple[SampleSource, SampleSource | None]:
        held_out = None
        if any(self.val_data):
            _check_one("data.val_", *self.val_data)
            held_out = self._source(*self.val_data, alignment=None, max_caption_words=None)
        cut = self.max_caption_words
        return self._source(
            *self.train_data, alignment=self.alignment, max_caption_words=cut
        ), held_out

    def _source(
        self,
        shards: str | Path | None,
        input: str | Path | None,
        *,
        alignment: RowMap | None,
        max_caption_words: int | None,
    ) -> SampleSource:
        options: dict[str, Any] = {
            "visual": self.visual,
            "caption_prompt": self.caption_prompt,
            "max_caption_words": max_caption_words,
        }
        if shards is not None:
            cached = 2 * self.shuffle_blocks
            return ShardSource(
                Path(shards),
                self.turns,
                alignment=alignment,
                image_map=self.image_map,
                cache_blocks=cached,
                **options,
            )
        assert input is not None
        if self.encoder is None:
            raise ValueError(
                f"{input} holds pictures and this model has no encoder; embed them with embed.py "
                "and give the feature set as data.shards"
            )
        index = build_index(
            Path(input), self.index_root, image_root=self.image_root, check=check_record
        )
        tell_rejected(input, index)
        return ImageSource(
            index, self.turns, image_root=self.image_root, encoder=self.encoder, **options
        )


def _check_one(prefix: str, shards: str | Path | None, input: str | Path | None) -> None:
    if (shards is None) == (input is None):
        raise ValueError(
            f"exactly one of {prefix}shards (features) and {prefix}input (pictures) must be "
            f"given; got shards={shards!r}, input={input!r}"
        )


def tell_rejected(input: str | Path, index: RecordIndex) -> None:
    """Say how many records of `input` cannot be used, and where they are listed."""
    if index.num_rejected:
        _tell(
            f"{input}: {len(index)} records, {index.num_rejected} rejected, "
            f"see {index.directory / QUARANTINE}"
        )


@rank_zero_only
def _tell(message: str) -> None:
    """Print on the first process."""
    print(message, flush=True)
