"""The schedule: how much of the data a step takes, and where a run ends; what a stage decides."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """`batch_size` counts records per device and micro-batch, `accumulate` micro-batches of a step.

    The run ends after `epochs`, or instead of these after `max_steps`, or with the first step at
    which it has seen `max_tokens` LLM positions. `seed` is that of the order.

    Raises ValueError for two ends.
    """

    batch_size: int
    accumulate: int = 1
    epochs: int = 1
    max_steps: int | None = None
    max_tokens: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.max_steps is not None and self.max_tokens is not None:
            raise ValueError(
                f"max_steps={self.max_steps} and max_tokens={self.max_tokens} both say where the "
                "run ends; give one of them"
            )
