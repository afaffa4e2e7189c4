"""The one LightningModule: every stage trains through it.

The model maps a batch to the SUM of its losses over target tokens. With B the micro-batches of
one optimiser step on all processes, the gradient of

    L = sum_{b in B} sum_b / sum_{b in B} n_b

is the same however B is cut into processes, accumulation and batch size. Lightning divides by the
accumulation and averages over processes, so a micro-batch returns sum_b * processes *
accumulation / N, with N the all-reduced number of targets of the window. (Under DeepSpeed both
Lightning 2.6 and DeepSpeed 0.19 divide by the accumulation, which Adam hides and clipping does
not; the factor is then squared.)

Letters: sum_b loss sum of a micro-batch; n_b its target tokens; N = sum n_b over the window.
"""

from collections.abc import Callable, Sequence
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn

from revision.training.optim import OptimizerSettings, adamw, cosine_with_warmup
from revision.training.resume import align_micro_batches
from revision.training.trainable import select_trainable, set_modes


class TrainingModule(L.LightningModule):
    """Trains the parameters of `model` that match `trainable`, for `total_steps` steps.

    `model(batch)` returns a `LossSum`; `batch.window_targets` is the number of target tokens in
    this process's part of the accumulation window. Random numbers (dropout) are a function of
    `seed`, step and process, so a resumed run draws what the undisturbed one would have drawn.
    `prepare` maps a batch that has reached the device to what the model takes.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        trainable: Sequence[str],
        optimizer: OptimizerSettings,
        total_steps: int,
        seed: int = 0,
        prepare: Callable[[Any], Any] | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.trainable = select_trainable(model, trainable)
        self.settings = optimizer
        self.total_steps = total_steps
        self.seed = seed
        self.prepare = prepare
        self.strict_loading = False  # a checkpoint holds the trainable set only
        self.window_loss = torch.zeros((), dtype=torch.float64)
        self.window_targets = torch.zeros((), dtype=torch.float64)
        self.batch_loss = torch.zeros(())
        self.grad_norm: float | Tensor | None = None
        self.validation_sums = torch.zeros(2, dtype=torch.float64)
        self.validation_loss: float | None = None

    def configure_model(self) -> None:
        """Lets a strategy that shards modules do so, once."""
        shard = getattr(self.trainer.strategy, "shard", None)
        if shard is not None:
            shard(self.model)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        optimizer = adamw(self.model.named_parameters(), self.settings)
        factor = cosine_with_warmup(self.total_steps, self.settings.warmup_ratio)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return batch if self.prepare is None else self.prepare(batch)

    def on_train_start(self) -> None:
        set_modes(self.model)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        accumulate = self.trainer.accumulate_grad_batches
        if batch_idx % accumulate == 0:
            self._start_window(batch)
        torch.manual_seed(_step_seed(self.seed, batch_idx, self.global_rank))
        output = self.model(batch)
        self.batch_loss = output.loss.detach()
        self.window_loss += self.batch_loss
        divided_by = accumulate**2 if self._has_deepspeed else accumulate
        scale = self.trainer.world_size * divided_by / self.window_targets.clamp(min=1)
        return output.loss * scale.to(output.loss.dtype)

    @property
    def _has_deepspeed(self) -> bool:
        return self.trainer.strategy.handles_gradient_accumulation

    def _start_window(self, batch: Any) -> None:
        """Count the targets of the step. A process may have none; where no process has any, all
        raise ValueError: the step would silently do nothing."""
        self.window_targets = self.sum_over_processes([batch.window_targets])[0]
        if not batch.window_targets and not self.window_targets:  # seldom waits for the device
            raise ValueError(
                f"step {self.global_step + 1}: none of its records has a target token; check the "
                "template, the length limit and the answers of the data"
            )
        self.window_loss = torch.zeros((), dtype=torch.float64, device=self.window_targets.device)

    def configure_gradient_clipping(
        self,
        optimizer: Any,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clips to the global norm and keeps that norm; DeepSpeed does both inside its step."""
        if self._has_deepspeed:
            return
        parameters = [p for p in self.model.parameters() if p.grad is not None]
        bound = gradient_clip_val or float("inf")
        self.grad_norm = nn.utils.clip_grad_norm_(parameters, bound)

    def on_validation_epoch_start(self) -> None:
        self.validation_sums = torch.zeros(2, dtype=torch.float64)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        output = self.model(batch)
        self.validation_sums[0] += float(output.loss)
        self.validation_sums[1] += float(output.num_targets)

    def on_validation_epoch_end(self) -> None:
        total, count = self.sum_over_processes(self.validation_sums.tolist()).tolist()
        self.validation_loss = total / max(1.0, count)

    def on_validation_end(self) -> None:
        set_modes(self.model)

    def sum_over_processes(self, values: Sequence[int | float]) -> Tensor:
        """The float64 sums of `values` over all processes, on every process."""
        tensor = torch.tensor(list(values), dtype=torch.float64, device=self.device)
        summed = self.trainer.strategy.reduce(tensor, reduce_op="sum")
        assert isinstance(summed, Tensor)
        return summed

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keeps the trainable set: the frozen weights are in the artefact the run started from."""
        wanted = {f"model.{name}" for name in self.trainable}
        state = checkpoint["state_dict"]
        checkpoint["state_dict"] = {name: state[name] for name in state if name in wanted}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Checks that a whole-file checkpoint holds exactly the trainable set."""
        align_micro_batches(checkpoint, self.trainer.accumulate_grad_batches)
        if "state_dict" not in checkpoint:
            return  # a sharded checkpoint, already loaded and checked by its strategy
        wanted = {f"model.{name}" for name in self.trainable}
        found = set(checkpoint["state_dict"])
        if wanted != found:
            raise ValueError(
                f"the checkpoint holds {len(found)} trained tensors and this stage trains "
                f"{len(wanted)} (first difference: {sorted(wanted ^ found)[0]}); "
                "it belongs to another stage: choose another name"
            )


def _step_seed(seed: int, batch_idx: int, rank: int) -> int:
    return ((seed * 1_000_003 + batch_idx) * 65_537 + rank) % 2**63  # what torch takes
