"""The training loss as a sum with its count, so that every mean is taken once and globally.

    loss = sum over target tokens t of -log softmax(logits_t)[target_t]

A mean per micro-batch would weigh samples by how they happen to be grouped (accumulation, number
of devices, packing); the sum and the count add up exactly, and the trainer divides by the global
count (the rule of pytorch/torchtitan).
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional


class LossSum(NamedTuple):
    """A sum of losses and what it is a sum over. `token_losses` is detached, one per target."""

    loss: Tensor
    num_targets: int
    token_losses: Tensor | None = None

    @property
    def mean(self) -> Tensor:
        """The loss per target token, in nats; 0 where there is no target."""
        return self.loss / max(1, self.num_targets)


def cross_entropy_sum(
    logits: Float[Tensor, "targets vocabulary"], targets: Int[Tensor, " targets"]
) -> LossSum:
    """Cross entropy in float32 over rows that all have a target; exactly 0 for no rows."""
    token_losses: Tensor = functional.cross_entropy(logits.float(), targets, reduction="none")
    return LossSum(token_losses.sum(dtype=torch.float32), len(targets), token_losses.detach())
