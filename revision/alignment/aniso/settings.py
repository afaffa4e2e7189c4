"""The numbers of AnisoAlign's training, in four groups. The paper states none of them.

Source: arXiv:2605.07825, App. A.7-A.8, names tau, sigma_t and the bounds alpha without values.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, TypeVar

import torch
from torch import Tensor


@dataclass(frozen=True)
class Training:
    """Steps of both stages, rows a step (at most all), AdamW's rate, decay of the average."""

    prior_steps: int = 20_000
    refine_steps: int = 20_000
    batch: int = 4096
    learning_rate: float = 1e-3
    ema: float = 0.995

    def __post_init__(self) -> None:
        if min(self.prior_steps, self.refine_steps) < 0 or self.batch < 1:
            raise ValueError(
                f"training takes {self.prior_steps} and {self.refine_steps} steps of {self.batch} "
                "rows; steps must be >= 0 (0 leaves a network as it starts) and rows >= 1"
            )
        if not self.learning_rate > 0 or not 0 <= self.ema < 1:
            raise ValueError(
                f"learning_rate must be > 0 and ema in [0, 1), not {self.learning_rate} and "
                f"{self.ema}: nothing would be learnt"
            )


@dataclass(frozen=True)
class Perturbation:
    """tau, and the range of s = sqrt(2) sigma_t, the std of the phase noise in radians."""

    drift_step: float = 0.1
    smallest_std: float = 0.05
    largest_std: float = 1.5

    def __post_init__(self) -> None:
        if not 0 < self.smallest_std <= self.largest_std <= torch.pi:
            raise ValueError(
                f"the phase noise ranges from {self.smallest_std} to {self.largest_std}; give "
                "0 < smallest_std <= largest_std <= pi, beyond which phases are uniform"
            )

    def draw(self, shape: torch.Size, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """s of each row (n x 1), log-uniform, and noise s eps; on the CPU, so devices agree."""
        low, high = (torch.tensor(x).log() for x in (self.smallest_std, self.largest_std))
        std = torch.lerp(low, high, torch.rand(shape[0], 1, generator=generator)).exp()
        return std, std * torch.randn(shape, generator=generator)


@dataclass(frozen=True)
class Bounds:
    """Largest change of a phase (radians), of a log radius, of an entry outside the frame."""

    phase: float = 0.2
    radius: float = 0.2
    residual: float = 0.05

    def __post_init__(self) -> None:
        if min(self.phase, self.radius, self.residual) < 0:
            raise ValueError(f"bounds must not be negative: {self}")


@dataclass(frozen=True)
class LossWeights:
    """Weights beside L_II, whose own is 1: of L_Phi, and of the mean squared tanh."""

    phase_differences: float = 1.0
    proximal: float = 1e-2

    def __post_init__(self) -> None:
        if min(self.phase_differences, self.proximal) < 0:
            raise ValueError(f"a negative weight rewards what it should prevent: {self}")


Group = TypeVar("Group", Training, Perturbation, Bounds, LossWeights)


def read_group(kind: type[Group], given: Mapping[str, int | float] | None) -> Group:
    """A group with its defaults replaced by what is given.

    Raises:
        ValueError: a name that the group does not have, which would have changed nothing.
    """
    defaults: dict[str, Any] = {field.name: field.default for field in fields(kind)}
    unknown = sorted((given or {}).keys() - defaults.keys())
    if unknown:
        raise ValueError(
            f"{kind.__name__} has no {', '.join(unknown)}; it has {', '.join(defaults)}"
        )
    return kind(**{name: type(defaults[name])(value) for name, value in (given or {}).items()})
