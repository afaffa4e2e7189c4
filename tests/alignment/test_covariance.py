"""Roots of covariances, and the laws shared by the maps that are made of them."""

import numpy as np
import pytest
import scipy.linalg
import torch

from revision.alignment import AlignmentMap, Cloud, moments_of
from revision.alignment.covariance import (
    TILE_ROWS,
    check_rows,
    colouring,
    inverse_root,
    root,
    shrink,
    spread,
    times,
)
from revision.alignment.methods.bc import BlockCovariance
from revision.alignment.methods.gauss_ot import GaussianTransport
from revision.alignment.methods.ortho_gap import OrthogonalGap
from revision.alignment.methods.wct import WhiteningColouring
from tests.alignment.numbers import numbers_of
from tests.feature_sets import cloud

DIM = 12
MAPS = {
    "wct": WhiteningColouring,
    "wct_plain": lambda: WhiteningColouring(ridge=0.0, centroid=False),
    "gauss_ot": GaussianTransport,
    "gauss_ot_0.3": lambda: GaussianTransport(alpha=0.3, ridge=0.0),
    "bc": lambda: BlockCovariance(rank=5),
    "bc_energy": lambda: BlockCovariance(rank=None, energy=0.8, ridge=1e-2),
    "bc_printed": lambda: BlockCovariance(rank=5, center=False, ridge=0.0),
    "ortho_own": lambda: OrthogonalGap(num_directions=4),
    "ortho_joint": lambda: OrthogonalGap(num_directions=4, basis="joint", strength=0.7),
}


@pytest.fixture(params=MAPS.values(), ids=MAPS.keys())
def make(request):
    return request.param


@pytest.fixture
def text() -> np.ndarray:
    return cloud(1, 260, DIM).astype(np.float64)


@pytest.fixture
def image() -> np.ndarray:
    return cloud(2, 190, DIM, mean=0.35).astype(np.float64)


@pytest.fixture
def covariances(text, image) -> tuple[np.ndarray, np.ndarray]:
    return Cloud.of(text).moments.covariance, Cloud.of(image).moments.covariance


def fitted(make, text: np.ndarray, image: np.ndarray) -> AlignmentMap:
    alignment = make()
    alignment.fit(Cloud.of(text), Cloud.of(image))
    return alignment


def in_float64(alignment: AlignmentMap, rows: np.ndarray) -> np.ndarray:
    unit = torch.tensor(rows / np.linalg.norm(rows, axis=1, keepdims=True))
    return alignment.transform(unit).numpy()


def test_roots_against_scipy(covariances):
    for covariance in covariances:
        expected = scipy.linalg.sqrtm(covariance)
        assert np.abs(root(covariance) - expected).max() < 1e-13
        assert np.abs(inverse_root(covariance) @ expected - np.eye(DIM)).max() < 1e-10
        assert np.abs(root(covariance) - root(covariance).T).max() < 1e-15


def test_root_of_a_singular_covariance_squares_to_it():
    covariance = np.cov(np.random.default_rng(0).standard_normal((3, DIM)).T, bias=True)
    assert np.abs(root(covariance) @ root(covariance) - covariance).max() < 1e-13
    with pytest.raises(ValueError, match=r"10 of 12 directions have no variance .* set ridge"):
        inverse_root(covariance)


def test_shrinking_adds_to_every_eigenvalue_and_scales_the_trace(covariances):
    covariance = covariances[0]
    shrunk = shrink(covariance, 0.5)
    assert np.trace(shrunk) == pytest.approx(1.5 * np.trace(covariance), rel=1e-14)
    moved = np.linalg.eigvalsh(shrunk) - np.linalg.eigvalsh(covariance)
    assert np.abs(moved - 0.5 * np.trace(covariance) / DIM).max() < 1e-15


def test_colouring_carries_one_covariance_into_the_other(covariances):
    source, target = covariances
    matrix = colouring(source, target)
    assert np.abs(matrix @ source @ matrix.T - target).max() < 1e-8 * np.abs(target).max()
    assert spread(matrix, source) == pytest.approx(np.sqrt(np.trace(target)), rel=1e-9)
    assert np.abs(colouring(source, source) - np.eye(DIM)).max() < 1e-10


def test_times_gives_a_row_the_same_bits_in_every_batch():
    rng = np.random.default_rng(0)
    rows, matrix = (torch.tensor(rng.standard_normal((n, 40))) for n in (256, 40))
    whole = times(rows, matrix)
    assert torch.equal(whole[:0], times(rows[:0], matrix))
    for count in (1, 2, 3, 5, TILE_ROWS, TILE_ROWS + 1, 100, 255):
        assert torch.equal(times(rows[7 : 7 + count], matrix), whole[7 : 7 + count])
    assert (whole - rows @ matrix.T).abs().max() < 1e-13


def test_too_few_rows_are_refused_and_few_are_warned_of(recwarn):
    def moments(count: int):
        return moments_of([cloud(0, count, DIM)])

    with pytest.raises(ValueError, match=r"^12 target rows .* 11 .* 12 are needed.* 13 .* 120$"):
        check_rows(DIM, source=moments(200), target=moments(DIM))
    check_rows(DIM, source=moments(120), target=moments(120))
    assert not recwarn.list
    with pytest.warns(UserWarning, match="^119 source rows for 12 directions: below 120"):
        check_rows(DIM, source=moments(119))


@pytest.mark.parametrize("ridge", [-1e-4, float("nan"), float("inf")])
@pytest.mark.parametrize("method", [WhiteningColouring, GaussianTransport, BlockCovariance])
def test_a_ridge_that_is_no_share_is_refused(method, ridge):
    with pytest.raises(ValueError, match=f"ridge must be a finite number >= 0, not {ridge}"):
        method(ridge=ridge)


@pytest.mark.parametrize("method", [WhiteningColouring, GaussianTransport, BlockCovariance])
def test_maps_refuse_fewer_rows_than_the_covariance_needs(method, text, image):
    with pytest.raises(ValueError, match=r"^12 source rows"):
        fitted(method, text[:DIM], image)
    with pytest.raises(ValueError, match=r"^9 target rows"):
        fitted(method, text, image[:9])


def test_a_flat_cloud_needs_a_ridge(text, image):
    flat = text.copy()
    flat[:, 3] = flat[:, 7]  # one direction without variance
    with pytest.raises(ValueError, match=r"1 of 12 directions .* set ridge"):
        fitted(lambda: WhiteningColouring(ridge=0.0), flat, image)
    aligned = in_float64(fitted(WhiteningColouring, flat, image), flat)
    assert np.isfinite(aligned).all()


def test_outputs_are_float32_unit_rows(make, text, image):
    aligned = fitted(make, text, image)(torch.tensor(text).half())
    assert aligned.dtype == torch.float32
    assert (aligned.double().norm(dim=1) - 1).abs().max() <= 2e-7


def test_float64_until_the_cast(make, text, image):
    alignment = fitted(make, text, image)
    exact = in_float64(alignment, text)
    assert exact.dtype == np.float64
    assert np.abs(np.linalg.norm(exact, axis=1) - 1).max() < 1e-15
    cast = alignment(torch.tensor(text)).numpy()
    assert np.array_equal(cast, exact.astype(np.float32))


def test_a_row_does_not_depend_on_its_batch(make, text, image):
    alignment = fitted(make, text, image)
    rows = torch.nn.functional.normalize(torch.tensor(text))
    whole = alignment.transform(rows.clone())
    for count in (1, 7):
        pieces = [alignment.transform(piece.clone()) for piece in rows.split(count)]
        assert torch.equal(whole, torch.cat(pieces))


def test_fitting_twice_gives_the_same_bits(make, text, image):
    first, second = (fitted(make, text, image).state_dict() for _ in range(2))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_row_order_and_scale_change_nothing_beyond_rounding(make, text, image):
    rng = np.random.default_rng(0)
    shuffled = fitted(
        make,
        rng.permutation(text) * np.exp(rng.standard_normal((len(text), 1))),
        rng.permutation(image) * 3.0,
    )
    difference = in_float64(shuffled, text) - in_float64(fitted(make, text, image), text)
    assert np.abs(difference).max() < 1e-12


def test_a_common_rotation_rotates_the_result(make, text, image):
    turn = np.linalg.qr(np.random.default_rng(0).standard_normal((DIM, DIM)))[0]
    rotated = in_float64(fitted(make, text @ turn, image @ turn), text @ turn)
    expected = in_float64(fitted(make, text, image), text) @ turn
    assert np.abs(rotated - expected).max() < 1e-12


def test_equal_clouds_give_the_identity(make, text):
    unit = text / np.linalg.norm(text, axis=1, keepdims=True)
    difference = in_float64(fitted(make, text, text.copy()), text) - unit
    assert np.abs(difference).max() < 1e-9


def test_phi_does_not_exceed_its_bound(make, text, image):
    numbers = numbers_of(fitted(make, text, image), text)
    assert numbers.phi <= numbers.phi_bound + 1e-12


def test_options_rebuild_the_map(make, text, image):
    alignment = fitted(make, text, image)
    twin = type(alignment)(**alignment.options())
    for name in alignment.buffer_names:
        setattr(twin, name, getattr(alignment, name))
    assert np.array_equal(in_float64(twin, text), in_float64(alignment, text))
