"""What a run reports about itself: losses, learning rate, speed, memory, time waiting for data.

Numbers are written to the loggers here rather than through `self.log`, for two reasons: a loss is
one sum over one count, never a mean of means, and the line of a step must be on disk before the
checkpoint of that step is.
"""

import resource
import sys
import time
from typing import Any

import lightning as L
import torch
from lightning.pytorch.profilers import Profiler
from tqdm.auto import tqdm

from revision.training.module import TrainingModule
from revision.training.optim import cosine_with_warmup


class DataWait(Profiler):
    """Seconds that the training loop stood still for the next batch, since the last `take`."""

    def __init__(self) -> None:
        super().__init__()
        self.waited_s = 0.0
        self.started_at = 0.0

    def start(self, action_name: str) -> None:
        if action_name.endswith("train_dataloader_next"):
            self.started_at = time.perf_counter()

    def stop(self, action_name: str) -> None:
        if action_name.endswith("train_dataloader_next"):
            self.waited_s += time.perf_counter() - self.started_at

    def take(self) -> float:
        waited, self.waited_s = self.waited_s, 0.0
        return waited


class RunMetrics(L.Callback):
    """Writes the training numbers of every `log_every` steps and those of every validation.

    `loss` is that of the step itself (sum over target tokens / their number, all processes), so
    its curve does not depend on when a run was interrupted. Speeds are means since the previous
    line; `tokens_per_s` counts sequence positions without padding, a picture's slot as one.
    """

    def __init__(self, data_wait: DataWait, *, log_every: int = 1) -> None:
        self.data_wait = data_wait
        self.log_every = log_every
        self._restart_clock()

    def _restart_clock(self) -> None:
        self.started_at = time.perf_counter()
        self.paused_s = 0.0
        self.num_tokens = 0
        self.num_samples = 0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._restart_clock()

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        self.num_samples += len(batch)
        self.num_tokens += _num_tokens(batch)
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        step = trainer.global_step
        assert isinstance(pl_module, TrainingModule)
        if step >= pl_module.total_steps:
            trainer.should_stop = True  # Lightning then validates once more, after the last step
        if step % self.log_every == 0 or step >= pl_module.total_steps:
            log_metrics(trainer, self._training_numbers(trainer, pl_module))
            self._restart_clock()

    def _training_numbers(self, trainer: L.Trainer, module: TrainingModule) -> dict[str, float]:
        elapsed = max(1e-9, time.perf_counter() - self.started_at - self.paused_s)
        waited = self.data_wait.take()
        sums = module.sum_over_processes(
            [float(module.window_loss), self.num_tokens, self.num_samples, waited]
        ).tolist()
        numbers = {
            "train/loss": sums[0] / max(1.0, float(module.window_targets)),
            "train/learning_rate": _last_learning_rate(trainer, module),
            "speed/tokens_per_s": sums[1] / elapsed,
            "speed/samples_per_s": sums[2] / elapsed,
            "speed/data_wait_share": sums[3] / trainer.world_size / elapsed,
            **_peak_memory(),
        }
        norm = gradient_norm(trainer, module)
        return numbers if norm is None else {**numbers, "train/gradient_norm": norm}

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.validation_started_at = time.perf_counter()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, TrainingModule)
        assert pl_module.validation_loss is not None
        log_metrics(trainer, {"val/loss": pl_module.validation_loss})
        self.paused_s += time.perf_counter() - self.validation_started_at


class StepBar(L.Callback):
    """A bar over the optimiser steps of the run, refreshed at most once a second.

    Departs from Lightning's bars, which count micro-batches and draw each of them.
    """

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, TrainingModule)
        self.bar = tqdm(
            desc="train",
            total=pl_module.total_steps,
            initial=trainer.global_step,
            unit="step",
            disable=not trainer.is_global_zero,
            mininterval=1.0,
            dynamic_ncols=True,
        )

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        assert isinstance(pl_module, TrainingModule)
        done = trainer.global_step - self.bar.n
        if done and not self.bar.disable:
            own_loss = float(pl_module.window_loss) / max(1, batch.window_targets)
            self.bar.set_postfix(loss=f"{own_loss:.3f}", refresh=False)
            self.bar.update(done)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.bar.set_description("validate")

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, TrainingModule)
        self.bar.set_description(f"train (val loss {pl_module.validation_loss:.3f})")

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.bar.close()


def pause_clock(trainer: L.Trainer, seconds: float) -> None:
    """Leave `seconds`, which a callback took for its own measurements, out of the next speed."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, RunMetrics):
            callback.paused_s += seconds


def log_metrics(trainer: L.Trainer, numbers: dict[str, float]) -> None:
    """Send `numbers` to every logger, under the number of optimiser steps done."""
    for logger in trainer.loggers:
        logger.log_metrics(numbers, step=trainer.global_step)


def gradient_norm(trainer: L.Trainer, module: TrainingModule) -> float | None:
    """The global gradient norm before clipping of the last step, where the strategy knows it."""
    norm = module.grad_norm
    if trainer.strategy.handles_gradient_accumulation:
        norm = trainer.model.get_global_grad_norm()  # type: ignore[union-attr, operator]
    if norm is None:
        return None
    full = getattr(norm, "full_tensor", None)  # a DTensor
    return float(full() if full is not None else norm)


def _last_learning_rate(trainer: L.Trainer, module: TrainingModule) -> float:
    factor = cosine_with_warmup(module.total_steps, module.settings.warmup_ratio)
    return module.settings.learning_rate * factor(trainer.global_step - 1)


def _num_tokens(batch: Any) -> int:
    lengths = getattr(batch, "lengths", None)  # pairs of rows have none
    return len(batch) if lengths is None else int(lengths.sum())


def _peak_memory() -> dict[str, float]:
    kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    scale = 2**30 if sys.platform == "darwin" else 2**20
    peaks = {"memory/peak_host_gib": kib / scale}
    if torch.cuda.is_available():
        peaks["memory/peak_gpu_gib"] = torch.cuda.max_memory_allocated() / 2**30
    return peaks
