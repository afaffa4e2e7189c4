import numpy as np
import pytest
import torch

from revision.alignment import Cloud
from revision.alignment.methods.bc import BlockCovariance, blockwise
from revision.alignment.methods.wct import WhiteningColouring
from revision.geometry.frame import Frame, reference_frame
from tests.feature_sets import cloud

DIM, RANK = 10, 4


@pytest.fixture
def text() -> Cloud:
    return Cloud.of(cloud(1, 220, DIM))


@pytest.fixture
def image() -> Cloud:
    return Cloud.of(cloud(2, 180, DIM, mean=0.35))


@pytest.fixture
def frame(text, image) -> Frame:
    return reference_frame(text.moments.covariance, image.moments.covariance, rank=RANK)


def fitted(method, text: Cloud, image: Cloud, **options):
    alignment = method(**options)
    alignment.fit(text, image)
    return alignment


def unit_rows(text: Cloud) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.tensor(next(iter(text.rows()))).double())


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_block_covariances_before_projection_are_those_of_the_images(text, image, frame):
    alignment = fitted(BlockCovariance, text, image, rank=RANK, ridge=0.0)
    rows = alignment.place(unit_rows(text)).numpy()
    covariance, target = np.cov(rows.T, bias=True), image.moments.covariance
    assert np.abs(rows.mean(0) - image.moments.mean).max() < 1e-12
    for basis in (frame.basis, frame.complement):
        assert np.abs(basis.T @ (covariance - target) @ basis).max() < 1e-8 * target.max()
    cross = frame.basis.T @ (covariance - target) @ frame.complement
    assert np.abs(cross).max() > 1e-3 * target.max()  # not matched, as stated


def test_without_centring_every_step_is_as_printed(text, image, frame):
    alignment = fitted(BlockCovariance, text, image, rank=RANK, ridge=0.0, center=False)
    anchored = unit(unit_rows(text).numpy() - text.moments.mean + image.moments.mean)
    matrix = blockwise(frame, np.cov(anchored.T, bias=True), image.moments.covariance, 0.0)
    second = unit(anchored @ matrix.T)
    expected = unit(second - second.mean(0) + image.moments.mean)
    assert np.abs(alignment.transform(unit_rows(text)).numpy() - expected).max() < 1e-12


def test_blocks_do_not_mix_u_and_v(text, image, frame):
    matrix = blockwise(frame, text.moments.covariance, image.moments.covariance, 1e-4)
    assert np.abs(frame.complement.T @ matrix @ frame.basis).max() < 1e-14
    assert np.abs(frame.basis.T @ matrix @ frame.complement).max() < 1e-14
    assert np.linalg.matrix_rank(matrix) == DIM


@pytest.mark.parametrize("ridge", [0.0, 1e-2])
def test_full_rank_is_wct_after_an_anchor(text, image, ridge):
    blocks = fitted(BlockCovariance, text, image, rank=DIM, ridge=ridge)
    anchored = blocks.anchor(unit_rows(text))
    colouring = fitted(WhiteningColouring, Cloud.of(anchored.numpy()), image, ridge=ridge)
    difference = blocks.transform(unit_rows(text)) - colouring.transform(anchored.clone())
    assert difference.abs().max() < 1e-11


def test_full_energy_is_full_rank(text, image):
    full = fitted(BlockCovariance, text, image, rank=DIM)
    energy = fitted(BlockCovariance, text, image, rank=None, energy=1.0)
    assert int(energy.rank_used) == DIM
    assert torch.equal(energy.matrix, full.matrix)


def test_energy_chooses_the_rank_of_the_frame(text, image):
    covariances = text.moments.covariance, image.moments.covariance
    frame = reference_frame(*covariances, rank=None, energy=0.6)
    alignment = fitted(BlockCovariance, text, image, rank=None, energy=0.6)
    assert 1 < int(alignment.rank_used) == frame.rank < DIM


def test_gain_is_the_growth_of_the_radius(text, image):
    alignment = fitted(BlockCovariance, text, image, rank=RANK, ridge=0.05)
    rows = alignment.place(unit_rows(text)).numpy()
    radius = np.sqrt(((rows - rows.mean(0)) ** 2).sum(1).mean())
    assert alignment.gain == pytest.approx(radius / np.sqrt(text.moments.trace), rel=1e-9)


def test_centroid_step_lands_on_the_image_mean_before_projection(text, image):
    for center in (True, False):
        alignment = fitted(BlockCovariance, text, image, rank=RANK, center=center)
        moved = alignment.move(unit_rows(text)).numpy()
        assert np.abs(moved.mean(0) - image.moments.mean).max() < 1e-12


def test_impossible_options_are_refused(text, image):
    with pytest.raises(ValueError, match=r"rank is 128 and energy 0\.9"):
        BlockCovariance(energy=0.9)
    with pytest.raises(ValueError, match="rank 128 does not fit rows of width 10"):
        fitted(BlockCovariance, text, image)
