import numpy as np
import pytest
import torch

from revision.alignment.methods.close_cov import CloseCov
from revision.alignment.methods.mean_shift import MeanShift
from revision.alignment.noise import row_keys
from tests.alignment.methods.clouds import fitted, unit, unit_tensor
from tests.feature_sets import cloud

DIM = 6


@pytest.fixture
def text() -> np.ndarray:
    return cloud(1, 150, DIM)


@pytest.fixture
def image(text) -> np.ndarray:
    return 0.5 * text + cloud(2, 150, DIM, mean=0.35)


def test_without_noise_it_is_a_mean_shift(text, image):
    alignment = fitted(CloseCov(cov_scale=0.0, std=0.0), text, image)
    expected = fitted(MeanShift(), text, image).transform(unit_tensor(text))
    keys = row_keys(["x"] * 150, 0)
    assert (alignment.transform(unit_tensor(text), keys) - expected).abs().max() < 1e-12


def test_the_noise_has_the_covariance_of_the_residual(text, image):
    alignment = fitted(CloseCov(cov_scale=3.0, std=0.5), text, image)
    keys = row_keys([str(i) for i in range(40_000)], 0)
    start = torch.zeros(40_000, DIM, dtype=torch.float64)
    noise = alignment.disturb(start, keys).numpy()
    expected = 9 * np.cov((unit(image) - unit(text)).T, bias=True) + 0.5**2 * np.eye(DIM)
    assert np.abs(noise.mean(0)).max() < 5 * np.sqrt(expected.max() / 40_000)
    assert np.abs(np.cov(noise.T) - expected).max() < 0.05 * expected.max()


def test_pairs_matter(text, image):
    paired = fitted(CloseCov(), text, image).spread
    shuffled = np.random.default_rng(0).permutation(image)
    assert (fitted(CloseCov(), text, shuffled).spread - paired).abs().max() > 1e-2


def test_a_singular_residual_is_no_obstacle(text):
    alignment = fitted(CloseCov(), text, text)
    assert alignment.spread.abs().max() < 1e-7
    assert alignment(torch.tensor(text), row_keys(["x"] * 150, 0)).isfinite().all()


def test_impossible_options_are_refused():
    with pytest.raises(ValueError, match=r"cov_scale must be .* not -1"):
        CloseCov(cov_scale=-1.0)
    with pytest.raises(ValueError, match=r"std of a noise .* not -0\.1"):
        CloseCov(std=-0.1)
