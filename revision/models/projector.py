"""The projector: visual features -> input embeddings of the LLM.

    y = W2 gelu(W1 x + b1) + b2        mlp2x_gelu (haotian-liu/LLaVA@c121f04, exact GELU)
    y = W x + b                        linear

What one feature row becomes (`tokens`):
    single   one LLM token
    repeat   `num_tokens` identical LLM tokens; the public ReVision code uses 576
    expand   `num_tokens` distinct LLM tokens from one wider last layer

`scale_input` multiplies the unit rows by sqrt(input_dim), so that their entries are of order one
as those of the layers' usual inputs; `match_scale` starts the output at the size of the LLM's own
token embeddings. Neither is in the papers; with few steps both matter (docs/LOG.md).

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
        scale_input: bool = False,
    ) -> None:
        super().__init__()
        _check(kind, tokens, num_tokens)
        self.input_dim, self.output_dim = input_dim, output_dim
        self.kind, self.tokens, self.num_tokens = kind, tokens, num_tokens
        self.scale_input = scale_input
        width = output_dim * num_tokens if tokens == "expand" else output_dim
        if kind == "linear":
            self.layers = nn.Sequential(nn.Linear(input_dim, width))
        else:
            self.layers = nn.Sequential(
                nn.Linear(input_dim, output_dim), nn.GELU(), nn.Linear(output_dim, width)
            )

    def options(self) -> dict[str, Any]:
        """The constructor's arguments, for the model directory."""
        names = ("input_dim", "output_dim", "kind", "tokens", "num_tokens", "scale_input")
        return {name: getattr(self, name) for name in names}

    @torch.no_grad()
    def match_scale(self, rms: float, *, seed: int = 0, num_rows: int = 256) -> None:
        """Rescale the last layer, its bias zeroed, until random unit rows come out with root mean
        square `rms` per entry."""
        generator = torch.Generator().manual_seed(seed)
        rows = torch.randn(num_rows, 1, self.input_dim, generator=generator)
        last = self.layers[-1]
        assert isinstance(last, nn.Linear)
        last.bias.zero_()
        rows = nn.functional.normalize(rows, dim=-1).to(last.weight)
        last.weight.mul_(rms / self(rows).square().mean().sqrt())

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    def forward(
        self, visual: Float[Tensor, "images rows {self.input_dim}"]
    ) -> Float[Tensor, "images tokens {self.output_dim}"]:
        scaled = visual * self.input_dim**0.5 if self.scale_input else visual
        projected: Tensor = self.layers(scaled)
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
