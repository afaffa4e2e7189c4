import numpy as np
import pytest
import torch

from revision.alignment import Cloud
from revision.alignment.methods.wct import WhiteningColouring
from tests.feature_sets import cloud

DIM = 10


@pytest.fixture
def text() -> Cloud:
    return Cloud.of(cloud(1, 220, DIM))


@pytest.fixture
def image() -> Cloud:
    return Cloud.of(cloud(2, 180, DIM, mean=0.35))


def fitted(text: Cloud, image: Cloud, **options) -> WhiteningColouring:
    alignment = WhiteningColouring(**options)
    alignment.fit(text, image)
    return alignment


def placed(alignment: WhiteningColouring, text: Cloud) -> np.ndarray:
    unit = torch.nn.functional.normalize(torch.tensor(next(iter(text.rows()))).double())
    return alignment.place(unit).numpy()


def test_placed_rows_have_mean_and_covariance_of_the_images(text, image):
    rows = placed(fitted(text, image, ridge=0.0), text)
    target = image.moments.covariance
    assert np.abs(rows.mean(0) - image.moments.mean).max() < 1e-12
    assert np.abs(np.cov(rows.T, bias=True) - target).max() < 1e-8 * np.abs(target).max()


def test_matrix_against_the_closed_form_for_commuting_covariances():
    alignment = WhiteningColouring()
    source, target = np.diag([4.0, 1.0, 0.25]), np.diag([1.0, 9.0, 4.0])
    assert np.allclose(alignment.linear(source, target), np.diag([0.5, 3.0, 4.0]), atol=1e-14)


def test_ridge_carries_the_shrunken_covariances(text, image):
    matrix = fitted(text, image, ridge=0.3).matrix.numpy()
    shrunk = [
        cloud.moments.covariance + 0.3 * np.trace(cloud.moments.covariance) / DIM * np.eye(DIM)
        for cloud in (text, image)
    ]
    assert np.abs(matrix @ shrunk[0] @ matrix.T - shrunk[1]).max() < 1e-12


def test_a_larger_ridge_goes_towards_the_trace_scale(text, image):
    scale = np.sqrt(image.moments.trace / text.moments.trace)
    far = [
        np.linalg.norm(fitted(text, image, ridge=ridge).matrix.numpy() - scale * np.eye(DIM))
        for ridge in (0.0, 0.1, 10.0, 1e6)
    ]
    assert far == sorted(far, reverse=True)
    assert far[-1] < 1e-5


def test_gain_is_the_growth_of_the_radius(text, image):
    alignment = fitted(text, image, ridge=0.05)
    rows = placed(alignment, text)
    radius = np.sqrt(((rows - rows.mean(0)) ** 2).sum(1).mean())
    assert alignment.gain == pytest.approx(radius / np.sqrt(text.moments.trace), rel=1e-9)


def test_centroid_step_lands_on_the_image_mean_before_projection(text, image):
    alignment = fitted(text, image)
    unit = torch.nn.functional.normalize(torch.tensor(next(iter(text.rows()))).double())
    moved = alignment.move(unit.clone()).numpy()
    assert np.abs(moved.mean(0) - image.moments.mean).max() < 1e-12
    plain = fitted(text, image, centroid=False)
    assert torch.equal(plain.move(unit.clone()), plain.place(unit.clone()))
