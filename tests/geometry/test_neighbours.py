from itertools import combinations

import numpy as np
import pytest
from scipy.stats import binom

from revision.geometry import neighbours
from revision.geometry.neighbours import (
    binary_entropy,
    expected_entropy,
    mixing,
    nearest_others,
    neighbour_overlap,
)
from tests.geometry.clouds import pairs, unit


def by_sorting(rows: np.ndarray, count: int) -> np.ndarray:
    """The definition: cosines rounded far below any difference, ties by position."""
    similar = np.round(rows @ rows.T, 11)
    np.fill_diagonal(similar, -2)
    return np.argsort(-similar, axis=1, kind="stable")[:, :count]


def sphere(seed: int, count: int, dim: int = 12) -> np.ndarray:
    return unit(np.random.default_rng(seed).standard_normal((count, dim)))


@pytest.mark.parametrize("count", [1, 5, 20, 119])
def test_neighbours_are_those_of_a_full_sort(count):
    rows = sphere(0, 120)
    assert (nearest_others(rows, count) == by_sorting(rows, count)).all()


@pytest.mark.parametrize("count", [1, 3, 7, 20])
def test_ties_go_to_the_row_that_comes_first(count, monkeypatch):
    """Copies as of repeated captions, more than are asked for, and in blocks."""
    rng = np.random.default_rng(1)
    rows = sphere(1, 30)[rng.integers(0, 30, 150)]
    rows[:25] = rows[0]
    rows += 1e-15 * rng.standard_normal(rows.shape)  # as another order of summation would
    expected = by_sorting(rows, count)
    assert (nearest_others(rows, count) == expected).all()
    monkeypatch.setattr(neighbours, "BLOCK_RESULTS", 300)
    assert (nearest_others(rows, count) == expected).all()


def test_equal_rows_have_neighbours_too():
    rows = np.tile(sphere(0, 1), (40, 1))
    found = nearest_others(rows, 3)
    assert found[:4].tolist() == [[1, 2, 3], [0, 2, 3], [0, 1, 3], [0, 1, 2]]
    assert (found[4:] == [0, 1, 2]).all()


def test_fewer_neighbours_are_the_first_of_more():
    rows = sphere(2, 60)[np.random.default_rng(0).integers(0, 60, 100)]
    assert (nearest_others(rows, 15)[:, :4] == nearest_others(rows, 4)).all()


def test_more_neighbours_than_other_rows_are_refused():
    with pytest.raises(ValueError, match="9 rows have 8 neighbours each, not 9"):
        nearest_others(sphere(0, 9), 9)


@pytest.mark.parametrize(("count", "value"), [(10, 0.9235), (20, 0.9630), (50, 0.9854)])
def test_expected_entropy_of_large_equal_sets(count, value):
    assert expected_entropy(count, 10**7, 10**7) == pytest.approx(value, abs=6e-5)
    chances = binom(count, 0.5).pmf(np.arange(count + 1))
    large = float(chances @ binary_entropy(np.arange(count + 1) / count))
    assert expected_entropy(count, 10**7, 10**7) == pytest.approx(large, abs=1e-5)


def test_normaliser_is_the_mean_over_all_labels():
    """The published normaliser permutes the origins; here every way to call 3 of 8 rows images."""
    pool = sphere(3, 8)
    found = nearest_others(pool, 4)
    of_aligned, of_image = [], []
    for chosen in combinations(range(8), 3):
        is_image = np.isin(np.arange(8), chosen)
        entropies = binary_entropy(is_image[found].mean(1))
        of_aligned.append(entropies[~is_image].mean())
        of_image.append(entropies[is_image].mean())
    measured = mixing(pool[:3], pool[3:], (4,))[0]
    penetration = binary_entropy(measured.of_aligned).mean() / np.mean(of_aligned)
    coverage = binary_entropy(measured.of_image).mean() / np.mean(of_image)
    assert measured.penetration == pytest.approx(penetration, rel=1e-12)
    assert measured.coverage == pytest.approx(coverage, rel=1e-12)


def test_mixing_counts_images_in_the_pool_without_the_row_itself():
    image, aligned = sphere(5, 30), sphere(6, 50)
    found = by_sorting(np.concatenate([image, aligned]), 8)
    shares = (found < 30).mean(1)
    measured = mixing(image, aligned, (3, 8))[1]
    assert measured.size == 8
    assert measured.rate == pytest.approx(shares[30:].mean())
    assert measured.touched == pytest.approx((shares[30:] > 0).mean())
    assert measured.of_image == pytest.approx(shares[:30])


def test_clouds_that_are_apart_do_not_mix():
    image, aligned = (
        unit(sphere(0, 40) + 9 * np.eye(12)[0]),
        unit(sphere(1, 40) - 9 * np.eye(12)[0]),
    )
    measured = mixing(image, aligned)[0]
    assert measured.rate == measured.touched == measured.penetration == measured.coverage == 0


def test_clouds_of_one_distribution_mix_fully():
    measured = mixing(sphere(0, 150), sphere(1, 150))[0]
    assert measured.penetration == pytest.approx(1, abs=0.03)  # measured 0.99
    assert measured.coverage == pytest.approx(1, abs=0.03)
    assert measured.rate == pytest.approx(150 / 299, abs=0.05)
    assert max(measured.penetration_rows.max(), measured.coverage_rows.max()) < 1.05


def test_row_order_changes_nothing():
    image, aligned = pairs(0, 80)
    order = np.random.default_rng(0).permutation(80)
    one, two = mixing(image, aligned, (10,))[0], mixing(image[order], aligned[::-1], (10,))[0]
    assert (two.of_image == one.of_image[order]).all()
    assert (two.of_aligned == one.of_aligned[::-1]).all()


def test_overlap_is_the_size_of_the_intersection():
    one, two = (nearest_others(sphere(seed, 60), 9) for seed in (0, 1))
    expected = [len(set(a[:7]) & set(b[:7])) / 7 for a, b in zip(one, two, strict=True)]
    assert neighbour_overlap(one, two, 7) == pytest.approx(expected)
    assert (neighbour_overlap(one, one, 9) == 1).all()
    with pytest.raises(ValueError, match="overlap of 10 neighbours asked of lists of 9 and 9"):
        neighbour_overlap(one, two, 10)
