"""Synthetic unit rows for the measurements: pairs with a gap, rotations, power-law spectra."""

import numpy as np


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def pairs(seed: int, count: int, dim: int = 16) -> tuple[np.ndarray, np.ndarray]:
    """Text and image rows that share half of their variation and differ in mean and spread."""
    rng = np.random.default_rng(seed)
    shared = rng.standard_normal((count, dim))
    own = rng.standard_normal((2, count, dim)) * np.arange(1, dim + 1) ** -0.5
    centers = 2 * np.eye(dim)[:2]
    return unit(centers[0] + shared + own[0]), unit(centers[1] + shared + 1.5 * own[1])


def rotation(seed: int, dim: int = 16) -> np.ndarray:
    return np.linalg.qr(np.random.default_rng(seed).standard_normal((dim, dim)))[0]


def covariance(seed: int, values: np.ndarray) -> np.ndarray:
    """A covariance with these eigenvalues in random directions."""
    axes = rotation(seed, len(values))
    return axes * values @ axes.T


def power_law(exponent: float, dim: int) -> np.ndarray:
    return np.arange(1, dim + 1) ** -exponent
