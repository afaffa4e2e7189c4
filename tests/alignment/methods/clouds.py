"""What the tests of the methods share: a fitted map, and rows of norm 1."""

from typing import TypeVar

import numpy as np
import torch

from revision.alignment import AlignmentMap, Cloud

Map = TypeVar("Map", bound=AlignmentMap)


def unit(rows: np.ndarray) -> np.ndarray:
    wide = rows.astype(np.float64)
    return wide / np.linalg.norm(wide, axis=1, keepdims=True)


def unit_tensor(rows: np.ndarray) -> torch.Tensor:
    return torch.tensor(unit(rows))


def fitted(alignment: Map, text: np.ndarray, image: np.ndarray) -> Map:
    alignment.fit(Cloud.of(text), Cloud.of(image))
    return alignment
