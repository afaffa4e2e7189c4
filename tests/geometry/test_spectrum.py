import numpy as np
import pytest
from scipy.linalg import eigvalsh
from scipy.stats import entropy

from revision.geometry.spectrum import (
    anisotropy,
    condition_number,
    covariance_of,
    cumulative_energy,
    describe,
    effective_dimension,
    effective_rank,
    eigenvalues,
    kappa_eff,
    kappa_null,
    power_law_exponent,
)
from tests.geometry.clouds import covariance, pairs, power_law, rotation


@pytest.fixture
def values() -> np.ndarray:
    return eigenvalues(covariance_of(pairs(0, 60)[0]))


def test_eigenvalues_are_scipys_in_descending_order_and_never_negative():
    rows = pairs(0, 9)[0]  # 9 rows of width 16: eight eigenvalues are 0 up to rounding
    assert np.allclose(covariance_of(rows), np.cov(rows.T, bias=True), atol=1e-15)
    found = eigenvalues(covariance_of(rows))
    assert np.abs(found - eigvalsh(covariance_of(rows))[::-1]).max() < 1e-14
    assert (np.diff(found) <= 0).all() and found.min() >= 0


@pytest.mark.parametrize("exponent", [0.0, 1.06, 1.33, 1.83])
def test_exponent_of_a_power_law_is_found_on_any_ranks_and_scale(exponent):
    law = power_law(exponent, 300)
    assert power_law_exponent(law) == pytest.approx(exponent, abs=1e-12)
    assert power_law_exponent(0.37 * law, 10, 200) == pytest.approx(exponent, abs=1e-12)


def test_exponent_is_the_least_squares_slope_over_the_default_ranks(values):
    ranks = np.arange(1, 9)  # d / 2
    design = np.stack([np.log(ranks), np.ones(8)], axis=1)
    slope = np.linalg.lstsq(design, np.log(values[:8]), rcond=None)[0][0]
    assert power_law_exponent(values) == pytest.approx(-slope, abs=1e-12)
    assert power_law_exponent(np.ones(2000) * power_law(1.0, 2000), 1) == pytest.approx(1.0)


def test_default_ranks_end_at_500():
    law = power_law(1.0, 2000)
    law[500:] *= 1e-3
    assert power_law_exponent(law) == pytest.approx(1.0, abs=1e-12)


def test_exponent_leaves_out_eigenvalues_that_are_rounding():
    law = np.append(power_law(1.5, 10), np.full(90, 1e-17))
    assert power_law_exponent(law, 1, 50) == pytest.approx(1.5, abs=1e-12)


def test_one_rank_has_no_exponent():
    with pytest.raises(ValueError, match=r"ranks 3 to 200 has 1 of at least 2 points: 3 of 16"):
        power_law_exponent(np.append(power_law(1.0, 3), np.zeros(13)), 3, 200)


def test_effective_ranks_are_ordered_and_reach_the_width_only_if_isotropic(values):
    assert 1 <= effective_dimension(values) <= effective_rank(values) <= 16
    assert effective_dimension(values) < 15
    assert effective_rank(np.ones(16)) == pytest.approx(16)
    assert effective_dimension(np.full(16, 3.0)) == pytest.approx(16)
    assert effective_rank(np.eye(16)[0]) == effective_dimension(np.eye(16)[0]) == 1
    assert effective_rank(values) == pytest.approx(np.exp(entropy(values)))


@pytest.mark.parametrize(("exponent", "rank"), [(1.06, 155), (1.33, 39.4), (1.83, 7.1)])
def test_effective_rank_of_power_laws_over_1280_ranks(exponent, rank):
    """What the published exponents imply; the singular-value form is an order of magnitude more."""
    law = power_law(exponent, 1280)
    assert effective_rank(law) == pytest.approx(rank, rel=0.01)
    assert effective_rank(np.sqrt(law)) > 4 * effective_rank(law)


def test_exponent_and_effective_rank_can_rank_two_clouds_in_opposite_order():
    head = np.append(np.ones(60), power_law(3.0, 1220) * 0.5)
    plain = power_law(1.33, 1280)
    assert power_law_exponent(head) > power_law_exponent(plain)
    assert effective_rank(head) > effective_rank(plain)


def test_kappa_is_one_iff_isotropic_finite_and_free_of_scale(values):
    assert kappa_eff(np.full(16, 0.3)) == 1
    assert kappa_eff(values) > 1
    assert kappa_eff(5 * values) == pytest.approx(kappa_eff(values))
    deficient = np.append(values[:8], np.zeros(8))
    assert condition_number(deficient) == np.inf
    assert condition_number(deficient + 1e-18) == np.inf
    assert 1e6 < kappa_eff(deficient) < 1e8
    assert kappa_eff(values, tail=0.5) < kappa_eff(values)
    assert condition_number(values) == pytest.approx(values[0] / values[-1])


@pytest.mark.parametrize(
    ("dim", "count", "null"), [(128, 200_000, 1.11), (384, 200_000, 1.19), (1280, 10_000, 4.47)]
)
def test_sampling_null_of_kappa(dim, count, null):
    assert kappa_null(dim, count) == pytest.approx(null, abs=0.005)


def test_isotropic_samples_have_the_kappa_of_the_null():
    rows = np.random.default_rng(0).standard_normal((300, 30))
    ratio = kappa_eff(eigenvalues(covariance_of(rows))) / kappa_null(30, 300)
    assert 0.75 < ratio < 1.25  # measured 0.90
    few = kappa_eff(eigenvalues(covariance_of(rows[:20])))
    assert 0.5 < few / kappa_null(30, 20) < 2


def test_energy_is_concave_and_starts_at_the_anisotropy(values):
    energy = cumulative_energy(values)
    assert energy[-1] == pytest.approx(1)
    assert (np.diff(energy) >= 0).all() and (np.diff(energy, 2) <= 1e-15).all()
    assert energy[0] == pytest.approx(anisotropy(values) / 16)
    assert cumulative_energy(np.ones(4)).tolist() == [0.25, 0.5, 0.75, 1]
    assert anisotropy(values) > 1 and anisotropy(np.ones(16)) == 1


def test_shape_ignores_rotation_and_scale():
    rows = pairs(1, 80)[0]
    one = describe(eigenvalues(covariance_of(rows)), 80)
    two = describe(eigenvalues(covariance_of(3 * rows @ rotation(4))), 80)
    assert two.trace == pytest.approx(9 * one.trace)
    for name in vars(one).keys() - {"trace", "tail_exponent"}:
        assert getattr(two, name) == pytest.approx(getattr(one, name)), name
    assert one.tail_exponent == pytest.approx(two.tail_exponent)


def test_description_holds_every_number(values):
    found = describe(values, 60)
    assert found.trace == pytest.approx(values.sum())
    assert found.exponent == power_law_exponent(values)
    assert found.effective_rank == effective_rank(values)
    assert found.effective_rank_singular == effective_rank(np.sqrt(values))
    assert found.effective_dimension == effective_dimension(values)
    assert found.condition == condition_number(values)
    assert (found.kappa, found.kappa_null) == (kappa_eff(values), kappa_null(16, 60))
    assert found.anisotropy == anisotropy(values)


def test_narrow_rows_have_no_tail_exponent():
    assert describe(power_law(1.0, 9), 100).tail_exponent is None
    assert describe(power_law(1.0, 300), 900).tail_exponent == pytest.approx(1)


def test_a_cloud_without_spread_is_refused():
    with pytest.raises(ValueError, match="largest of 16 eigenvalues is 0: the cloud has no spread"):
        describe(eigenvalues(covariance_of(np.ones((5, 16)))), 5)


def test_covariance_with_planted_spectrum_is_recovered():
    law = power_law(1.2, 16)
    assert np.abs(eigenvalues(covariance(0, law)) - law).max() < 1e-13
