"""What all alignment maps share: fitted moments, unit rows in and out, float64 in between.

An alignment map moves text embeddings (source) into the distribution of image embeddings (target)
from unpaired data. `fit` estimates, `forward` applies; the rows need not be the same. A new method
is one module in `revision/alignment/methods/` with one subclass: a `name`, a `move`, and a `fit` of
its own where it has more to estimate (`docs/adding_a_method.md`).
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Float64, Int64
from torch import Tensor, nn

from revision.alignment.moments import CANCELLED, Moments, Second, moments_of
from revision.alignment.noise import Noise
from revision.alignment.passes import CPU, Batches, block_rows, normalize_
from revision.sums import to_float64

EPSILON = 1e-10  # of the public ReAlign script: no division by zero for a cloud without spread


@dataclass(frozen=True)
class Cloud:
    """One modality during a fit: its moments, and `rows()`, which streams it again.

    `device` is where passes over the rows are computed that allow it.
    """

    moments: Moments
    rows: Callable[[], Batches]
    device: torch.device = CPU

    @classmethod
    def of(cls, rows: np.ndarray, *, second: Second = "covariance") -> "Cloud":
        """A cloud that lies in memory."""
        return cls(moments_of([rows], second=second), lambda: [rows])


class AlignmentMap(nn.Module, ABC):
    """Base of all maps: holds the moments of both modalities as float64 buffers.

    Buffers are empty until `fit` (or loading) fills them. They keep their precision when the module
    around them is cast: `model.half()` moves a map between devices but never rounds it.
    """

    name: ClassVar[str]  # also the name of the module that defines the class
    second_moments: ClassVar[Second] = "trace"  # what `fit` finds in the moments
    needs_pairs: ClassVar[bool] = False  # row i of both clouds must come from the same record
    changes_images: bool = False  # whether image rows must go through `forward_images`
    normalize: bool = True  # False: the rows are left where `move` puts them
    noise: Noise | None = None  # added to text rows before the last projection
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
    def is_random(self) -> bool:
        """Whether rows depend on their keys."""
        return self.noise is not None

    def add_noise(self, noise: Noise) -> None:
        """Let text rows be disturbed by `noise` from now on.

        Raises:
            ValueError: they are already; the noise of one of the two would have been lost.
        """
        if self.is_random:
            raise ValueError(
                f"alignment '{self.name}' is random already and takes no second noise; leave "
                "noise= out, or choose a method without noise of its own (mean_shift, collapse)"
            )
        self.noise = noise

    @property
    def dim(self) -> int:
        return len(self.source_mean)

    @property
    def gain(self) -> float:
        """Factor by which the map stretches the centred source cloud before any projection."""
        return 1.0

    @property
    def shift(self) -> Float64[Tensor, " dim"]:
        """A vector v for the bound Phi <= E|y + v| - v . mean(z); equality if z = Norm(y + v).

        By default that of anchor and trace step, whose Phi no map with its centroid exceeds.
        """
        scale = (self.target_trace / (self.source_trace + EPSILON)).sqrt()
        return self.target_mean / scale - self.source_mean

    def options(self) -> dict[str, Any]:
        """Constructor arguments that rebuild this map before its buffers are loaded."""
        return {}

    def fit(self, source: Cloud, target: Cloud) -> None:
        """Estimate from text (source) and image (target) rows.

        Raises:
            ValueError: the modalities differ in width, or one has fewer than two rows.
        """
        text, image = source.moments, target.moments
        if text.mean.shape != image.mean.shape:
            raise ValueError(
                f"source rows have width {len(text.mean)}, target rows {len(image.mean)}; "
                "embed both modalities with the same encoder"
            )
        if min(text.count, image.count) < 2:
            raise ValueError(
                f"cannot estimate a distribution from {text.count} source and {image.count} "
                "target rows; give at least two of each"
            )
        self.source_count, self.target_count = (torch.tensor(m.count) for m in (text, image))
        self.source_mean, self.target_mean = self._means(text, image)
        self.source_trace = _trace_about(self.source_mean, text)
        self.target_trace = _trace_about(self.target_mean, image)

    @abstractmethod
    def move(self, rows: Float64[Tensor, "n dim"]) -> Float64[Tensor, "n dim"]:
        """Where unit text rows go, before noise and the projection on the sphere.

        The argument may be overwritten.
        """

    def move_images(self, rows: Float64[Tensor, "n dim"]) -> Float64[Tensor, "n dim"]:
        """Where unit image rows go before the projection: nowhere, unless `changes_images`."""
        return rows

    def disturb(
        self, rows: Float64[Tensor, "n dim"], keys: Int64[Tensor, " n"]
    ) -> Float64[Tensor, "n dim"]:
        """Moved text rows with the noise of their keys; called only where `is_random`."""
        assert self.noise is not None
        return rows + self.noise.draw(keys, rows.shape[1]).to(rows.device)

    def transform(
        self, rows: Float64[Tensor, "n dim"], keys: Int64[Tensor, " n"] | None = None
    ) -> Float64[Tensor, "n dim"]:
        """Map unit text rows in float64; `keys` tell a random map which rows they are.

        Raises:
            ValueError: keys are missing, or a row is moved to the origin.
        """
        moved = self.move(rows)
        if self.is_random:
            if keys is None:
                raise ValueError(
                    f"alignment '{self.name}' adds noise to each row by its key, and got no keys; "
                    "give row_keys(ids, epoch), or the noise would depend on the batch"
                )
            moved = self.disturb(moved, keys)
        return onto_sphere_(moved) if self.normalize else moved

    @torch.no_grad()
    def forward(
        self, rows: Float[Tensor, "n dim"], keys: Int64[Tensor, " n"] | None = None
    ) -> Float32[Tensor, "n dim"]:
        """Aligned text rows of any floating-point rows; a row's result depends on it alone.

        `keys` (see `revision.alignment.noise.row_keys`) are needed where `is_random`.

        Raises:
            ValueError: not fitted, another width, or a row without a direction, which would
                otherwise have become a constant that looks like an embedding.
        """
        mapped, bad = self.map_good(rows, keys)
        _refuse(bad)
        return mapped

    @torch.no_grad()
    def map_good(
        self, rows: Float[Tensor, "n dim"], keys: Int64[Tensor, " n"] | None = None
    ) -> tuple[Float32[Tensor, "n dim"], Bool[Tensor, " n"]]:
        """As `forward`, but bad rows become NaN and are true in the second result."""
        if keys is None:
            return self._in_blocks(rows, lambda unit, _: self.transform(unit))
        return self._in_blocks(rows, lambda unit, place: self.transform(unit, keys[place]))

    @torch.no_grad()
    def forward_images(self, rows: Float[Tensor, "n dim"]) -> Float32[Tensor, "n dim"]:
        """Image rows as a model trained on this map's text expects them, also at inference."""

        def move(unit: Tensor, _: object) -> Tensor:
            moved = self.move_images(unit)
            return onto_sphere_(moved) if self.normalize else moved

        mapped, bad = self._in_blocks(rows, move)
        _refuse(bad)
        return mapped

    def _in_blocks(
        self, rows: Tensor, move: Callable[[Tensor, Any], Tensor]
    ) -> tuple[Tensor, Tensor]:
        """`move(unit rows, their places)` block by block, and which rows are bad."""
        self._check_width(rows)
        mapped = torch.empty(rows.shape, dtype=torch.float32, device=rows.device)
        bad = torch.zeros(len(rows), dtype=torch.bool, device=rows.device)
        size = block_rows(rows.device)
        for start in range(0, len(rows), size):
            place = slice(start, start + size)
            unit = to_float64(rows[place])
            bad[place] = normalize_(unit)
            if bad[place].any():
                good = (~bad[place]).nonzero()[:, 0]
                mapped[place] = torch.nan
                mapped[good + start] = move(unit[good], good + start).float()
            else:
                mapped[place] = move(unit, place)
        return mapped, bad

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


def onto_sphere_(rows: Float64[Tensor, "n dim"]) -> Float64[Tensor, "n dim"]:
    """Divide rows by their norms in place and return them.

    Raises:
        ValueError: a row has no direction.
    """
    _refuse(normalize_(rows))
    return rows


def _refuse(bad: Bool[Tensor, " n"]) -> None:
    if bad.any():
        raise ValueError(
            f"{int(bad.sum())} of {len(bad)} rows have no direction (zero or not finite), the "
            f"first is row {int(bad.nonzero()[0])}; reject them before aligning"
        )


def _trace_about(point: Tensor, moments: Moments) -> Tensor:
    """E|x - point|^2, which is the trace where `point` is the mean."""
    mean = torch.tensor(moments.mean)
    trace = moments.mean_square - 2 * point @ mean + point @ point
    return torch.where(trace > CANCELLED, trace, 0.0)
