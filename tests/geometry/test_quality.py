import numpy as np
import pytest

from revision.alignment.moments import unit_rows
from revision.geometry import quality
from revision.geometry.quality import (
    dimension_quality,
    robust_z,
    row_hashes,
    sample_quality,
    scan,
    shared_rows,
)
from tests.feature_sets import cloud


def cosines(rows):
    table = rows @ rows.T
    np.fill_diagonal(table, -2)
    ordered = np.sort(table, axis=1)[:, ::-1]
    return ordered[:, 0], ordered[:, 4]


def test_a_scan_counts_what_was_planted_however_the_rows_are_cut():
    rows = unit_rows(cloud(1, 200)).astype(np.float32)
    rows[10], rows[11] = np.nan, 0
    rows[20:25] = rows[0]  # five copies of row 0
    rows[30] *= 1.5
    found = scan([rows])
    assert (found.num_rows, found.num_bad, found.num_off_unit) == (200, 2, 1)
    assert found.bad_positions == (10, 11)
    assert found.copies == pytest.approx(5 / 198)
    assert found.largest_group == 6
    assert found.norm_max == pytest.approx(1.5, abs=1e-6)
    assert found.norm_min == pytest.approx(1, abs=1e-6)
    cut = scan(rows[i : i + 7] for i in range(0, 200, 7))
    assert cut.norm_std == pytest.approx(found.norm_std, abs=1e-12)
    assert cut.bad_positions == (10, 11)
    assert (cut.copies, cut.largest_group) == (found.copies, found.largest_group)


def test_the_scan_of_ever_more_rows_keeps_few_hashes_and_the_share_of_copies(monkeypatch):
    monkeypatch.setattr(quality, "MAX_HASHES", 300)
    rows = np.tile(cloud(1, 2000), (2, 1))  # a copy comes long after its hash was dropped
    found = scan(rows[i : i + 100] for i in range(0, 4000, 100))
    assert found.hashed_share <= 300 / 2000
    assert found.copies == pytest.approx(0.5)
    assert found.largest_group == 2


def test_large_halves_do_not_overflow():
    found = scan([np.full((3, 4), 60000, np.float16)])
    assert found.norm_mean == pytest.approx(119_936, rel=1e-3)  # 60000 is stored as 59968
    assert found.num_bad == 0


def test_minus_zero_is_zero():
    rows = np.array([[0.0, 1.0], [-0.0, 1.0]], np.float32)
    assert len(set(row_hashes(rows))) == 1


def test_rows_of_another_set_are_recognised():
    rows, others = cloud(1, 50), cloud(2, 40)
    others[[3, 9]] = rows[[20, 30]]
    assert shared_rows(rows, others) == 2 / 50
    assert shared_rows(others, rows) == 2 / 40


def test_an_empty_set_is_refused():
    with pytest.raises(ValueError, match="0 rows to scan"):
        scan([])


def test_planted_copies_outliers_and_dimensions_are_found():
    rows = unit_rows(cloud(1, 200))
    rows[:, 3] = 0.0
    rows[:, 5] *= 1e-4
    rows = unit_rows(rows)
    rows[7] = -rows.mean(0) / np.linalg.norm(rows.mean(0))
    rows[8] = rows[9] * (1 + 1e-9) + 1e-6 * rows[10]
    found = sample_quality(unit_rows(rows), *cosines(unit_rows(rows)))
    assert found["outlier_positions"] == [7]
    assert found["outliers"] == pytest.approx(1 / 200)
    assert found["near_copies"] == pytest.approx(2 / 200)
    assert (found["constant_dims"], found["collapsed_dims"]) == ([3], [5])


def test_the_four_kinds_of_dimension_are_told_apart():
    rows = np.random.default_rng(0).standard_normal((100, 6)) * [1, 1, 1, 0, 1e-3, 5]
    found = dimension_quality(rows)
    assert (found["constant_dims"], found["collapsed_dims"]) == ([3], [4])
    assert (found["largest_dim"], found["num_constant"], found["num_collapsed"]) == (5, 1, 1)
    assert found["largest_share"] == pytest.approx(25 / 28, abs=0.03)


def test_quality_does_not_depend_on_a_rotation_where_no_coordinate_is_named():
    rows = unit_rows(cloud(1, 150))
    turn = np.linalg.qr(np.random.default_rng(1).standard_normal((24, 24)))[0]
    plain, turned = (sample_quality(r, *cosines(r)) for r in (rows, rows @ turn))
    for name in ("near_copies", "outliers", "mean_cosine"):
        assert plain[name] == pytest.approx(turned[name], abs=1e-12)


def test_robust_z_is_the_ordinary_one_of_a_normal_sample_and_ignores_one_wild_value():
    values = np.random.default_rng(0).standard_normal(20_000)
    assert np.abs(robust_z(values) - values).max() < 0.15
    values[0] = 1e9
    assert abs(robust_z(values)[1] - values[1]) < 0.1
    assert not robust_z(np.ones(5)).any()
