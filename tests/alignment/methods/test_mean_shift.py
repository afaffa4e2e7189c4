import numpy as np
import pytest
import torch

from revision.alignment import Cloud, MeanShift
from revision.alignment.geometry import aligned_moments


def unit(rows: np.ndarray) -> np.ndarray:
    rows = rows.astype(np.float64)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def fitted(text, image, strength: float = 1.0) -> MeanShift:
    alignment = MeanShift(strength=strength)
    alignment.fit(Cloud.of(text), Cloud.of(image))
    return alignment


def test_formula(text, image):
    expected = unit(unit(text) - unit(text).mean(0) + unit(image).mean(0))
    assert np.abs(fitted(text, image)(torch.tensor(text)).numpy() - expected).max() < 1e-7


def test_before_projection_the_mean_is_the_image_mean_and_the_shape_is_kept(text, image):
    shifted = unit(text) + fitted(text, image).shift.numpy()
    assert np.abs(shifted.mean(0) - unit(image).mean(0)).max() < 1e-14  # sums to 2^-44
    assert np.abs(np.cov(shifted.T) - np.cov(unit(text).T)).max() < 1e-15


def test_projection_leaves_a_smaller_gap_that_is_not_zero(text, image):
    alignment = fitted(text, image)
    after = aligned_moments(alignment, [text]).aligned.mean - alignment.target_mean.numpy()
    raw = np.linalg.norm(alignment.target_mean - alignment.source_mean)
    assert 1e-4 < np.linalg.norm(after) < 0.3 * raw


def test_phi_is_the_largest_possible(text, image):
    numbers = aligned_moments(fitted(text, image), [text])
    assert abs(numbers.phi - numbers.phi_bound) < 1e-12


def test_strength_zero_is_no_alignment(text, image):
    aligned = fitted(text, image, strength=0.0)(torch.tensor(text))
    assert np.abs(aligned.numpy() - unit(text)).max() < 1e-7


def test_strength_outside_its_range_is_refused():
    with pytest.raises(ValueError, match=r"between 0 and 1, not 1\.5"):
        MeanShift(strength=1.5)
