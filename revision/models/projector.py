"""The projector: visual features -> input embeddings of the LLM.

    y = W2 gelu(W1 x + b1) + b2        mlp2x_gelu (haotian-liu/LLaVA@c121f04, exact GELU)
    y = W x + b                        linear

What one feature row becomes (`tokens`):
    single   one LLM token
    repeat   `num_tokens` identical LLM tokens; the public ReVision code uses 576
    expand   `num_tokens` distinct LLM tokens from one wider last layer

Departs from the public code: it repeats the row and projects every copy; here the row is projected
once and the result repeated, which gives the same numbers for 1/576 of the work.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

KINDS = ("mlp2x_gelu", "linear")
TOKENS = ("single", "repeat", "expand")


class Projector(nn.Module):
    """(images, rows, input_dim) -> (images, rows * num_tokens, output_dim).

    Raises ValueError for an unknown kind and for a token count that does not fit `tokens`.
    """

    def __init__(
        self,
        input_dim: int,
        output_dim: int,
        kind: str = "mlp2x_gelu",
        tokens: str = "single",
        num_tokens: int = 1,
    ) -> None:
        super().__init__()
        _check(kind, tokens, num_tokens)
        self.input_dim, self.output_dim = input_dim, output_dim
        self.kind, self.tokens, self.num_tokens = kind, tokens, num_tokens
        width = output_dim * num_tokens if tokens == "expand" else output_dim
        if kind == "linear":
            self.layers = nn.Sequential(nn.Linear(input_dim, width))
        else:
            self.layers = nn.Sequential(
                nn.Linear(input_dim, output_dim), nn.GELU(), nn.Linear(output_dim, width)
            )

    def options(self) -> dict[str, Any]:
        """The constructor's arguments, for the model directory."""
        names = ("input_dim", "output_dim", "kind", "tokens", "num_tokens")
        return {name: getattr(self, name) for name in names}

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    def forward(
        self, visual: Float[Tensor, "images rows {self.input_dim}"]
    ) -> Float[Tensor, "images tokens {self.output_dim}"]:
        projected: Tensor = self.layers(visual)
        if self.tokens == "repeat":
            return projected.repeat_interleave(self.num_tokens, dim=1)
        return projected.reshape(visual.shape[0], -1, self.output_dim)


def _check(kind: str, tokens: str, num_tokens: int) -> None:
    if kind not in KINDS:
        raise ValueError(f"unknown projector kind {kind!r}; choose from {KINDS}")
    if tokens not in TOKENS:
        raise ValueError(f"unknown tokens={tokens!r}; choose from {TOKENS}")
    if num_tokens < 1 or (tokens == "single" and num_tokens != 1):
        raise ValueError(
            f"tokens={tokens!r} cannot make num_tokens={num_tokens} of a row; "
            "'single' makes exactly 1, 'repeat' and 'expand' make 1 or more"
        )
