import numpy as np
import pytest
from scipy.spatial.distance import jensenshannon
from scipy.stats import gaussian_kde

from revision.geometry.angles import (
    angle_divergence,
    cosine_density,
    jensen_shannon,
    pair_cosines,
    random_pairs,
    silverman,
)
from tests.geometry.clouds import pairs, rotation, unit


def densities() -> tuple[np.ndarray, np.ndarray]:
    return tuple(
        cosine_density(pair_cosines(rows, random_pairs(len(rows))))[1] for rows in pairs(0, 200)
    )


def test_pairs_are_never_of_a_row_with_itself_and_depend_on_the_seed_only():
    found = random_pairs(50, 1000, seed=3)
    assert found.shape == (1000, 2) and found.min() == 0 and found.max() == 49
    assert (found[:, 0] != found[:, 1]).all()
    assert (found == random_pairs(50, 1000, seed=3)).all()
    assert (found != random_pairs(50, 1000, seed=4)).any()
    counts = np.bincount(random_pairs(10, 44, seed=0).ravel(), minlength=10)
    assert counts.min() > 0


def test_all_pairs_are_taken_once_where_there_are_no_more():
    found = random_pairs(20, 190)
    assert {tuple(pair) for pair in found.tolist()} == {(i, j) for j in range(20) for i in range(j)}
    assert len(found) == 190


def test_one_row_has_no_pair():
    with pytest.raises(ValueError, match="1 rows have no pair"):
        random_pairs(1)


def test_cosines_are_products_of_rows():
    text = pairs(1, 150)[0]
    chosen = random_pairs(150, 9000)  # more than one block
    expected = (text @ text.T)[chosen[:, 0], chosen[:, 1]]
    assert np.abs(pair_cosines(text, chosen) - expected).max() < 1e-14


def test_density_is_scipys_with_silverman_bandwidth():
    """Rounding to the fine grid moves it by 5e-5 of its height."""
    cosines = pair_cosines(pairs(2, 80)[0], random_pairs(80))
    grid, density = cosine_density(cosines)
    expected = gaussian_kde(cosines, "silverman")(grid)
    assert np.abs(density - expected).max() < 1e-3 * expected.max()
    assert silverman(cosines) == pytest.approx(
        np.sqrt(gaussian_kde(cosines, "silverman").covariance)
    )
    assert density.sum() * (grid[1] - grid[0]) == pytest.approx(1)
    assert (len(grid), grid[0], grid[-1]) == (1024, -1, 1)


def test_weights_are_repetitions():
    cosines = pair_cosines(pairs(2, 40)[0], random_pairs(40))
    counts = np.random.default_rng(0).integers(0, 3, len(cosines))
    weighted = cosine_density(cosines, weights=counts.astype(float), bandwidth=0.02)[1]
    repeated = cosine_density(np.repeat(cosines, counts), bandwidth=0.02)[1]
    assert np.abs(weighted - repeated).max() < 1e-12 * repeated.max()


def test_equal_rows_give_a_spike():
    grid, density = cosine_density(np.ones(30))
    assert np.isfinite(density).all() and grid[density.argmax()] == 1


def test_divergence_is_scipys():
    p, q = densities()
    found = jensen_shannon(p, q)
    assert found.nats == pytest.approx(jensenshannon(p, q) ** 2)
    assert found.bits == pytest.approx(jensenshannon(p, q, base=2) ** 2)


def test_divergence_is_symmetric_zero_iff_equal_and_at_most_a_bit():
    p, q = densities()
    assert jensen_shannon(p, q).nats == pytest.approx(jensen_shannon(q, p).nats)
    assert jensen_shannon(p, 3 * p).nats == pytest.approx(0, abs=1e-15)
    assert 0 < jensen_shannon(p, q).bits < 1
    assert jensen_shannon(np.eye(9)[0], np.eye(9)[5]).bits == pytest.approx(1)


def test_divergence_of_clouds_ignores_rotation_and_sees_spread():
    text, image = pairs(3, 150)
    assert angle_divergence(text, text @ rotation(0)).nats < 1e-6
    assert angle_divergence(text, unit(image + image.mean(0))).nats > 0.01
    image = unit(image + image.mean(0))
    again = angle_divergence(text, image, count=2000, seed=1)
    assert again.nats == pytest.approx(angle_divergence(text, image).nats, rel=0.2)
