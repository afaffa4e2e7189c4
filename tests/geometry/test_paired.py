import numpy as np
import pytest

from revision.geometry.paired import check_pairs, describe_residual, direction_cosines, paired_gap
from tests.geometry.clouds import pairs, rotation, unit


def test_energy_of_pairs_is_mean_gap_plus_residual():
    text, image = pairs(0, 90)
    found = paired_gap(text, image)
    energy = float(((image - text) ** 2).sum(1).mean())
    assert found.mean_gap**2 + found.center_discrepancy == pytest.approx(energy, abs=1e-12)
    assert 2 - 2 * found.paired_cosine == pytest.approx(energy, abs=1e-12)
    assert found.residual_energy_share == pytest.approx(found.center_discrepancy / energy)
    assert found.mean_share == pytest.approx(1 - found.residual_energy_share, abs=1e-12)


def test_residual_covariance_comes_from_the_joint_covariance():
    text, image = pairs(1, 90)
    joint = np.cov(np.hstack([text, image]).T, bias=True)
    yy, yx, xy, xx = joint[:16, :16], joint[:16, 16:], joint[16:, :16], joint[16:, 16:]
    values = np.linalg.eigvalsh(xx + yy - xy - yx)[::-1]
    found = paired_gap(text, image).residual
    assert found.trace == pytest.approx(values.sum())
    assert found.anisotropy == pytest.approx(values[0] / values.mean())
    assert found.effective_dimension == pytest.approx(values.sum() ** 2 / (values**2).sum())
    assert np.allclose(found.energy, np.cumsum(values) / values.sum())


def test_distances_are_not_squares():
    text, image = pairs(2, 90)
    gaps = image - text
    lengths = np.linalg.norm(gaps - gaps.mean(0), axis=1)
    found = paired_gap(text, image)
    assert found.residual_length == pytest.approx(lengths.mean())
    expected = lengths.mean() / np.linalg.norm(gaps, axis=1).mean()
    assert found.residual_distance_share == pytest.approx(expected)
    assert found.residual_length <= np.sqrt(found.center_discrepancy)
    assert found.residual_distance_share > found.residual_energy_share


def test_published_values_agree_only_as_squares():
    """|m| = 0.392 and tr S_r = 1.264 give R = 0.892, rho = 0.108 and a paired cosine of 0.291."""
    rng = np.random.default_rng(0)
    axes = np.eye(8)
    residual = np.repeat(axes[2:6], 2, axis=0) * np.tile([1, -1], 4)[:, None] * np.sqrt(1.264)
    gaps = 0.392 * axes[0] + residual
    across = rng.standard_normal((8, 8))
    across -= (across * gaps).sum(1, keepdims=True) * gaps / (gaps**2).sum(1, keepdims=True)
    half = unit(across) * np.sqrt(1 - (gaps**2).sum(1, keepdims=True) / 4)
    found = paired_gap(half - gaps / 2, half + gaps / 2)
    assert found.center_discrepancy == pytest.approx(1.264)
    assert found.residual_energy_share == pytest.approx(0.892, abs=5e-4)
    assert found.mean_share == pytest.approx(0.108, abs=5e-4)
    assert found.paired_cosine == pytest.approx(0.291, abs=5e-4)
    assert 1.05 < found.residual_length < 1.20


def test_direction_cosines_equal_their_definition():
    text, image = pairs(3, 90)
    gaps = image - text
    mean = unit(gaps.mean(0)[None])[0]
    cosines = direction_cosines(gaps)
    assert np.allclose(cosines, unit(gaps) @ mean)
    found = paired_gap(text, image).direction
    assert (found.mean, found.std) == pytest.approx((cosines.mean(), cosines.std()))
    assert found.quantiles[2] == pytest.approx(np.median(cosines))
    assert abs(found.peak - np.median(cosines)) < found.std


def test_gaps_that_are_all_equal_have_cosine_one_and_no_residual():
    gaps = np.tile(np.eye(5)[1], (4, 1))
    assert np.allclose(direction_cosines(gaps), 1)
    assert direction_cosines(np.zeros((3, 5))).tolist() == [0, 0, 0]
    text, _ = pairs(0, 20)
    with pytest.raises(ValueError, match="no spread"):
        paired_gap(text, text)


def test_a_common_rotation_changes_nothing():
    text, image = pairs(4, 90)
    turn = rotation(1)
    one, two = paired_gap(text, image), paired_gap(text @ turn, image @ turn)
    for name in vars(one).keys() - {"residual", "direction"}:
        assert getattr(two, name) == pytest.approx(getattr(one, name)), name
    assert np.allclose(two.residual.energy, one.residual.energy)
    assert two.residual.anisotropy == pytest.approx(one.residual.anisotropy)


def test_residual_after_a_map_is_not_centred():
    text, image = pairs(5, 90)
    gaps = image - text
    mean = gaps.mean(0)
    plain, centred = describe_residual(gaps), describe_residual(gaps - mean)
    assert plain.trace == pytest.approx(centred.trace + mean @ mean)


def test_row_order_changes_nothing_but_broken_pairs_do():
    text, image = pairs(6, 90)
    order = np.random.default_rng(0).permutation(90)
    one = paired_gap(text, image)
    assert paired_gap(text[order], image[order]).residual.trace == pytest.approx(one.residual.trace)
    assert paired_gap(text, image[order]).residual.trace > 1.2 * one.residual.trace


def test_other_numbers_of_rows_are_refused():
    text, image = pairs(0, 9)
    with pytest.raises(ValueError, match="9 text rows and 8 image rows; pairs need the same"):
        check_pairs(text, image[:8])
