"""One training run: build the trainer, continue where a killed run stopped, gather the result.

A run directory holds `config.yaml`, `metrics.csv`, `checkpoints/` while it trains, and its result
(`model/` or `encoder/`) at the end. Starting the same command again continues after the newest
checkpoint, or says that the run is done.
"""

import logging
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.loggers import Logger
from torch import Tensor

from revision.data.datamodule import tell
from revision.models.llm import has_bfloat16
from revision.training.callbacks import DataWait, RunMetrics, StepBar
from revision.training.checkpoint import (
    ResumeCheckpoint,
    check_continues,
    checkpoint_step,
    latest_checkpoint,
)
from revision.training.launch import leave_process_group_at_exit, uses_gpu
from revision.training.leftovers import CHECKPOINTS
from revision.training.metrics_file import MetricsFile, truncate_metrics
from revision.training.module import TrainingModule
from revision.training.nonfinite import NonFiniteGuard
from revision.training.resume import describe_change
from revision.training.strategies import trained_weights

METRICS = "metrics.csv"
HALF = ("bf16-mixed", "16-mixed", "bf16-true", "16-true")
"""Precisions in which a model computes in 16 bits."""

_QUIET = (
    ".*does not have many workers.*",
    ".*smaller than the logging interval.*",
    ".*You're resuming from a checkpoint that ended before the epoch ended.*",
    ".*in eval mode at the start of training.*",
    ".*DeepSpeed handles gradient clipping internally.*",
    ".*Checkpoint directory .* exists and is not empty.*",
    ".*`pin_memory` argument is set as true.*",
    ".*Total length of `list` across ranks is zero.*",
    ".*You have overridden `on_after_batch_transfer` in `LightningModule`.*",
    ".*isinstance.treespec, LeafSpec.*",
)


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """How a run is carried out; none of it changes the result beyond rounding, but `accumulate`
    and `max_grad_norm`.

    `val_every` is in optimiser steps (None: only after the last one), as is `log_every`.
    """

    accumulate: int = 1
    max_grad_norm: float | None = None
    accelerator: str = "auto"
    devices: Any = "auto"
    num_nodes: int = 1
    precision: str = "auto"
    val_every: int | None = None
    log_every: int = 1
    checkpoint_minutes: int | float | None = 10
    checkpoint_steps: int | None = None
    on_nonfinite: str = "stop"
    progress: bool = True

    @classmethod
    def of(cls, cfg: Any) -> "RunSettings":
        """Those of a composed `conf/train.yaml`."""
        keys = [field.name for field in fields(cls) if field.name in cfg]
        return cls(
            accumulate=cfg.stage.accumulate,
            max_grad_norm=cfg.stage.optimizer.max_grad_norm,
            **{key: cfg[key] for key in keys},
        )

    @property
    def resolved_precision(self) -> str:
        """`auto` is bfloat16 mixed precision where the hardware has it, float32 elsewhere."""
        if self.precision != "auto":
            return self.precision
        device = torch.device("cuda" if uses_gpu(self.accelerator) else "cpu")
        return "bf16-mixed" if has_bfloat16(device) else "32-true"


def make_trainer(
    run_dir: Path,
    settings: RunSettings,
    *,
    total_steps: int,
    strategy: Any = "auto",
    loggers: Sequence[Logger] = (),
    callbacks: Sequence[L.Callback] = (),
) -> L.Trainer:
    """A trainer for `total_steps` optimiser steps that writes into `run_dir`."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    for message in _QUIET:
        warnings.filterwarnings("ignore", message)
    run_dir.mkdir(parents=True, exist_ok=True)
    val_every = settings.val_every or total_steps
    data_wait = DataWait()
    leave_process_group_at_exit()
    return L.Trainer(
        default_root_dir=run_dir,
        accelerator=settings.accelerator,
        devices=settings.devices,
        num_nodes=settings.num_nodes,
        strategy=strategy,
        precision=settings.resolved_precision,  # type: ignore[arg-type]
        max_steps=total_steps,
        accumulate_grad_batches=settings.accumulate,
        gradient_clip_val=settings.max_grad_norm,
        val_check_interval=val_every * settings.accumulate,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        logger=[MetricsFile(run_dir / METRICS), *loggers],
        profiler=data_wait,
        enable_model_summary=False,
        enable_progress_bar=False,
        callbacks=[
            RunMetrics(data_wait, log_every=settings.log_every),
            ResumeCheckpoint(
                run_dir / CHECKPOINTS,
                total_steps=total_steps,
                every_minutes=settings.checkpoint_minutes,
                every_steps=settings.checkpoint_steps,
            ),
            NonFiniteGuard(settings.on_nonfinite),
            *([StepBar()] if settings.progress else []),
            *callbacks,
        ],
    )


def fit(
    trainer: L.Trainer, module: TrainingModule, data: L.LightningDataModule, run_dir: Path
) -> dict[str, Tensor]:
    """Train to the end, from the newest checkpoint if there is one.

    Returns the trained weights by parameter name, whole and float32, on process 0 (nothing on
    the others). The caller writes its result from them and then calls `leftovers.finish`.
    """
    checkpoint = latest_checkpoint(run_dir / CHECKPOINTS)
    if checkpoint is not None:
        check_continues(checkpoint, trainer)
        tell(f"Continuing after step {checkpoint_step(checkpoint)} of {module.total_steps}")
        change = describe_change(checkpoint, data, trainer.world_size)
        if change is not None:
            tell(change)
    if trainer.is_global_zero:
        last_kept = -1 if checkpoint is None else checkpoint_step(checkpoint)
        truncate_metrics(run_dir / METRICS, last_kept)
    result = _GatherResult()
    trainer.callbacks.append(result)  # type: ignore[attr-defined]
    state = None if checkpoint is None else checkpoint / "state"
    trainer.fit(module, datamodule=data, ckpt_path=state, weights_only=True)
    assert trainer.global_step == module.total_steps, "the data plan is shorter than the run"
    return result.weights


class _GatherResult(L.Callback):
    """Gathers the weights while the strategy still has its shards and process group."""

    def __init__(self) -> None:
        self.weights: dict[str, Tensor] = {}

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, TrainingModule)
        if trainer.global_step >= pl_module.total_steps:
            self.weights = trained_weights(trainer, pl_module.model)
