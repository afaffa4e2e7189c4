"""Noise on text rows: what text-only training adds so that a projector meets a whole region."""

from abc import ABC, abstractmethod
from typing import Any, ClassVar

from jaxtyping import Float64, Int64
from torch import Tensor


class Noise(ABC):
    """Draws one vector per row key; the same key gives the same vector wherever it is drawn."""

    name: ClassVar[str]

    @abstractmethod
    def options(self) -> dict[str, Any]:
        """Constructor arguments."""

    @abstractmethod
    def draw(self, keys: Int64[Tensor, " n"], dim: int) -> Float64[Tensor, "n dim"]:
        """The vectors of these rows."""
