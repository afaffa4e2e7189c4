"""Bottleneck adapters in the feed-forward blocks of a language model.

    x' = x + drop(B gelu(A x))          A (m x d), B (d x m), B = 0 at the start

One adapter in front of each matrix that reads the block's input (gate and up of the Llama family,
fc1 of Phi) and one behind the matrix that writes its output (down, fc2), as in the factory of
arXiv:2412.12359: 2 m d weights a site. `peft` has no such method. The adapters hang on the matrices
by hooks that stay, so that checkpointing runs them again and no weight of the model is renamed.

Departs from LLM-Adapters (arXiv:2304.01933): no biases, so that the counts are those that the paper
prints.

Letters: d width where the adapter stands, m width of the bottleneck.
"""

import math
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

BEFORE = ("gate_proj", "up_proj", "fc1")
BEHIND = ("down_proj", "fc2")


class Bottleneck(nn.Module):
    """One adapter; the identity until it is trained."""

    def __init__(self, dim: int, size: int, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.dropout = dropout
        self.down = nn.Parameter(torch.empty(size, dim))
        self.up = nn.Parameter(torch.zeros(dim, size))
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))

    def forward(self, x: Float[Tensor, "... d"]) -> Float[Tensor, "... d"]:
        inner = functional.gelu(functional.linear(x.to(self.down.dtype), self.down))
        update = functional.linear(inner, self.up)
        return x + functional.dropout(update, self.dropout, self.training).to(x.dtype)


class Bottlenecks(nn.Module):
    """The adapters of one language model, in the order of its modules.

    Raises:
        ValueError: the model has no matrix of these names.
    """

    def __init__(
        self,
        language_model: nn.Module,
        *,
        size: int = 256,
        dropout: float = 0.05,
        before: Sequence[str] = BEFORE,
        behind: Sequence[str] = BEHIND,
    ) -> None:
        super().__init__()
        if size < 1:
            raise ValueError(f"a bottleneck of size {size}; it is at least 1")
        sites = list(_sites(language_model, before, behind))
        if not sites:
            raise ValueError(
                f"{type(language_model).__name__} has no linear layer named "
                f"{', '.join([*before, *behind])}; name those of its feed-forward blocks in "
                "tuning.before and tuning.behind"
            )
        self.adapters = nn.ModuleList(Bottleneck(dim, size, dropout=dropout) for _, dim, _ in sites)
        for index, (matrix, _, is_before) in enumerate(sites):
            if is_before:
                matrix.register_forward_pre_hook(partial(self._adapt_input, index))
            else:
                matrix.register_forward_hook(partial(self._adapt_output, index))

    def _adapt_input(self, index: int, matrix: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (self.adapters[index](args[0]), *args[1:])

    def _adapt_output(self, index: int, matrix: nn.Module, args: Any, output: Tensor) -> Tensor:
        adapted: Tensor = self.adapters[index](output)
        return adapted


def _sites(
    language_model: nn.Module, before: Sequence[str], behind: Sequence[str]
) -> Iterator[tuple[nn.Linear, int, bool]]:
    """The matrices, the width at which each is adapted, and whether that is its input."""
    for name, module in language_model.named_modules():
        if not isinstance(module, nn.Linear):
            continue
        last = name.rpartition(".")[2]
        if last in before:
            yield module, module.in_features, True
        elif last in behind:
            yield module, module.out_features, False
