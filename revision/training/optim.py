"""AdamW parameter groups and the cosine schedule with linear warm-up.

    factor(s) = (s + 1) / W                                   s < W
    factor(s) = (1 + cos(pi * (s - W) / (S - W))) / 2         s >= W,   W = ceil(ratio * S)

Groups: weight decay for matrices, none for vectors (biases, norms), each at the base learning
rate or at the projector's own, as in haotian-liu/LLaVA llava/train/llava_trainer.py:162-209.
Departs from the schedule of `transformers`, which runs the first step at a learning rate of 0.

Letters: s optimiser step from 0; S total steps; W warm-up steps.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

PROJECTOR_PREFIX = "projector."


@dataclass(frozen=True, kw_only=True)
class OptimizerSettings:
    """The numbers of a stage that concern the optimiser.

    `max_grad_norm` is the bound on the global gradient norm, None for no clipping (the public
    LLaVA and ReVision recipes do not clip). `projector_learning_rate` None means the base rate.
    """

    learning_rate: float
    projector_learning_rate: float | None = None
    weight_decay: float = 0.0
    warmup_ratio: float = 0.03
    max_grad_norm: float | None = None
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8

    def __post_init__(self) -> None:
        if not 0 <= self.warmup_ratio < 1:
            raise ValueError(
                f"stage.optimizer.warmup_ratio is {self.warmup_ratio}; it must be in [0, 1)"
            )
        if self.learning_rate <= 0:
            raise ValueError(
                f"stage.optimizer.learning_rate is {self.learning_rate}; it must be above 0"
            )


def parameter_groups(
    named: Iterable[tuple[str, nn.Parameter]], settings: OptimizerSettings
) -> list[dict[str, Any]]:
    """Groups for AdamW over the trainable parameters of `named`; empty groups are left out."""
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in named:
        if not parameter.requires_grad:
            continue
        rate = settings.learning_rate
        if settings.projector_learning_rate is not None and name.startswith(PROJECTOR_PREFIX):
            rate = settings.projector_learning_rate
        decay = settings.weight_decay if _num_axes(parameter) >= 2 else 0.0
        groups.setdefault((rate, decay), []).append(parameter)
    return [
        {"params": parameters, "lr": rate, "weight_decay": decay}
        for (rate, decay), parameters in groups.items()
    ]


def adamw(
    named: Iterable[tuple[str, nn.Parameter]], settings: OptimizerSettings
) -> torch.optim.AdamW:
    """AdamW over the trainable parameters; it refuses an empty set."""
    groups = parameter_groups(named, settings)
    if not groups:
        raise ValueError("no parameter trains: stage.trainable selects 0; name some patterns")
    return torch.optim.AdamW(
        groups, lr=settings.learning_rate, betas=settings.betas, eps=settings.eps
    )


def cosine_with_warmup(total_steps: int, warmup_ratio: float) -> Callable[[int], float]:
    """The factor on the learning rate as a function of the optimiser step, from 0."""
    warmup = math.ceil(total_steps * warmup_ratio)

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        progress = (step - warmup) / max(1, total_steps - warmup)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))

    return factor


def _num_axes(parameter: nn.Parameter) -> int:
    shape = getattr(parameter, "ds_shape", parameter.shape)  # ZeRO-3 empties `shape`
    return len(shape)
