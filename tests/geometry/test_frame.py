import numpy as np
import pytest

from revision.geometry.frame import Frame, principal_axes, reference_frame

DIM = 9


def covariance(seed: int, dim: int = DIM) -> np.ndarray:
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((4 * dim, dim)) * np.arange(1, dim + 1) ** -0.7
    return np.cov(rows.T, bias=True)


def rotation(seed: int = 5, dim: int = DIM) -> np.ndarray:
    return np.linalg.qr(np.random.default_rng(seed).standard_normal((dim, dim)))[0]


@pytest.fixture
def covariances() -> tuple[np.ndarray, np.ndarray]:
    return covariance(1), covariance(2)


@pytest.fixture
def frame(covariances) -> Frame:
    return reference_frame(*covariances, rank=4)


def test_the_frame_diagonalises_the_sum_in_descending_order(covariances, frame):
    diagonal = frame.vectors.T @ sum(covariances) @ frame.vectors
    assert np.abs(diagonal - np.diag(frame.values)).max() < 1e-14
    assert (np.diff(frame.values) <= 0).all()
    assert frame.basis.shape == (DIM, 4) and frame.complement.shape == (DIM, DIM - 4)


def test_bases_are_orthonormal_and_orthogonal_to_each_other(frame):
    assert np.abs(frame.basis.T @ frame.basis - np.eye(4)).max() < 1e-14
    assert np.abs(frame.complement.T @ frame.complement - np.eye(DIM - 4)).max() < 1e-14
    assert np.abs(frame.basis.T @ frame.complement).max() < 1e-14


def test_the_parts_are_projections_that_add_up(frame):
    vectors = np.random.default_rng(0).standard_normal((3, 5, DIM))
    inside, outside = frame.split(vectors)
    assert np.abs(inside + outside - vectors).max() < 1e-15
    assert np.abs(frame.split(inside)[0] - inside).max() < 1e-14
    assert np.abs(frame.split(inside)[1]).max() < 1e-14
    assert np.abs(np.sum(inside * outside, axis=-1)).max() < 1e-13


def test_the_mean_gap_splits_into_beta_and_gamma(frame):
    gap = np.random.default_rng(0).standard_normal(DIM)
    beta, gamma = frame.split(gap)
    assert np.abs(frame.basis.T @ gamma).max() < 1e-14
    assert gap @ gap == pytest.approx(beta @ beta + gamma @ gamma, rel=1e-14)


def test_a_common_rotation_rotates_the_subspace(covariances, frame):
    turn = rotation()
    turned = reference_frame(*(turn @ cov @ turn.T for cov in covariances), rank=4)
    expected = turn @ frame.basis @ frame.basis.T @ turn.T
    assert np.abs(turned.basis @ turned.basis.T - expected).max() < 1e-12
    assert np.abs(turned.values - frame.values).max() < 1e-14


def test_full_rank_leaves_nothing_outside(covariances):
    frame = reference_frame(*covariances, rank=DIM)
    assert np.abs(frame.split(np.eye(DIM))[1]).max() < 1e-14
    assert frame.complement.shape == (DIM, 0)
    assert frame.energy == 1.0


def test_the_largest_entry_of_every_eigenvector_is_positive(frame):
    largest = np.abs(frame.vectors).argmax(0)
    assert (frame.vectors[largest, np.arange(DIM)] > 0).all()
    negated = principal_axes(np.diag(np.arange(1.0, 5.0)))[1]
    assert np.array_equal(negated, np.eye(4)[:, ::-1])


def test_energy_chooses_the_smallest_sufficient_rank():
    half = np.diag([4.0, 3.0, 2.0, 1.0]) / 2
    ranks = {
        energy: reference_frame(half, half, rank=None, energy=energy).rank
        for energy in (0.05, 0.4, 0.41, 0.7, 0.71, 0.9, 0.95, 1.0)
    }
    assert ranks == {0.05: 1, 0.4: 1, 0.41: 2, 0.7: 2, 0.71: 3, 0.9: 3, 0.95: 4, 1.0: 4}


def test_energy_is_the_share_of_the_variance_inside(covariances, frame):
    inside = np.trace(frame.basis.T @ sum(covariances) @ frame.basis)
    assert frame.energy == pytest.approx(inside / np.trace(sum(covariances)), rel=1e-13)


def test_a_ridge_moves_eigenvalues_and_no_subspace(covariances):
    plain = reference_frame(*covariances, rank=None, energy=0.8)
    ridged = reference_frame(*covariances, rank=None, energy=0.8, ridge=0.1)
    assert np.array_equal(ridged.basis, plain.basis)
    added = 0.1 * np.trace(sum(covariances)) / DIM
    assert np.abs(ridged.values - plain.values - added).max() < 1e-15


def test_axes_of_a_singular_covariance_are_clipped_at_zero():
    rows = np.random.default_rng(0).standard_normal((4, DIM))
    values, vectors = principal_axes(np.cov(rows.T, bias=True))
    assert (values >= 0).all() and (values[3:] < 1e-15).all()
    assert np.abs(vectors.T @ vectors - np.eye(DIM)).max() < 1e-14


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 10}, "rank 10 does not fit rows of width 9"),
        ({}, "rank 128 does not fit rows of width 9"),
        ({"rank": 0}, "rank >= 1, not 0"),
        ({"rank": None}, "rank is None and energy None"),
        ({"rank": 4, "energy": 0.9}, r"rank is 4 and energy 0\.9"),
        ({"rank": None, "energy": 0.0}, r"\(0, 1\], not 0\.0"),
        ({"rank": None, "energy": 1.5}, r"\(0, 1\], not 1\.5"),
        ({"rank": 4, "ridge": -0.1}, r"not be negative, not -0\.1"),
    ],
)
def test_impossible_options_are_refused(covariances, options, message):
    with pytest.raises(ValueError, match=message):
        reference_frame(*covariances, **options)


def test_a_matrix_that_is_no_covariance_is_refused(covariances):
    skew = covariances[0].copy()
    skew[0, 1] += 1e-3
    with pytest.raises(ValueError, match=r"asymmetry 0\.001"):
        principal_axes(skew)
    with pytest.raises(ValueError, match=r"smallest eigenvalue -0\.5, largest 2"):
        principal_axes(np.diag([2.0, 1.0, -0.5]))
    with pytest.raises(ValueError, match="2 entries of a covariance are not finite"):
        principal_axes(np.where(np.eye(2) == 1, np.nan, 0.0))
