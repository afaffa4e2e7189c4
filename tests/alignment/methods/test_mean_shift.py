import numpy as np
import pytest
import torch

from revision.alignment import Cloud, MeanShift
from tests.alignment.numbers import numbers_of


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
    numbers = numbers_of(alignment, text)
    assert 1e-4 < numbers.in_sample_gap < 0.3 * numbers.raw_gap


def test_phi_is_the_largest_possible(text, image):
    numbers = numbers_of(fitted(text, image), text)
    assert abs(numbers.phi - numbers.phi_bound) < 1e-12


def test_strength_zero_is_no_alignment(text, image):
    aligned = fitted(text, image, strength=0.0)(torch.tensor(text))
    assert np.abs(aligned.numpy() - unit(text)).max() < 1e-7


def test_strength_outside_its_range_is_refused():
    with pytest.raises(ValueError, match=r"between 0 and 1, not 1\.5"):
        MeanShift(strength=1.5)


def test_without_projection_the_result_is_the_shifted_row(text, image):
    alignment = MeanShift(normalize=False)
    alignment.fit(Cloud.of(text), Cloud.of(image))
    moved = alignment.transform(torch.tensor(unit(text))).numpy()
    assert np.abs(moved - unit(text) - alignment.shift.numpy()).max() < 1e-15
    assert np.abs(moved.mean(0) - unit(image).mean(0)).max() < 1e-14  # sums to 2^-44


def symmetric(text, image, distance: float) -> MeanShift:
    alignment = MeanShift(symmetric=distance)
    alignment.fit(Cloud.of(text), Cloud.of(image))
    return alignment


def test_symmetric_shift_moves_both_sides_half_way(text, image):
    gap = unit(image).mean(0) - unit(text).mean(0)
    step = 0.2 * gap / np.linalg.norm(gap)
    alignment = symmetric(text, image, 0.4)
    assert alignment.changes_images
    texts = alignment(torch.tensor(text)).numpy()
    images = alignment.forward_images(torch.tensor(image)).numpy()
    assert np.abs(texts - unit(unit(text) + step)).max() < 1e-7
    assert np.abs(images - unit(unit(image) - step)).max() < 1e-7


def test_symmetric_shift_by_the_whole_gap_joins_the_means_before_projection(text, image):
    gap = unit(image).mean(0) - unit(text).mean(0)
    alignment = symmetric(text, image, float(np.linalg.norm(gap)))
    texts = alignment.move(torch.tensor(unit(text))).numpy()
    images = alignment.move_images(torch.tensor(unit(image))).numpy()
    assert np.abs(texts.mean(0) - images.mean(0)).max() < 1e-13


def test_without_a_gap_the_symmetric_shift_is_no_alignment(text):
    alignment = symmetric(text, text, 0.4)
    assert np.abs(alignment(torch.tensor(text)).numpy() - unit(text)).max() < 1e-7


def test_symmetric_takes_the_place_of_strength():
    with pytest.raises(ValueError, match=r"symmetric=0\.3 with strength=0\.5: .* leave that at 1"):
        MeanShift(symmetric=0.3, strength=0.5)
    with pytest.raises(ValueError, match=r"between 0 and 2"):
        MeanShift(symmetric=3.0)
