"""Tracks the fixed-frame decomposition of the gap while a dual encoder trains.

At step 0, every `every` steps and after the last one, the held-out pairs and a fixed set of
training batches pass through the model; `revision.geometry.dynamics` turns their rows and the
gradients of the loss at them into numbers, which go to the loggers as `gap/<name>`. At the end the
curves are drawn into `gap_dynamics.png` in the run directory.

The frame comes from the held-out pairs, the gradients from training pairs, as in
arXiv:2602.07026v3, App. H.1. Departs from it in taking the same training batches at every logging
step, the first ones of the plan: what moves a curve is then the encoder alone.

Nothing here changes the training. The state is part of the resume checkpoint.
"""

import time
from functools import cached_property
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch

from revision.data.datamodule import PlannedDataModule
from revision.encoders.contrastive import ContrastiveModel
from revision.geometry.dynamics import GapTracker
from revision.geometry.gradients import Gradients, info_nce_gradients
from revision.report.gap_dynamics import draw_gap_dynamics
from revision.training.callbacks import log_metrics, pause_clock
from revision.training.metrics_file import read_metrics
from revision.training.module import TrainingModule

PREFIX = "gap/"
FIGURE = "gap_dynamics.png"


class GapTracking(L.Callback):
    """Measures `model` on the held-out pairs and on `gradient_batches` training batches of `data`.

    `rank` is that of the frame, which follows the encoder until `freeze_step` and rests after it.
    The batches are read once and kept.

    Raises ValueError where `data` has no held-out pairs.
    """

    def __init__(
        self,
        model: ContrastiveModel,
        data: PlannedDataModule,
        *,
        every: int,
        rank: int,
        freeze_step: int,
        gradient_batches: int,
    ) -> None:
        if data.sources[1] is None:
            raise ValueError(
                f"stage.track.every={every} measures held-out pairs and there are none; give "
                "them as data.val_*, or set stage.track.every=null"
            )
        self.model, self.data = model, data
        self.every, self.gradient_batches = every, gradient_batches
        self.tracker = GapTracker(rank=rank, freeze_step=freeze_step)

    @cached_property
    def probe(self) -> list[Any]:
        return self.data.held_out_batches()

    @cached_property
    def training(self) -> list[Any]:
        return self.data.first_batches(self.gradient_batches)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.global_step == 0:
            self._measure(trainer)

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        assert isinstance(pl_module, TrainingModule)
        step = trainer.global_step
        if step % self.every == 0 or step >= pl_module.total_steps:
            self._measure(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, TrainingModule)
        if trainer.global_step >= pl_module.total_steps:
            run_dir = Path(trainer.default_root_dir)
            curves = read_metrics(run_dir / "metrics.csv")
            chosen = {
                name.removeprefix(PREFIX): curve
                for name, curve in curves.items()
                if name.startswith(PREFIX)
            }
            draw_gap_dynamics(
                run_dir / FIGURE, chosen, rank=self.tracker.rank, title=f"gap in {run_dir.name}"
            )

    def state_dict(self) -> dict[str, Any]:
        """Tensors and numbers, which a checkpoint may hold."""
        state = self.tracker.state_dict()
        return {
            name: torch.from_numpy(np.ascontiguousarray(value))
            if isinstance(value, np.ndarray)
            else value
            for name, value in state.items()
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.tracker.load_state_dict(
            {
                name: value.cpu().numpy() if isinstance(value, torch.Tensor) else value
                for name, value in state_dict.items()
            }
        )

    def _measure(self, trainer: L.Trainer) -> None:
        started_at = time.perf_counter()
        image, text = (rows.double().cpu().numpy() for rows in self.model.embed_all(self.probe))
        measured = self.tracker.measure(trainer.global_step, image, text, self._gradients())
        log_metrics(trainer, {f"{PREFIX}{name}": value for name, value in measured.items()})
        pause_clock(trainer, time.perf_counter() - started_at)

    def _gradients(self) -> Gradients:
        """At the rows of every training batch, each batch with its own negatives."""
        scale = self.model.scale.item()
        parts = []
        for batch in self.training:
            image, text = (rows.double().cpu().numpy() for rows in self.model.embed_all([batch]))
            parts.append(info_nce_gradients(image, text, scale))
        return Gradients(
            np.concatenate([part.image for part in parts]),
            np.concatenate([part.text for part in parts]),
        )
