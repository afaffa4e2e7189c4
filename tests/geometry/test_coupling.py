import numpy as np
import pytest

from revision.geometry.coupling import coupling_map, explained_share, measure_coupling

RANK, REST = 5, 7


def normal(seed: int, count: int, width: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, width))


def test_a_planted_map_is_found_and_explains_everything():
    planted, delta = normal(0, REST, RANK), normal(1, 90, RANK)
    found = measure_coupling(delta, delta @ planted.T)
    assert found.explained == pytest.approx(1, abs=1e-9)
    assert found.explained_held_out == pytest.approx(1, abs=1e-9)
    assert np.abs(coupling_map(delta, delta @ planted.T) - planted).max() < 1e-5
    assert found.strength == pytest.approx(np.linalg.svd(planted)[1][0], rel=1e-5)


def test_independent_residuals_have_the_null_in_sample_and_nothing_held_out():
    found = [measure_coupling(normal(s, 100, RANK), normal(50 + s, 100, REST)) for s in range(20)]
    assert np.mean([f.explained for f in found]) == pytest.approx(RANK / 100, rel=0.15)
    assert found[0].null == RANK / 100
    held_out = np.mean([f.explained_held_out for f in found])
    assert found[0].null_held_out == -RANK / (50 - RANK - 1)
    assert held_out == pytest.approx(found[0].null_held_out, abs=0.02)  # -0.114; measured -0.12


def test_too_few_rows_explain_far_less_than_nothing():
    found = measure_coupling(normal(0, 44, 20), normal(1, 44, REST))
    assert found.explained_held_out < -1
    assert found.explained > 0.3
    assert found.null_held_out == -20
    assert measure_coupling(normal(0, 42, 20), normal(1, 42, REST)).null_held_out is None


def test_covariance_outside_is_the_coupled_part_plus_the_rest():
    planted, delta = normal(0, REST, RANK), normal(1, 200, RANK)
    zeta = delta @ planted.T + 0.5 * normal(2, 200, REST)
    matrix = coupling_map(delta, zeta, ridge=1e-14)
    left = zeta - delta @ matrix.T
    inside = delta.T @ delta / 200
    expected = matrix @ inside @ matrix.T + left.T @ left / 200
    assert np.abs(zeta.T @ zeta / 200 - expected).max() < 1e-9
    assert explained_share(matrix, delta, zeta) == pytest.approx(
        1 - np.trace(left.T @ left) / np.trace(zeta.T @ zeta)
    )


def test_map_is_the_ridge_solution_of_augmented_least_squares():
    delta, zeta = normal(3, 40, RANK), normal(4, 40, REST)
    loading = 0.1 * (delta**2).sum() / RANK
    rows = np.vstack([delta, np.sqrt(loading) * np.eye(RANK)])
    expected = np.linalg.lstsq(rows, np.vstack([zeta, np.zeros((RANK, REST))]), rcond=None)[0].T
    assert np.abs(coupling_map(delta, zeta, ridge=0.1) - expected).max() < 1e-12


def test_axes_and_order_change_nothing_in_sample():
    delta, zeta = normal(5, 60, RANK), normal(6, 60, REST)
    turn = np.linalg.qr(normal(7, RANK, RANK))[0]
    one, two = measure_coupling(delta, zeta), measure_coupling((delta @ turn)[::-1], zeta[::-1])
    assert (two.strength, two.explained) == pytest.approx((one.strength, one.explained))


def test_residuals_that_allow_no_fit_are_refused():
    with pytest.raises(ValueError, match="3 residuals do not make two halves"):
        measure_coupling(normal(0, 3, RANK), normal(1, 3, REST))
    with pytest.raises(ValueError, match="9 residuals inside U have no energy"):
        measure_coupling(np.zeros((9, RANK)), normal(1, 9, REST))
    with pytest.raises(ValueError, match="9 residuals outside U are all 0"):
        measure_coupling(normal(0, 9, RANK), np.zeros((9, REST)))
