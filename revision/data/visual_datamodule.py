"""The DataModule of `pretrain`, `sft` and their variants: samples with visual input."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from revision.alignment.base import AlignmentMap
from revision.captions import Controls, Selection
from revision.data.datamodule import PlannedDataModule, tell, tell_index
from revision.data.mixture import MixtureOrder, MixtureSource
from revision.data.plan import Order
from revision.data.record_turns import CAPTION_PROMPT, WHOLE
from revision.data.schedule import Schedule
from revision.data.selected import select_records
from revision.data.shard_source import RowMap
from revision.data.source_maker import Part, SourceMaker, parts_of, token_directory
from revision.data.sources import SampleSource
from revision.data.turn_encoder import TurnEncoder
from revision.encoders.base import DualEncoder


class VisualDataModule(PlannedDataModule):
    """Samples for `pretrain`, `sft` and their variants.

    The training data is either `shards` (a feature set), or `input` with `image_root` (pictures on
    the fly, which needs `encoder`), or a `mixture` of these (see `Part`); the held-out data
    `val_shards` or `val_input` alike. `alignment` maps the rows of `shards` when they are read.

    `captions` says which records of the training data are taken and how much of each caption, of
    every source of a mixture by itself: its terciles are its own, a caption that also stands in
    another source is no duplicate, and a weight counts passes over what is kept.

    Held-out data is neither mapped nor chosen nor cut.
    """

    def __init__(
        self,
        *,
        turns: TurnEncoder,
        shards: str | Path | None = None,
        input: str | Path | None = None,
        image_root: str | Path | None = None,
        mixture: Sequence[Mapping[str, Any]] | None = None,
        val_shards: str | Path | None = None,
        val_input: str | Path | None = None,
        encoder: DualEncoder | None = None,
        alignment: RowMap | None = None,
        image_map: AlignmentMap | None = None,
        visual: str = "real",
        captions: Controls = WHOLE,
        caption_prompt: str = CAPTION_PROMPT,
        index_root: str | Path = "runs/.index",
        tokens: str = "online",
        token_root: str | Path = "runs/.tokens",
        schedule: Schedule,
        shuffle_blocks: int = 8,
        pack_tokens: int | None = None,
        num_workers: int = 0,
        val_batch_size: int | None = None,
    ) -> None:
        super().__init__(
            schedule=schedule,
            num_samples=captions.num_samples,
            shuffle_blocks=shuffle_blocks,
            pack_tokens=pack_tokens,
            num_workers=num_workers,
            val_batch_size=val_batch_size,
        )
        self.parts = parts_of(shards, input, image_root, mixture)
        if mixture is not None and captions.num_samples is not None:
            raise ValueError(
                f"num_samples={captions.num_samples} does not say of which source of the mixture; "
                "give it to the sources in data.mixture"
            )
        self.is_mixture = mixture is not None
        self.held_out = None
        if val_shards is not None or val_input is not None:
            self.held_out = Part(
                key="data.val_", shards=val_shards, input=val_input, image_root=image_root
            )
        self.maker = SourceMaker(
            turns=turns,
            encoder=encoder,
            image_map=image_map,
            visual=visual,
            caption_prompt=caption_prompt,
            index_root=Path(index_root),
            token_root=token_directory(tokens, token_root),
            cache_blocks=2 * shuffle_blocks,
            on_index=tell_index,
        )
        self.alignment, self.captions = alignment, captions

    def make_sources(self) -> tuple[SampleSource | MixtureSource, SampleSource | None]:
        held_out = None if self.held_out is None else self.maker.held_out(self.held_out)
        if not self.is_mixture:
            (part,) = self.parts
            return self.maker.training(part, self.alignment, self.captions), held_out
        sources = [
            self.maker.training(part, self.alignment if part.is_text else None, self.captions)
            for part in self.parts
        ]
        return MixtureSource(sources), held_out

    @cached_property
    def selections(self) -> list[Selection | None]:
        """What the caption controls keep of each source of the training data; None is all of it."""
        source = self.sources[0]
        sources: list[Any] = source.sources if isinstance(source, MixtureSource) else [source]
        found = [select_records(each, self.captions, self.maker.index_root) for each in sources]
        for part, selection in zip(self.parts, found, strict=True):
            if selection is not None:
                tell(f"{part.name}: {selection.summary()}")
        return found

    def make_order(self) -> Order:
        source = self.sources[0]
        if not isinstance(source, MixtureSource):
            (selection,) = self.selections
            return self._epoch_plan(source, self.schedule.seed, self.num_samples, selection)
        parts = zip(self.parts, source.sources, self.selections, strict=True)
        plans = [  # each with its own seed: sets of the same records are not walked in step
            self._epoch_plan(each, self.schedule.seed + index, part.num_samples, selection)
            for index, (part, each, selection) in enumerate(parts)
        ]
        return MixtureOrder(plans, [part.weight for part in self.parts], seed=self.schedule.seed)
