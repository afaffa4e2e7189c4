"""What a stage trains and what it leaves: the interface of `VisualJob` and `ContrastiveJob`.

A job holds the model and its data, and writes the result directory from the trained weights. The
result is built afresh from what the run began with, with the trained weights put in: the module
that trained may be sharded, or its frozen part rounded to bfloat16.

`cfg` is the composed config of `conf/train.yaml`, `build` the constructor of its leaves.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import lightning as L
import torch
from lightning.pytorch.loggers import Logger
from torch import Tensor, nn

from revision.data.datamodule import PlannedDataModule
from revision.data.schedule import Schedule
from revision.encoders.base import DualEncoder
from revision.shards import read_header

Build = Callable[..., Any]


@runtime_checkable
class Job(Protocol):
    @property
    def model(self) -> nn.Module: ...

    @property
    def data(self) -> PlannedDataModule: ...

    @property
    def callbacks(self) -> list[L.Callback]:
        """What this stage measures besides losses."""

    def prepare(self, batch: Any) -> Any:
        """What the model takes, from a batch on its device."""

    def lower_frozen(self, dtype: torch.dtype) -> None:
        """Hold in `dtype` what does not train, where that saves memory."""

    def save(
        self,
        weights: Mapping[str, Tensor],
        directory: Path,
        provenance: dict[str, Any],
        loggers: Sequence[Logger],
    ) -> None:
        """Write the result; it appears whole."""


def schedule_of(cfg: Any) -> Schedule:
    """What the stage decides about the order and size of its steps."""
    keys = ["batch_size", "accumulate", "epochs", "max_steps"]
    if "max_tokens" in cfg.stage:  # pairs of rows have no tokens
        keys.append("max_tokens")
    return Schedule(**{key: cfg.stage[key] for key in keys}, seed=cfg.seed)


def with_weights(model: Any, weights: Mapping[str, Tensor]) -> Any:
    """`model` with the trained `weights` in it, frozen and in evaluation mode."""
    keys = model.load_state_dict(weights, strict=False)
    assert not keys.unexpected_keys, keys.unexpected_keys
    return model.requires_grad_(False).eval()


def check_encoder(shards: Path, encoder: DualEncoder) -> None:
    """Refuse features of one encoder beside another.

    Raises:
        ValueError: the identities differ; real pictures would be fed rows of another space.
    """
    check_identity(shards, read_header(shards).encoder, encoder.identity(), "the encoder given")


def check_identity(
    path: Path, recorded: Mapping[str, Any], expected: Mapping[str, Any], whose: str
) -> None:
    """Refuse what `path` records of its encoder where it is not as `expected`, that of `whose`."""
    for key, value in expected.items():
        if recorded.get(key) != value:
            raise ValueError(
                f"{path} was made by another encoder: its {key} is {recorded.get(key)!r}, that "
                f"of {whose} is {value!r}; make it again, or give the encoder it is from"
            )
