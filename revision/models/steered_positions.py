"""Which tokens of a picture are steered: a pure function of the number of its tokens.

The shares of the paper (1 % of the visual tokens, arXiv:2412.12359) and the pattern of its scripts
(the first 4 and the last 5) are both settings here.

Letters: K tokens of one picture.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool
from torch import Tensor


@dataclass(frozen=True)
class Positions:
    """Which of the K tokens of each picture are steered.

    `first_last`: the first `first` and the last `last`. `fraction`: ceil(fraction K) of them,
    half from either end (`ends`), evenly spaced (`uniform`) or drawn once by `seed` (`random`).

    Raises ValueError for numbers that steer nothing, or more than there is.
    """

    kind: str = "all"
    first: int = 0
    last: int = 0
    fraction: float = 1.0
    placement: str = "ends"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.kind not in ("all", "first_last", "fraction"):
            raise ValueError(
                f"unknown positions kind {self.kind!r}; choose all, first_last or fraction"
            )
        if self.placement not in ("ends", "uniform", "random"):
            raise ValueError(
                f"unknown placement {self.placement!r}; choose ends, uniform or random"
            )
        if self.kind == "first_last" and (min(self.first, self.last) < 0 or not any(self.ends)):
            raise ValueError(
                f"first={self.first} and last={self.last} steer no token; give at least one"
            )
        if not 0 < self.fraction <= 1:
            raise ValueError(f"fraction={self.fraction} of the tokens; it lies in (0, 1]")

    @property
    def ends(self) -> tuple[int, int]:
        return self.first, self.last

    def of(self, num_tokens: int) -> Bool[Tensor, " tokens"]:
        """True for each of the `num_tokens` tokens of a picture that is steered."""
        rank = torch.arange(num_tokens)
        if self.kind == "all":
            return torch.ones(num_tokens, dtype=torch.bool)
        if self.kind == "first_last":
            return (rank < self.first) | (rank >= num_tokens - self.last)
        count = math.ceil(self.fraction * num_tokens)
        if self.placement == "ends":
            return (rank < count - count // 2) | (rank >= num_tokens - count // 2)
        if self.placement == "uniform":
            chosen = (torch.arange(count) * num_tokens).div(count, rounding_mode="floor")
        else:
            generator = torch.Generator().manual_seed(self.seed)
            chosen = torch.randperm(num_tokens, generator=generator)[:count]
        return torch.zeros(num_tokens, dtype=torch.bool).index_fill(0, chosen, True)
