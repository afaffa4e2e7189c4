"""`stage=contrastive`: the heads of a composed encoder, on rows of its two towers."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.loggers import Logger
from torch import Tensor

from revision.data.datamodule import PairedRowsDataModule, PlannedDataModule
from revision.encoders.composed import TowerPair
from revision.encoders.contrastive import (
    ContrastiveHeads,
    ContrastiveModel,
    retrieval,
    write_encoder,
)
from revision.training.callbacks import log_metrics
from revision.training.gap_tracking import GapTracking
from revision.training.jobs import Build, check_encoder, data_plan, with_weights
from revision.training.launch import num_local_processes


class ContrastiveJob:
    """Trains `ContrastiveHeads`; the result is an encoder directory with its model card."""

    def __init__(self, cfg: Any, data: PairedRowsDataModule, towers: TowerPair) -> None:
        self.data, self.towers = data, towers
        self.make_model = partial(_new_heads, cfg, towers)
        self.model = self.make_model()
        self.tracking = gap_tracking(cfg, self.model, data)

    @property
    def callbacks(self) -> list[L.Callback]:
        return [Geometry(self), *self.tracking]

    def prepare(self, batch: Any) -> Any:
        return batch

    def lower_frozen(self, dtype: torch.dtype) -> None:
        """Nothing to do: the towers take no part in training."""

    def save(
        self,
        weights: Mapping[str, Tensor],
        directory: Path,
        provenance: dict[str, Any],
        loggers: Sequence[Logger],
    ) -> None:
        heads: ContrastiveHeads = with_weights(self.make_model(), weights)
        heads.log_scale.requires_grad_("log_scale" in weights)  # the card tells learned from fixed
        measured = self.retrieval(heads)
        held_out = {"validation": measured} if measured else {}
        training = self._training() | provenance
        write_encoder(heads, self.towers, directory, training=training, held_out=held_out)

    def _training(self) -> dict[str, Any]:
        """What the model card tells of it."""
        data = self.data
        images, texts = data.train_pair
        return {
            "images": str(images),
            "texts": str(texts),
            "num_pairs": data.num_samples or sum(data.sources[0].block_sizes),
            "duration": f"{data.max_steps} steps" if data.max_steps else f"{data.epochs} epochs",
            "batch_size": data.batch_size,
        }

    @torch.no_grad()
    def retrieval(self, heads: ContrastiveHeads) -> dict[str, float]:
        """Recall and gap on the held-out pairs, with their number; nothing where there are none."""
        held_out = self.data.sources[1]
        if held_out is None:
            return {}
        pairs = held_out.batch(range(sum(held_out.block_sizes)))
        pairs = pairs.to(heads.log_scale.device)
        measured = retrieval(heads.image_head(pairs["image"]), heads.text_head(pairs["text"]))
        return measured | {"num_pairs": float(len(pairs))}


class Geometry(L.Callback):
    """Tracks the gap and the recall of the held-out pairs while the heads train."""

    def __init__(self, job: ContrastiveJob) -> None:
        self.job = job

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        measured = self.job.retrieval(self.job.model)
        log_metrics(trainer, {f"val/{name}": value for name, value in measured.items()})


def contrastive_job(cfg: Any, build: Build) -> ContrastiveJob:
    """Raises ValueError for features of other towers, an encoder that is no pair of towers, or
    batches that are divided."""
    _check_batches_are_whole(cfg)
    towers = build(cfg.encoder)
    if not isinstance(towers, TowerPair):
        raise ValueError(
            f"stage=contrastive trains heads on two towers, but the encoder is a "
            f"{type(towers).__name__}; give encoder=towers"
        )
    data = build(cfg.data, **data_plan(cfg))
    for directory in data.train_pair:
        check_encoder(directory, towers)
    return ContrastiveJob(cfg, data, towers)


def gap_tracking(cfg: Any, model: ContrastiveModel, data: PlannedDataModule) -> list[GapTracking]:
    """What `stage.track` asks for: one callback, or none."""
    if cfg.stage.track.every is None:
        return []
    return [GapTracking(model, data, **cfg.stage.track)]


def _check_batches_are_whole(cfg: Any) -> None:
    processes = num_local_processes(cfg.accelerator, cfg.devices) * cfg.num_nodes
    if cfg.stage.accumulate != 1 or processes != 1:
        raise ValueError(
            f"stage=contrastive compares the {cfg.stage.batch_size} pairs of one batch on one "
            f"device, and got stage.accumulate={cfg.stage.accumulate} and {processes} processes, "
            "which would add no negatives to it; set stage.accumulate=1, devices=1 and "
            "num_nodes=1, and raise stage.batch_size"
        )


def _new_heads(cfg: Any, towers: TowerPair) -> ContrastiveHeads:
    torch.manual_seed(cfg.seed)
    return ContrastiveHeads(
        image_dim=towers.feature_dim("image"),
        text_dim=towers.feature_dim("text"),
        **cfg.stage.heads,
    )
