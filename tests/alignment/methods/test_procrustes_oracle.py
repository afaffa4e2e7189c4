import numpy as np
import pytest
import torch

from revision.alignment.methods.procrustes_oracle import ProcrustesOracle, nearest_rotation
from tests.alignment.methods.clouds import fitted, unit, unit_tensor
from tests.feature_sets import cloud

DIM = 8


def rotation(seed: int) -> np.ndarray:
    return np.linalg.qr(np.random.default_rng(seed).standard_normal((DIM, DIM)))[0]


@pytest.fixture
def text() -> np.ndarray:
    return unit(cloud(1, 120, DIM))


@pytest.fixture
def image(text) -> np.ndarray:
    noise = np.random.default_rng(3).standard_normal(text.shape)
    return unit(text @ rotation(5).T + 0.1 * noise)


def test_a_rotation_of_the_texts_is_found_exactly(text):
    """With z = Norm(mu_x + W (y - mu_y)) a rotated cloud is met row by row."""
    matrix = rotation(5)
    alignment = fitted(ProcrustesOracle(), text, text @ matrix.T)
    assert np.abs(alignment.rotation.numpy() - matrix).max() < 1e-12
    assert np.abs(alignment.transform(unit_tensor(text)).numpy() - text @ matrix.T).max() < 1e-12


def test_the_map_is_orthogonal_and_no_rotation_is_closer(text, image):
    alignment = fitted(ProcrustesOracle(), text, image)
    best = alignment.rotation.numpy()
    assert np.abs(best @ best.T - np.eye(DIM)).max() < 1e-12
    centred_text, centred_image = text - text.mean(0), image - image.mean(0)

    def distance(matrix: np.ndarray) -> float:
        return float(((centred_image - centred_text @ matrix.T) ** 2).sum())

    assert distance(best) < min(distance(rotation(seed)) for seed in range(20))
    for seed in range(20):
        skew = rotation(seed) - rotation(seed).T
        nearby = best @ np.linalg.qr(np.eye(DIM) + 1e-3 * skew)[0]
        assert distance(best) <= distance(nearby)


def test_pairs_get_closer_than_the_identity_leaves_them(text, image):
    alignment = fitted(ProcrustesOracle(), text, image)
    cosine = (alignment.transform(unit_tensor(text)).numpy() * image).sum(1).mean()
    assert cosine > (text * image).sum(1).mean() + 0.1


def test_with_fewer_pairs_than_dimensions_the_rest_stays_where_it_is(text, image):
    alignment = fitted(ProcrustesOracle(), text[:5], image[:5])
    matrix = alignment.rotation.numpy()
    assert np.abs(matrix @ matrix.T - np.eye(DIM)).max() < 1e-12
    same = fitted(ProcrustesOracle(), text[:5], text[:5])
    assert np.abs(same.rotation.numpy() - np.eye(DIM)).max() < 1e-12
    assert np.abs(nearest_rotation(np.zeros((3, 3))) - np.eye(3)).max() < 1e-15


def test_a_bad_row_takes_its_pair_out(text, image):
    spoilt_text, spoilt_image = text.copy(), image.copy()
    spoilt_text[7], spoilt_image[30] = np.nan, 0.0
    kept = np.delete(np.arange(120), [7, 30])
    spoilt = fitted(ProcrustesOracle(), spoilt_text, spoilt_image).rotation
    expected = fitted(ProcrustesOracle(), text[kept], image[kept]).rotation
    assert torch.allclose(spoilt, expected, rtol=0, atol=1e-12)
