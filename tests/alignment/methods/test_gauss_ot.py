import numpy as np
import pytest
import scipy.linalg
import torch

from revision.alignment import Cloud
from revision.alignment.methods.gauss_ot import GaussianTransport, monge_matrix
from revision.alignment.methods.realign import ReAlign
from revision.alignment.methods.wct import WhiteningColouring
from tests.feature_sets import cloud

DIM = 10


@pytest.fixture
def text() -> Cloud:
    return Cloud.of(cloud(1, 220, DIM))


@pytest.fixture
def image() -> Cloud:
    return Cloud.of(cloud(2, 180, DIM, mean=0.35))


@pytest.fixture
def covariances(text, image) -> tuple[np.ndarray, np.ndarray]:
    return text.moments.covariance, image.moments.covariance


def fitted(method, text: Cloud, image: Cloud, **options):
    alignment = method(**options)
    alignment.fit(text, image)
    return alignment


def unit_rows(text: Cloud) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.tensor(next(iter(text.rows()))).double())


def displacement(alignment, text: Cloud) -> float:
    rows = unit_rows(text)
    return float((alignment.place(rows.clone()) - rows).square().sum(1).mean())


def test_matrix_is_symmetric_and_positive_semidefinite(covariances):
    matrix = monge_matrix(*covariances)
    assert np.abs(matrix - matrix.T).max() < 1e-15 * np.abs(matrix).max()
    assert np.linalg.eigvalsh(matrix).min() > 0


def test_matrix_carries_one_covariance_into_the_other(covariances):
    source, target = covariances
    matrix = monge_matrix(source, target)
    assert np.abs(matrix @ source @ matrix - target).max() < 1e-8 * np.abs(target).max()


def test_matrix_against_the_printed_formula(covariances):
    source, target = covariances
    half = scipy.linalg.sqrtm(source)
    inverse = np.linalg.inv(half)
    expected = inverse @ scipy.linalg.sqrtm(half @ target @ half) @ inverse
    assert np.abs(monge_matrix(source, target) - expected).max() < 1e-9


def test_a_singular_target_is_matched_too(covariances):
    flat = covariances[1].copy()
    flat[2], flat[:, 2] = 0.0, 0.0
    matrix = monge_matrix(covariances[0], flat)
    assert np.abs(matrix @ covariances[0] @ matrix - flat).max() < 1e-12


def test_placed_rows_have_mean_and_covariance_of_the_images(text, image):
    rows = fitted(GaussianTransport, text, image, ridge=0.0).place(unit_rows(text)).numpy()
    target = image.moments.covariance
    assert np.abs(rows.mean(0) - image.moments.mean).max() < 1e-12
    assert np.abs(np.cov(rows.T, bias=True) - target).max() < 1e-8 * np.abs(target).max()


def test_mean_squared_displacement_is_the_wasserstein_distance(text, image, covariances):
    source, target = covariances
    half = scipy.linalg.sqrtm(source)
    bures = np.trace(source + target - 2 * scipy.linalg.sqrtm(half @ target @ half))
    gap = text.moments.mean - image.moments.mean
    moved = displacement(fitted(GaussianTransport, text, image, ridge=0.0), text)
    assert moved == pytest.approx(gap @ gap + bures, rel=1e-10)


def test_transport_moves_less_than_whitening_and_colouring(text, image):
    """Where the axes of the clouds differ: 0.728 against 0.734 here."""
    turn = np.linalg.qr(np.random.default_rng(3).standard_normal((DIM, DIM)))[0]
    turned = Cloud.of(next(iter(image.rows())) @ turn)
    transport, colouring = (
        displacement(fitted(method, text, turned, ridge=0.0), text)
        for method in (GaussianTransport, WhiteningColouring)
    )
    assert transport < colouring - 1e-3


def test_commuting_covariances_give_the_matrix_of_wct():
    source, target = np.diag([4.0, 1.0, 0.25]), np.diag([1.0, 9.0, 4.0])
    assert np.allclose(monge_matrix(source, target), np.diag([0.5, 3.0, 4.0]), atol=1e-14)
    turn = np.linalg.qr(np.random.default_rng(0).standard_normal((3, 3)))[0]
    source, target = turn @ source @ turn.T, turn @ target @ turn.T
    colouring = WhiteningColouring().linear(source, target)
    assert np.abs(monge_matrix(source, target) - colouring).max() < 1e-13


@pytest.mark.parametrize("centroid", [True, False])
def test_alpha_zero_is_realign(text, image, centroid):
    transport = fitted(GaussianTransport, text, image, alpha=0.0, centroid=centroid)
    realign = fitted(ReAlign, text, image, centroid=centroid)
    rows = unit_rows(text)
    assert (transport.place(rows.clone()) - realign.place(rows.clone())).abs().max() < 1e-14
    assert (transport.transform(rows.clone()) - realign.transform(rows)).abs().max() < 1e-12
    assert transport.gain == pytest.approx(realign.gain, rel=1e-9)


def test_alpha_interpolates_the_placed_rows(text, image):
    rows = unit_rows(text)
    zero, part, one = (
        fitted(GaussianTransport, text, image, alpha=alpha).place(rows.clone())
        for alpha in (0.0, 0.25, 1.0)
    )
    assert (part - (0.75 * zero + 0.25 * one)).abs().max() < 1e-13


@pytest.mark.parametrize("alpha", [-0.1, 1.1])
def test_alpha_outside_its_range_is_refused(alpha):
    with pytest.raises(ValueError, match=f"between 0 and 1, not {alpha}"):
        GaussianTransport(alpha=alpha)
