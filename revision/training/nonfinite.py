"""What happens when a gradient is not a number: the run stops, or leaves the step out.

The gradient is looked at before the optimiser uses it, so the weights and the last checkpoint are
as they were. After the reduction over processes every process sees the same gradient and decides
alike; the process whose data it was names the samples.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import lightning as L
import torch
from torch import Tensor, nn

from revision.training.module import TrainingModule

_NUM_NAMED = 16


class NonFiniteGuard(L.Callback):
    """Checks each optimiser step; `reaction` is "stop" or "skip".

    A skipped step changes no weight and no state of the optimiser; `num_skipped` counts them, from
    the start of this process. Under DeepSpeed, which keeps its gradients, the loss is checked and a
    step cannot be skipped. In float16 the loss is checked too: there a gradient that overflows is
    ordinary, the loss scaler leaves the step out and lowers its scale.

    Raises:
        ValueError: for "stop", naming the samples of the micro-batches whose loss is not finite;
            an unknown reaction.
    """

    def __init__(self, reaction: Literal["stop", "skip"] | str = "stop") -> None:
        if reaction not in ("stop", "skip"):
            raise ValueError(f"on_nonfinite is stop or skip, got {reaction!r}")
        self.reaction = reaction
        self.num_skipped = 0
        self._window: list[tuple[Sequence[str], Tensor]] = []
        self._ids: Sequence[str] = ()

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx % trainer.accumulate_grad_batches == 0:
            self._window = []
        self._ids = getattr(batch, "ids", ())

    def on_after_backward(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, TrainingModule)
        self._window.append((self._ids, pl_module.batch_loss))

    def on_before_optimizer_step(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Any
    ) -> None:
        assert isinstance(pl_module, TrainingModule)
        deepspeed = trainer.strategy.handles_gradient_accumulation
        by_loss = deepspeed or getattr(trainer.precision_plugin, "scaler", None) is not None
        if _loss_is_finite(pl_module) if by_loss else _is_finite(pl_module.model):
            return
        blamed = self._blamed()
        report = _report(trainer.global_step, blamed)
        if self.reaction == "stop" or deepspeed:
            raise ValueError(report)
        for parameter in pl_module.model.parameters():
            parameter.grad = None
        self.num_skipped += 1
        if trainer.is_global_zero or blamed:
            print(f"Skipped ({self.num_skipped} so far): {report}")

    def _blamed(self) -> list[str]:
        """The samples of this process's micro-batches whose loss is not finite."""
        found = [(ids, float(loss)) for ids, loss in self._window]
        return [name for ids, loss in found if not math.isfinite(loss) for name in ids]


def _report(step: int, blamed: Sequence[str]) -> str:
    if blamed:
        more = f" and {len(blamed) - _NUM_NAMED} more" if len(blamed) > _NUM_NAMED else ""
        cause = f"the loss of samples {', '.join(blamed[:_NUM_NAMED])}{more} is not finite"
    else:
        cause = "the losses of this process are finite"
    return (
        f"step {step + 1}: the gradient is not finite; {cause}. The weights are those of step "
        f"{step}. Look at the samples, lower the learning rate, set "
        "stage.optimizer.max_grad_norm, or leave such steps out with on_nonfinite=skip"
    )


def _is_finite(model: nn.Module) -> bool:
    norms = _norms(p.grad for p in model.parameters() if p.grad is not None)
    return all(math.isfinite(norm) for norm in norms)


def _norms(gradients: Iterable[Tensor]) -> list[float]:
    """The norm of all gradients, for each kind of tensor (whole or sharded) that there is."""
    kinds: dict[type, list[Tensor]] = {}
    for gradient in gradients:
        kinds.setdefault(type(gradient), []).append(gradient)
    totals = [torch.nn.utils.get_total_norm(tensors) for tensors in kinds.values()]
    return [
        float(total.full_tensor() if hasattr(total, "full_tensor") else total) for total in totals
    ]


def _loss_is_finite(module: TrainingModule) -> bool:
    return math.isfinite(float(module.sum_over_processes([float(module.window_loss)])[0]))
