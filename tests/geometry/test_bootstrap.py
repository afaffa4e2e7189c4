import numpy as np
import pytest
import scipy.stats

from revision.geometry import bootstrap as module
from revision.geometry.angles import pair_cosines, random_pairs
from revision.geometry.bootstrap import (
    bootstrap,
    bootstrap_means,
    bootstrap_rows,
    bootstrap_squared_gap,
    pair_weights,
)
from revision.geometry.floor import paired_noise
from revision.geometry.intervals import length_number
from revision.geometry.neighbours import mixing
from tests.geometry.clouds import pairs, unit


def test_interval_of_a_mean_is_scipys():
    """Both are Monte Carlo; 4000 draws agree to 5 % of the width."""
    numbers = np.random.default_rng(0).exponential(size=80)
    found = bootstrap_rows(numbers, draws=4000)
    expected = scipy.stats.bootstrap(
        (numbers,), np.mean, n_resamples=4000, method="percentile", random_state=1
    ).confidence_interval
    width = expected.high - expected.low
    assert abs(found.low - expected.low) < 0.05 * width
    assert abs(found.high - expected.high) < 0.05 * width
    assert found.estimate == pytest.approx(numbers.mean())
    assert abs(found.bias) < 0.02 * width


def test_interval_covers_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(0)
    found = [bootstrap_rows(rng.standard_normal(60) + 3, draws=200) for _ in range(200)]
    covered = np.mean([f.low <= 3 <= f.high for f in found])
    assert 0.85 < covered < 0.99  # measured 0.90


def test_counts_are_rows_drawn_with_replacement():
    rows = np.random.default_rng(0).random((30, 2))
    seen = []
    bootstrap(lambda w: seen.append(w) or 0.0, [30], draws=50)
    assert (seen[0] == 1).all() and len(seen) == 51
    assert all(w.sum() == 30 and w.min() >= 0 for w in seen)
    repeated = bootstrap(lambda w: float(np.repeat(rows, w, axis=0)[:, 0].mean()), [30])
    assert vars(repeated) == pytest.approx(vars(bootstrap_rows(np.ascontiguousarray(rows[:, 0]))))


def test_the_same_seed_gives_the_same_interval_in_any_blocks(monkeypatch):
    text, image = pairs(0, 40)
    groups = [(text,), (image,)]
    one = bootstrap_squared_gap(groups, draws=90)
    monkeypatch.setattr(module, "BLOCK_COUNTS", 200)
    assert vars(bootstrap_squared_gap(groups, draws=90)) == pytest.approx(vars(one))
    assert bootstrap_squared_gap(groups, draws=90, seed=1).low != one.low


def test_pairs_stay_together():
    """Shared variation cancels: the interval of pairs is narrower, and rows alone cannot tell."""
    rng = np.random.default_rng(0)
    text = rng.standard_normal((80, 4))
    image = text + np.eye(4)[0] + 0.05 * rng.standard_normal((80, 4))
    together = bootstrap_squared_gap([(text, image)])
    apart = bootstrap_squared_gap([(text,), (image,)])
    assert together.high - together.low < 0.2 * (apart.high - apart.low)
    assert together.estimate == apart.estimate


def test_groups_of_other_lengths_are_drawn_apart():
    text, image = pairs(1, 50)
    found = bootstrap_means(
        lambda y, z, x: float(x @ z - x @ y), [(text, image), (image[:20],)], draws=50
    )
    assert found.low < found.estimate < found.high
    with pytest.raises(ValueError, match=r"arrays of one group have \[20, 50\] rows"):
        bootstrap_squared_gap([(text, image[:20])])


def test_plain_percentiles_of_a_gap_at_its_floor_miss_the_estimate():
    """And the correction in the square does not: the caution and its remedy."""
    rng = np.random.default_rng(0)
    text, image = rng.standard_normal((2, 60, 20))
    plain = bootstrap_means(lambda y, x: float(np.linalg.norm(x - y)), [(text, image)], draws=400)
    square = bootstrap_squared_gap([(text, image)], draws=400)
    corrected = length_number(square)
    assert plain.low > plain.estimate
    assert corrected["low"] < corrected["value"] < corrected["high"]
    assert square.bias == pytest.approx(paired_noise(text, image), rel=0.1)


@pytest.mark.parametrize("gap", [0.0, 0.5, 3.0])
def test_gap_interval_covers_the_gap_to_expect_of_as_many_rows(gap):
    rng = np.random.default_rng(1)
    expected = np.sqrt(gap**2 + 2 * 20 / 60)
    found = []
    for _ in range(60):
        text, image = rng.standard_normal((2, 60, 20))
        groups = [(text, image + gap * np.eye(20)[0])]
        found.append(length_number(bootstrap_squared_gap(groups, draws=200)))
    assert np.mean([f["low"] <= expected <= f["high"] for f in found]) > 0.85  # measured 0.93 to 1


def test_neighbours_must_not_be_searched_among_drawn_rows():
    """Copies are each other's neighbours: mixing of one distribution would fall."""
    image, aligned = np.split(unit(np.random.default_rng(0).standard_normal((120, 8))), 2)
    kept = mixing(image, aligned, (3,))[0]

    def searched(of_image: np.ndarray, of_aligned: np.ndarray) -> float:
        drawn = np.repeat(image, of_image, axis=0), np.repeat(aligned, of_aligned, axis=0)
        return mixing(*drawn, (3,))[0].rate

    wrong = bootstrap(searched, [60, 60], draws=30)
    right = bootstrap_rows(kept.of_aligned)
    assert wrong.high < wrong.estimate == kept.rate
    assert right.low < kept.rate < right.high


def test_weights_of_pairs_are_products_of_counts():
    rows = pairs(0, 30)[0]
    chosen = random_pairs(30)
    counts = np.random.default_rng(0).multinomial(30, np.full(30, 1 / 30))
    weights = pair_weights(counts, chosen)
    drawn = np.repeat(np.arange(30), counts)
    cosines = rows[drawn] @ rows[drawn].T
    others = drawn[:, None] != drawn  # copies of one row are no pair
    expected = cosines[others].sum() / 2
    assert weights @ pair_cosines(rows, chosen) == pytest.approx(expected)


@pytest.mark.parametrize(("rows", "draws", "level"), [(1, 9, 0.9), (9, 1, 0.9), (9, 9, 1.0)])
def test_what_gives_no_interval_is_refused(rows, draws, level):
    with pytest.raises(ValueError, match=f"{rows} rows, {draws} draws and level {level}"):
        bootstrap_rows(np.ones(rows), draws=draws, level=level)
