import numpy as np
import pytest

from revision.geometry.frame import principal_axes
from revision.geometry.marginal import (
    covariance_gap,
    overlap_curve,
    principal_angles,
    spectral_correlation,
)
from revision.geometry.spectrum import covariance_of, eigenvalues
from tests.geometry.clouds import covariance, pairs, power_law, rotation

FIXED = np.eye(16)


def axes(matrix: np.ndarray) -> np.ndarray:
    return principal_axes(matrix)[1]


def test_covariance_gap_equals_its_definition():
    text, image = pairs(0, 90)
    s_y, s_x = np.cov(text.T, bias=True), np.cov(image.T, bias=True)
    absolute = np.sqrt(((s_x - s_y) ** 2).sum())
    assert covariance_gap(s_y, s_x) == pytest.approx(absolute / np.linalg.norm(s_x))


def test_equal_clouds_do_not_differ():
    same = covariance_of(pairs(0, 90)[0])
    assert covariance_gap(same, same) == 0
    assert spectral_correlation(eigenvalues(same), eigenvalues(same)) == pytest.approx(1)
    for overlap in overlap_curve(axes(same), axes(same)):
        assert overlap.value == pytest.approx(1)
    assert principal_angles(axes(same)[:, :4], axes(same)[:, :4])[0] < 1e-7


def test_a_common_rotation_changes_nothing():
    one = [covariance_of(rows) for rows in pairs(1, 90)]
    two = [rotation(5).T @ each @ rotation(5) for each in one]
    assert covariance_gap(*two) == pytest.approx(covariance_gap(*one))
    for a, b in zip(overlap_curve(*map(axes, one)), overlap_curve(*map(axes, two)), strict=True):
        assert b.value == pytest.approx(a.value, abs=1e-7)


def test_the_relative_form_is_relative_to_the_images():
    assert covariance_gap(np.eye(4), 2 * np.eye(4)) == pytest.approx(0.5)
    assert covariance_gap(2 * np.eye(4), np.eye(4)) == pytest.approx(1)


def test_any_two_power_laws_correlate_fully():
    """So C_lambda cannot show that exponents agree."""
    assert spectral_correlation(power_law(1.06, 64), 9 * power_law(1.83, 64)) == pytest.approx(1)


def test_correlation_of_spectra_uses_the_asked_ranks_and_no_rounding():
    text, image = np.sort(np.random.default_rng(0).random((2, 12)))[:, ::-1]
    expected = np.corrcoef(np.log(text[:5]), np.log(image[:5]))[0, 1]
    assert spectral_correlation(text, image, 5) == pytest.approx(expected)
    cut = text.copy()
    cut[5:] = 1e-16
    assert spectral_correlation(cut, image) == pytest.approx(expected)
    assert spectral_correlation(image, cut) == pytest.approx(expected)
    assert -1 <= spectral_correlation(text, image) <= 1


def test_two_eigenvalues_always_correlate_and_are_refused():
    with pytest.raises(ValueError, match="2 of 12 eigenvalues can be compared and at least 3"):
        spectral_correlation(power_law(1.0, 12), power_law(1.0, 12), 2)


def test_overlap_is_the_trace_of_the_product_of_projectors():
    one, two = (covariance(seed, power_law(1.0, 16)) for seed in (0, 1))
    for overlap in overlap_curve(axes(one), axes(two)):
        u, v = (principal_axes(c)[1][:, : overlap.size] for c in (one, two))
        expected = np.trace(u @ u.T @ v @ v.T) / overlap.size
        assert overlap.value == pytest.approx(expected)
        assert 0 <= overlap.value <= 1 + 1e-12
    assert [o.size for o in overlap_curve(axes(one), axes(two))] == [1, 2, 4, 8, 16]
    assert overlap.value == pytest.approx(1) and overlap.null == 1


def test_random_subspaces_overlap_by_q_over_d():
    curves = [overlap_curve(axes(covariance(s, power_law(1.0, 16))), FIXED) for s in range(60)]
    found = [[overlap.value for overlap in curve] for curve in curves]
    null = [o.null for o in overlap_curve(FIXED, FIXED)]
    assert null == [1 / 16, 1 / 8, 1 / 4, 1 / 2, 1]
    assert np.abs(np.mean(found, axis=0) - null).max() < 0.03  # measured 0.006


@pytest.mark.parametrize("angle", [1e-10, 1e-5, 0.3, np.pi / 2])
def test_principal_angles_keep_their_digits_near_zero(angle):
    one = np.eye(6)[:, :2]
    two = one.copy()
    two[:, 0] = np.cos(angle) * np.eye(6)[0] + np.sin(angle) * np.eye(6)[4]
    found = principal_angles(one, two)
    assert found[0] == pytest.approx(angle, rel=1e-5)
    assert found[1] < 1e-14
