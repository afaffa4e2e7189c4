"""What all alignment maps share: fitted moments, unit rows in and out, float64 in between.

An alignment map moves text embeddings (source) into the distribution of image embeddings (target)
from unpaired data. `fit` estimates, `forward` applies; the rows need not be the same. A new method
is a subclass with a `name` and a `transform`, and a `fit` of its own where it has more to estimate.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float, Float32, Float64
from torch import Tensor, nn

from revision.alignment.moments import BLOCK_ROWS, Moments, normalize_, to_float64

SourceRows = Callable[[], Iterable[np.ndarray]]


class AlignmentMap(nn.Module, ABC):
    """Base of all maps: holds the moments of both modalities as float64 buffers.

    Buffers are empty until `fit` (or loading) fills them. They keep their precision when the module
    around them is cast: `model.half()` moves a map between devices but never rounds it.
    """

    name: ClassVar[str]
    buffer_names: ClassVar[tuple[str, ...]] = (
        "source_count",
        "target_count",
        "source_mean",
        "target_mean",
        "source_trace",
        "target_trace",
    )
    source_count: Tensor
    target_count: Tensor
    source_mean: Tensor
    target_mean: Tensor
    source_trace: Tensor
    target_trace: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in self.buffer_names:
            self.register_buffer(name, None)

    @property
    def is_fitted(self) -> bool:
        return all(getattr(self, name) is not None for name in self.buffer_names)

    @property
    def dim(self) -> int:
        return len(self.source_mean)

    @property
    def gain(self) -> float:
        """Factor by which the map stretches the centred source cloud before any projection."""
        return 1.0

    @property
    @abstractmethod
    def shift(self) -> Float64[Tensor, " dim"]:
        """The vector v for which Norm(y + v) is this map, up to its centroid step."""

    def options(self) -> dict[str, Any]:
        """Constructor arguments that rebuild this map before its buffers are loaded."""
        return {}

    def fit(self, source: Moments, target: Moments, source_rows: SourceRows) -> None:
        """Take the moments of both modalities; `source_rows` starts another pass over the source.

        Raises:
            ValueError: the modalities differ in width, or one has fewer than two rows.
        """
        if source.mean.shape != target.mean.shape:
            raise ValueError(
                f"source rows have width {len(source.mean)}, target rows {len(target.mean)}; "
                "embed both modalities with the same encoder"
            )
        if min(source.count, target.count) < 2:
            raise ValueError(
                f"cannot estimate a distribution from {source.count} source and {target.count} "
                "target rows; give at least two of each"
            )
        self.source_count, self.target_count = (torch.tensor(m.count) for m in (source, target))
        self.source_mean, self.target_mean = self._means(source, target)
        self.source_trace = _trace_about(self.source_mean, source)
        self.target_trace = _trace_about(self.target_mean, target)

    @abstractmethod
    def transform(self, rows: Float64[Tensor, "n dim"]) -> Float64[Tensor, "n dim"]:
        """Map unit rows to unit rows in float64. The argument may be overwritten."""

    @torch.no_grad()
    def forward(self, rows: Float[Tensor, "n dim"]) -> Float32[Tensor, "n dim"]:
        """Aligned unit rows of any floating-point rows; a row's result depends on it alone.

        Raises:
            ValueError: not fitted, another width, or a row without a direction, which would
                otherwise have become a constant that looks like an embedding.
        """
        self._check_width(rows)
        aligned = torch.empty(rows.shape, dtype=torch.float32, device=rows.device)
        for start in range(0, len(rows), BLOCK_ROWS):
            unit = to_float64(rows[start : start + BLOCK_ROWS])
            onto_sphere_(unit, first=start)
            aligned[start : start + BLOCK_ROWS] = self.transform(unit)
        return aligned

    def _means(self, source: Moments, target: Moments) -> tuple[Tensor, Tensor]:
        return torch.tensor(source.mean), torch.tensor(target.mean)

    def _check_width(self, rows: Tensor) -> None:
        if not self.is_fitted:
            raise ValueError(f"alignment '{self.name}' is not fitted; fit it or load a fitted one")
        if rows.ndim != 2 or rows.shape[1] != self.dim:
            raise ValueError(
                f"rows of shape {tuple(rows.shape)} given to an alignment of width {self.dim}; "
                "it was fitted on another encoder's embeddings"
            )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "AlignmentMap":
        def move_only(tensor: Tensor) -> Tensor:
            return tensor.to(fn(tensor).device)

        return super()._apply(move_only, recurse)


def onto_sphere_(rows: Float64[Tensor, "n dim"], first: int = 0) -> Float64[Tensor, "n dim"]:
    """Divide rows by their norms in place and return them.

    Raises:
        ValueError: a row has no direction; `first` is the number of the first row in the message.
    """
    bad = normalize_(rows)
    if bad.any():
        position = first + int(bad.nonzero()[0])
        raise ValueError(
            f"{int(bad.sum())} of {len(rows)} rows have no direction (zero or not finite), the "
            f"first is row {position}; reject them before aligning"
        )
    return rows


def _trace_about(point: Tensor, moments: Moments) -> Tensor:
    """E|x - point|^2, which is the trace where `point` is the mean."""
    mean = torch.tensor(moments.mean)
    return (moments.mean_square - 2 * point @ mean + point @ point).clamp(min=0.0)
