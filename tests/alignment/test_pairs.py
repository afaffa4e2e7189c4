"""Moments of pairs against a two-pass formula."""

import numpy as np
import pytest

from revision.alignment.base import Cloud
from revision.alignment.moments import moments_of
from revision.alignment.pairs import cross_covariance, residual_moments
from tests.alignment.methods.clouds import unit
from tests.feature_sets import cloud


@pytest.fixture
def pairs() -> tuple[np.ndarray, np.ndarray]:
    text = cloud(1, 300, 7)
    return text, (cloud(2, 300, 7) + text).astype(np.float32)


def test_two_pass_formulas(pairs):
    text, image = (unit(rows) for rows in pairs)
    clouds = [Cloud.of(rows) for rows in pairs]
    cross = (image - image.mean(0)).T @ (text - text.mean(0)) / 300
    assert np.abs(cross_covariance(*clouds) - cross).max() < 1e-14
    mean, covariance = residual_moments(*clouds)
    assert np.abs(mean - (image - text).mean(0)).max() < 1e-14
    assert np.abs(covariance - np.cov((image - text).T, bias=True)).max() < 1e-14


def test_batches_change_no_bit(pairs):
    def cut(rows: np.ndarray, count: int) -> Cloud:
        pieces = np.array_split(rows, count)
        return Cloud(moments_of(pieces), lambda: pieces)

    whole = cross_covariance(*(Cloud.of(rows) for rows in pairs))
    assert np.array_equal(whole, cross_covariance(cut(pairs[0], 7), cut(pairs[1], 4)))


def test_sides_of_different_length_are_refused(pairs):
    clouds = Cloud.of(pairs[0]), Cloud.of(pairs[1][:299])
    with pytest.raises(ValueError, match="300 texts and 299 images are to be pairs"):
        cross_covariance(*clouds)
