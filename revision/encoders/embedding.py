"""Embedding: Lightning's predict loop over records, and the callback that writes feature shards.

Place in the pipeline: records -> encoder -> **feature shards**.

`revision/encoders/work.py` cuts the input into shards and batches. Rank r writes the shards
k = r mod (number of ranks) that are missing, so devices and nodes share nothing but the directory,
and a run that is started again continues at the first shard that is not there.

The host waits for nothing inside the loop: rows come back from an accelerator while the next batch
is encoded, and are stored after it was begun.

A feature that no direction can be read from (not finite, or zero) rejects its record: no row of
zeros is ever stored. Rows of whole pictures and texts have unit norm; rows of patches keep the norm
that the layer gave them, as LLaVA's connector reads them.
"""

import logging
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from revision.captions import Controls
from revision.encoders.base import DualEncoder, Side
from revision.encoders.open_shard import Arrival, OpenShard
from revision.encoders.plan import Plan, Selector, Source
from revision.encoders.work import Batch, Call, EmbeddingDataset, begin_worker, encoder_call
from revision.records import Inputs, described_input, input_text
from revision.shards import (
    Header,
    read_header,
)
from revision.shards.repair import declare_again
from revision.training.launch import leave_process_group_at_exit
from revision.training.stopping import stop_at_once

SETS: dict[Side, str] = {"image": "images", "text": "texts"}


def embed_records(
    encoder: DualEncoder,
    *,
    input: Inputs,
    output_dir: str | Path,
    image_root: str | Path | None = None,
    modality: str = "both",
    format: str = "auto",
    batch_size: int = 64,
    text_tokens: int = 16_384,
    compile: bool = False,
    rows_per_shard: int = 65_536,
    dtype: str = "float16",
    num_workers: int = 2,
    accelerator: str = "auto",
    devices: int | str = "auto",
    num_nodes: int = 1,
    controls: Controls | None = None,
) -> dict[Side, Path]:
    """Write `<output_dir>/images` and `<output_dir>/texts` (or one of them) as feature sets.

    `modality` is both, image or text. A batch has `batch_size` pictures, or texts of `text_tokens`
    tokens with their padding. `rows_per_shard` counts entries of the input; where a picture has R
    rows, R of them are one entry, so that a shard has one size whatever the pooling. `compile`
    compiles the towers, which pays for long runs; rows then differ by rounding. What is already
    there is kept: run it again after an interruption. With several devices, every process returns
    when all shards are written. `controls` choose records by their captions, and cut them.

    Raises:
        ValueError: the input cannot be used, the controls leave nothing of it, or the directory
            was begun with another encoder, input, dtype, shard size or controls (its shards would
            have been mixed with these).
    """
    sides = _sides(modality)
    if "text" in sides:
        encoder.tokenize(["a"])  # one without texts says so now, not when the pictures are done
    _announce(input, format)
    root = None if image_root is None else Path(image_root)
    selector = Selector(controls or Controls())
    plans = [
        Plan.make(
            Source(input_text(input), side, root, format),
            Path(output_dir) / SETS[side],
            encoder=encoder.identity(),
            dtype=dtype,
            rows_per_shard=_entries_per_shard(rows_per_shard, encoder, side),
            selector=selector,
        )
        for side in sides
    ]
    _record(plans)
    begun = [plan for plan in plans if plan.missing()]
    if begun:
        module = EmbeddingModule(
            encoder,
            plans,
            batch_size=batch_size,
            text_tokens=text_tokens,
            num_workers=num_workers,
            compile=compile,
        )
        logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
        warnings.filterwarnings("ignore", message=".*isinstance.treespec, LeafSpec.*")
        leave_process_group_at_exit()
        trainer = L.Trainer(
            accelerator=accelerator,
            devices=devices,
            num_nodes=num_nodes,
            callbacks=[WriteShards(plans)],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.predict(module, return_predictions=False)
    _complete(plans, begun)
    return {plan.source.side: plan.directory for plan in plans}


class EmbeddingModule(L.LightningModule):
    """The encoder inside Lightning's predict loop; one loader per feature set."""

    def __init__(
        self,
        encoder: DualEncoder,
        plans: Sequence[Plan],
        *,
        batch_size: int,
        text_tokens: int,
        num_workers: int,
        compile: bool,
    ) -> None:
        super().__init__()
        if text_tokens < 1:
            raise ValueError(f"text_tokens must be at least 1, got {text_tokens}")
        self.encoder = encoder
        self.plans = plans
        self.batch_size, self.text_tokens = batch_size, text_tokens
        self.num_workers = num_workers
        sides: tuple[Side, Side] = ("image", "text")
        calls = {side: encoder_call(encoder, side) for side in sides}
        self.calls: dict[Side, Call] = (
            {side: torch.compile(call) for side, call in calls.items()} if compile else calls
        )

    def predict_dataloader(self) -> list[DataLoader]:
        return [self._loader(plan) for plan in self.plans]

    def _loader(self, plan: Plan) -> DataLoader:
        dataset = EmbeddingDataset(
            plan,
            self.encoder,
            own_shards(plan, self.trainer),
            batch_size=self.batch_size,
            text_tokens=self.text_tokens,
        )
        return DataLoader(
            dataset,
            batch_size=None,
            num_workers=self.num_workers,
            worker_init_fn=begin_worker,
            pin_memory=self.trainer.strategy.root_device.type == "cuda",
        )

    def predict_step(self, batch: Batch, *_: Any) -> Tensor:
        """Rows in the order of the batch's records."""
        rows = batch.encode(self.calls[batch.side])
        return torch.empty(0, self.encoder.feature_dim(batch.side)) if rows is None else rows


def own_shards(plan: Plan, trainer: L.Trainer) -> list[int]:
    """The missing shards that this rank writes."""
    return [k for k in plan.missing() if k % trainer.world_size == trainer.global_rank]


class WriteShards(L.Callback):
    """Write the rows of every batch to its shard, and a shard when its last batch has come."""

    def __init__(self, plans: Sequence[Plan]) -> None:
        self.plans = {plan.source.side: plan for plan in plans}
        self._open: OpenShard | None = None
        self._arriving: tuple[Batch, Arrival] | None = None
        self._bar: tqdm | None = None

    def on_predict_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        stop_at_once()
        if trainer.is_global_zero:
            total = sum(
                plan.num_entries_in(k)
                for plan in self.plans.values()
                for k in own_shards(plan, trainer)
            )
            self._bar = tqdm(
                total=total, desc="embed", unit=" records", mininterval=1.0, dynamic_ncols=True
            )

    def on_predict_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        previous, self._arriving = self._arriving, (batch, Arrival(outputs))
        self._write(previous)

    def on_predict_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._write(self._arriving)
        self._arriving = None

    def _write(self, arriving: "tuple[Batch, Arrival] | None") -> None:
        if arriving is None:
            return
        batch, rows = arriving[0], arriving[1].rows()
        if self._open is None:
            self._open = OpenShard(self.plans[batch.side], batch.shard, rows.shape[1])
        self._open.add(batch, rows)
        if batch.is_last:
            self._open.finish()
            self._open = None
        if self._bar is not None:
            self._bar.update(batch.num_entries)

    def on_predict_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._close_bar()
        trainer.strategy.barrier()  # rank 0 declares the set complete when every shard is there

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        self._close_bar()
        if self._open is not None:
            self._open.abandon(exception)

    def _close_bar(self) -> None:
        if self._bar is not None:
            self._bar.close()


@rank_zero_only
def _announce(input: Inputs, format: str) -> None:
    print(described_input(input, format), flush=True)


@rank_zero_only
def _record(plans: Sequence[Plan]) -> None:
    for plan in plans:
        plan.record()


@rank_zero_only
def _complete(plans: Sequence[Plan], begun: Sequence[Plan]) -> None:
    """Declare the feature sets complete and print what they hold; `begun` had missing shards."""
    for plan in plans:
        if not (plan.directory / "header.json").exists():
            plan.write_header()
        elif plan in begun:  # a shard was lost, and may have come back with other bytes
            declare_again(plan.directory)
        header = read_header(plan.directory)
        if plan.source.selection is not None:
            print(f"{plan.directory}: {plan.source.selection.summary()}")
        print(
            f"{plan.directory}: {header.num_rows} {plan.source.side} rows of width {header.dim} "
            f"({header.dtype}) from {header.num_records} records; {header.num_rejected} rejected"
            + (f", see {plan.directory / 'quarantine.jsonl'}" if header.num_rejected else "")
            + _truncated(header)
        )


def _truncated(header: Header) -> str:
    count = sum(shard.num_truncated or 0 for shard in header.shards)
    return f"; {count} texts were longer than the encoder reads and were cut" if count else ""


def _entries_per_shard(rows_per_shard: int, encoder: DualEncoder, side: Side) -> int:
    if side == "text" or encoder.rows_per_image == 1:
        return rows_per_shard
    return max(1, rows_per_shard // encoder.rows_per_image)


def _sides(modality: str) -> list[Side]:
    known: dict[str, list[Side]] = {"both": ["image", "text"], "image": ["image"], "text": ["text"]}
    if modality not in known:
        raise ValueError(f"modality is one of {', '.join(known)}, got {modality!r}")
    return known[modality]
