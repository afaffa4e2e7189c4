"""Resume checkpoints: atomic, of the trainable set, at optimiser steps.

`<run_dir>/checkpoints/step-00000120/` holds `state` (a file, or a directory under a sharding
strategy) and `about.json` (step, strategy, processes, where the data stands). It is written under
a temporary name and renamed, so it exists whole or not at all; older ones are removed afterwards.

Checkpoints fall on whole optimiser steps and after the validation of the same step, and the data
order is a function of the step alone, so a run that is killed and started again computes what
the undisturbed run computes. The step before the last is always saved: a run that is killed
while it writes its model directory repeats one step.

A run of which any process is asked to stop (SIGTERM) saves at the next step and ends with status
143.
"""

import json
import math
import shutil
import time
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Checkpoint

from revision.data.datamodule import PlannedDataModule
from revision.files import fsync, fsync_tree
from revision.training.stopping import STATUS, StopRequest

STATE_NAME = "state"
ABOUT_NAME = "about.json"
_WHOLE = ("SingleDeviceStrategy", "DDPStrategy")  # checkpoints that fit any number of processes


class ResumeCheckpoint(Checkpoint):
    """Saves every `every_steps` optimiser steps or `every_minutes`, whichever comes first.

    None of either is never, and a last checkpoint before the last step is written in any case.
    """

    def __init__(
        self,
        directory: Path,
        *,
        total_steps: int,
        every_minutes: float | None = 10.0,
        every_steps: int | None = None,
    ) -> None:
        self.directory = directory
        self.total_steps = total_steps
        self.every_minutes = every_minutes
        self.every_steps = every_steps
        self.saved_at = time.monotonic()
        self.stop = StopRequest()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.saved_at = time.monotonic()
        self.stop.listen()

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self.stop.forget()

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        stepped = (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        if stepped and not _validates_after(trainer, batch_idx):
            self._save_if_due(trainer)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._save_if_due(trainer)

    def _save_if_due(self, trainer: L.Trainer) -> None:
        step = trainer.global_step
        if step >= self.total_steps:
            return
        by_step = bool(self.every_steps) and step % (self.every_steps or 1) == 0
        is_late, must_stop = self._requests(trainer)
        if by_step or step == self.total_steps - 1 or is_late or must_stop:
            save_checkpoint(trainer, self.directory)
            self.saved_at = time.monotonic()
        if must_stop:
            if trainer.is_global_zero:
                print(f"Stopped on request after step {step}; the same command continues")
            raise SystemExit(STATUS)

    def _requests(self, trainer: L.Trainer) -> tuple[bool, bool]:
        """Whether a checkpoint is due by time, and whether to stop, for any of the processes."""
        minutes = math.inf if self.every_minutes is None else self.every_minutes
        late = time.monotonic() - self.saved_at >= 60 * minutes
        requests = late, self.stop.is_made
        if trainer.world_size == 1:
            return requests
        made = torch.tensor(requests, dtype=torch.float32, device=trainer.strategy.root_device)
        votes = trainer.strategy.reduce(made, reduce_op="sum")
        assert isinstance(votes, torch.Tensor)
        late, must_stop = votes.tolist()  # what one process was asked, all do together
        return late > 0, must_stop > 0


def save_checkpoint(trainer: L.Trainer, directory: Path) -> Path:
    """Write the checkpoint of the current step and remove the older ones; all processes call it."""
    step = trainer.global_step
    final = directory / f"step-{step:08d}"
    temporary = directory / f".{final.name}.tmp"
    if trainer.is_global_zero:
        for leftover in directory.glob(".step-*.tmp"):  # of a run that was killed while it wrote
            shutil.rmtree(leftover, ignore_errors=True)
        temporary.mkdir(parents=True)
    trainer.strategy.barrier()
    try:
        trainer.save_checkpoint(temporary / STATE_NAME)
    except RuntimeError as error:
        if "PytorchStreamWriter" not in str(error):
            raise
        raise OSError(f"cannot write {temporary}: {error}; is the disk full?") from error
    trainer.strategy.barrier()
    if trainer.is_global_zero:
        (temporary / ABOUT_NAME).write_text(json.dumps(_about(trainer)))
        fsync_tree(temporary)
        shutil.rmtree(final, ignore_errors=True)
        temporary.replace(final)
        fsync(directory)
        for old in set(directory.glob("step-*")) - {final}:
            shutil.rmtree(old)
    trainer.strategy.barrier()
    return final


def latest_checkpoint(directory: Path) -> Path | None:
    """The newest complete checkpoint, if there is one."""
    complete = sorted(p for p in directory.glob("step-*") if (p / ABOUT_NAME).exists())
    return complete[-1] if complete else None


def checkpoint_step(checkpoint: Path) -> int:
    """The number of optimiser steps that `checkpoint` has behind it."""
    return int(read_about(checkpoint)["step"])


def check_continues(checkpoint: Path, trainer: L.Trainer) -> None:
    """Raise where a checkpoint cannot be continued by this trainer.

    Raises:
        ValueError: another strategy or number of processes, and the checkpoint is sharded or does
            not say where the data stands; shards would not fit, or records would be repeated.
    """
    saved, now = read_about(checkpoint), _about(trainer)
    if "data" in saved and {saved["strategy"], now["strategy"]} <= set(_WHOLE):
        return
    for key in ("strategy", "processes"):
        if saved[key] != now[key]:
            raise ValueError(
                f"{checkpoint} was saved with {key} = {saved[key]} and this run has "
                f"{now[key]}; start it again as before, or choose another name"
            )


def _about(trainer: L.Trainer) -> dict[str, Any]:
    about = {
        "step": trainer.global_step,
        "strategy": type(trainer.strategy).__name__,
        "processes": trainer.world_size,
    }
    data = getattr(trainer, "datamodule", None)
    if isinstance(data, PlannedDataModule):
        about["data"] = data.facts(trainer.global_step, trainer.world_size)
    return about


def read_about(checkpoint: Path) -> dict[str, Any]:
    """What is known of a checkpoint without loading it."""
    about: dict[str, Any] = json.loads((checkpoint / ABOUT_NAME).read_text())
    return about


def _validates_after(trainer: L.Trainer, batch_idx: int) -> bool:
    """Whether Lightning validates after this micro-batch; the checkpoint then waits for it."""
    if not trainer.enable_validation:
        return False
    every = trainer.val_check_batch
    return trainer.should_stop or (every is not None and (batch_idx + 1) % every == 0)
