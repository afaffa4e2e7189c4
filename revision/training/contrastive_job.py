"""Contrastive stages: two heads on rows of two towers, or both towers from scratch on pictures."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.loggers import Logger
from torch import Tensor

from revision.data.datamodule import PlannedDataModule
from revision.data.pairs_datamodule import ImageTextDataModule, PairedRowsDataModule
from revision.encoders.clip import ContrastiveTowers, write_towers
from revision.encoders.contrastive import (
    ContrastiveHeads,
    ContrastiveModel,
    retrieval,
    write_encoder,
)
from revision.encoders.hf import HuggingFaceEncoder
from revision.encoders.pairing import Towers
from revision.training.callbacks import log_metrics
from revision.training.gap_tracking import GapTracking
from revision.training.jobs import Build, check_encoder, schedule_of, with_weights
from revision.training.launch import num_local_processes


class ContrastiveJob(ABC):
    """Trains a `ContrastiveModel`; the result is an encoder directory with its model card."""

    data: PlannedDataModule

    def __init__(self, cfg: Any, make_model: Callable[[], ContrastiveModel]) -> None:
        self.make_model = make_model
        self.model = make_model()
        self.tracking = _tracking(cfg, self.model, self.data)

    @property
    def callbacks(self) -> list[L.Callback]:
        return [Geometry(self), *self.tracking]

    def prepare(self, batch: Any) -> Any:
        return batch

    def lower_frozen(self, dtype: torch.dtype) -> None:
        """Nothing to do: what is frozen takes no part in training."""
        return

    def save(
        self,
        weights: Mapping[str, Tensor],
        directory: Path,
        provenance: dict[str, Any],
        loggers: Sequence[Logger],
    ) -> None:
        model: ContrastiveModel = with_weights(self.make_model(), weights)
        model.log_scale.requires_grad_("log_scale" in weights)  # the card tells learned from fixed
        measured = self.retrieval(model)
        held_out = {"validation": measured} if measured else {}
        self.write(model, directory, self._training() | provenance, held_out)

    @abstractmethod
    def write(
        self,
        model: ContrastiveModel,
        directory: Path,
        training: dict[str, Any],
        held_out: dict[str, dict[str, float]],
    ) -> None:
        """Write the encoder directory; `training` and `held_out` are for its card."""

    @abstractmethod
    def inputs(self) -> dict[str, str]:
        """Where the pairs come from, for the card."""

    def _training(self) -> dict[str, Any]:
        """What the model card tells of it."""
        data, schedule = self.data, self.data.schedule
        steps, epochs = schedule.max_steps, schedule.epochs
        return self.inputs() | {
            "num_pairs": data.num_samples or sum(data.sources[0].block_sizes),
            "duration": f"{steps} steps" if steps else f"{epochs} epochs",
            "batch_size": schedule.batch_size,
        }

    def retrieval(self, model: ContrastiveModel) -> dict[str, float]:
        """Recall and gap on the held-out pairs, with their number; nothing where there are none."""
        batches = self.data.held_out_batches()
        if not batches:
            return {}
        images, texts = model.embed_all(batches)
        return retrieval(images, texts) | {"num_pairs": float(len(images))}


class HeadsJob(ContrastiveJob):
    """Two linear heads on stored rows of two frozen towers."""

    model: ContrastiveHeads

    def __init__(self, cfg: Any, data: PairedRowsDataModule, towers: Towers) -> None:
        self.data: PairedRowsDataModule = data
        self.towers = towers
        super().__init__(cfg, partial(_new_heads, cfg, towers))

    def inputs(self) -> dict[str, str]:
        images, texts = self.data.train_pair
        return {"images": str(images), "texts": str(texts)}

    def write(
        self,
        model: ContrastiveModel,
        directory: Path,
        training: dict[str, Any],
        held_out: dict[str, dict[str, float]],
    ) -> None:
        assert isinstance(model, ContrastiveHeads)
        write_encoder(model, self.towers, directory, training=training, held_out=held_out)


class TowersJob(ContrastiveJob):
    """Both towers of a CLIP, on pictures and captions."""

    model: ContrastiveTowers

    def __init__(self, cfg: Any, data: ImageTextDataModule, encoder: HuggingFaceEncoder) -> None:
        self.data: ImageTextDataModule = data
        self.encoder = encoder
        super().__init__(cfg, lambda: ContrastiveTowers(encoder))

    def inputs(self) -> dict[str, str]:
        return {"input": str(self.data.input)}

    def write(
        self,
        model: ContrastiveModel,
        directory: Path,
        training: dict[str, Any],
        held_out: dict[str, dict[str, float]],
    ) -> None:
        write_towers(self.encoder, directory, training=training, held_out=held_out)


class Geometry(L.Callback):
    """Tracks the gap and the recall of the held-out pairs while the encoder trains."""

    def __init__(self, job: ContrastiveJob) -> None:
        self.job = job

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        measured = self.job.retrieval(self.job.model)
        log_metrics(trainer, {f"val/{name}": value for name, value in measured.items()})


def contrastive_job(cfg: Any, build: Build) -> ContrastiveJob:
    """Heads on two towers where the stage names heads, else whole towers.

    Raises ValueError for features of other towers, an encoder of the wrong kind, or batches that
    are divided.
    """
    _check_batches_are_whole(cfg)
    torch.manual_seed(cfg.seed)  # towers from scratch do not depend on what was drawn before
    encoder = build(cfg.encoder)
    if cfg.stage.heads is None:
        return _towers_job(cfg, build, encoder)
    if not isinstance(encoder, Towers):
        raise ValueError(
            f"stage=contrastive trains heads on two towers, but the encoder is a "
            f"{type(encoder).__name__}; give encoder=towers or encoder=pair"
        )
    data = build(cfg.data, schedule=schedule_of(cfg))
    for directory in data.train_pair:
        check_encoder(directory, encoder)
    return HeadsJob(cfg, data, encoder)


def _towers_job(cfg: Any, build: Build, encoder: Any) -> TowersJob:
    if not isinstance(encoder, HuggingFaceEncoder) or encoder.model.config.model_type != "clip":
        raise ValueError(
            f"a stage without heads trains both towers of a CLIP, but the encoder is a "
            f"{type(encoder).__name__}; give encoder=clip_tiny, or stage=contrastive for heads"
        )
    return TowersJob(cfg, build(cfg.data, encoder=encoder, schedule=schedule_of(cfg)), encoder)


def _tracking(cfg: Any, model: ContrastiveModel, data: PlannedDataModule) -> list[GapTracking]:
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


def _new_heads(cfg: Any, towers: Towers) -> ContrastiveHeads:
    torch.manual_seed(cfg.seed)
    return ContrastiveHeads(
        image_dim=towers.feature_dim("image"),
        text_dim=towers.feature_dim("text"),
        **cfg.stage.heads,
    )
