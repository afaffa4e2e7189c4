import numpy as np
import pytest
import torch

from revision.alignment.moments import Moments, bad_rows, moments_of, moments_of_transformed
from revision.alignment.passes import GRID_ROWS, Cells, grid
from tests.feature_sets import cloud


def unit(rows: np.ndarray) -> np.ndarray:
    rows = rows.astype(np.float64)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def two_pass(rows: np.ndarray) -> tuple[np.ndarray, float]:
    rows = unit(rows)
    mean = rows.mean(0)
    return mean, float(((rows - mean) ** 2).sum(1).mean())


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_one_pass_equals_two_passes(text, dtype):
    rows = text.astype(dtype)
    moments = moments_of([rows])
    mean, trace = two_pass(rows)
    assert np.abs(moments.mean - mean).max() < 1e-12
    assert abs(moments.trace - trace) < 1e-12
    assert abs(moments.mean_square - 1) < 1e-12


@pytest.mark.parametrize("cuts", [[1], [4096], [5000], [17, 4096, 8000, 8001]])
def test_batches_do_not_change_a_bit(cuts):
    rows = cloud(3, 2 * GRID_ROWS + 700, dim=6).astype(np.float16)
    whole = moments_of([rows])
    pieces = moments_of(np.split(rows, cuts))
    assert np.array_equal(whole.mean, pieces.mean)
    assert whole.mean_square == pieces.mean_square


def test_order_of_rows_does_not_change_a_bit(text):
    shuffled = moments_of([np.random.default_rng(0).permutation(text)])
    assert np.array_equal(shuffled.mean, moments_of([text]).mean)
    assert shuffled.trace == moments_of([text]).trace


@pytest.mark.parametrize("cuts", [[1], [17, 200]])
def test_covariance_equals_the_two_pass_one(text, cuts):
    moments = moments_of(np.split(text, cuts), second="covariance")
    expected = np.cov(unit(text).T, bias=True)
    assert np.abs(moments.covariance - expected).max() < 1e-14
    assert np.abs(moments.variance - np.diag(expected)).max() < 1e-14
    assert moments.trace == pytest.approx(np.trace(moments.covariance), rel=1e-12)
    diagonal = moments_of(np.split(text, cuts), second="diagonal")
    assert np.abs(diagonal.variance - np.diag(expected)).max() < 1e-14


def test_merge_carries_the_covariance(text):
    one, two = (moments_of([p], second="covariance") for p in np.split(text, [70]))
    whole = moments_of([text], second="covariance")
    assert np.abs(one.merge(two).covariance - whole.covariance).max() < 1e-14
    assert one.merge(moments_of([text])).second is None


@pytest.mark.parametrize("second", ["trace", "diagonal"])
def test_a_covariance_that_was_not_collected_is_refused(text, second):
    with pytest.raises(ValueError, match="hold no covariance; collect"):
        _ = moments_of([text], second=second).covariance


@pytest.mark.parametrize("seed", range(6))  # of which the rounding of some is positive
def test_a_trace_that_is_only_rounding_is_0(seed):
    rows = np.repeat(cloud(seed, 1, dim=700), 3000, axis=0)
    assert moments_of([rows]).trace == 0
    rows[0] *= -1  # a spread of 4 (1 - 1/n) / n
    assert moments_of([rows]).trace == pytest.approx(4 * (1 - 1 / 3000) / 3000, rel=1e-9)


def test_positive_rescaling_of_rows_changes_nothing(text):
    factors = np.exp(np.random.default_rng(0).standard_normal((len(text), 1)))
    rows = text.astype(np.float64)
    assert np.abs(moments_of([rows * factors]).mean - moments_of([rows]).mean).max() < 1e-12


def test_merge_equals_one_pass(text):
    merged = moments_of([text[:90]]).merge(moments_of([text[90:]]))
    whole = moments_of([text])
    assert merged.count == whole.count
    assert np.abs(merged.mean - whole.mean).max() < 1e-12
    assert abs(merged.trace - whole.trace) < 1e-12


def test_merge_refuses_another_width():
    with pytest.raises(ValueError, match="width 2 and 3"):
        Moments(1, np.zeros(2), 1.0).merge(Moments(1, np.zeros(3), 1.0))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 0.0, 1e-9])
def test_bad_rows_reach_no_mean_and_are_listed(text, value):
    good = moments_of([np.delete(text, [5, 77], axis=0)])
    text[5, :] = value
    text[77, 3:] = value
    text[77, :3] = 0
    moments = moments_of([text])
    assert moments.rejected == (5, 77)
    assert moments.count == len(text) - 2
    assert np.abs(moments.mean - good.mean).max() < 1e-12
    assert np.array_equal(np.flatnonzero(bad_rows(text)), [5, 77])


def test_one_infinite_entry_makes_a_row_bad(text):
    text[9, 2] = np.inf
    assert moments_of([text]).rejected == (9,)


def test_positions_of_bad_rows_count_over_all_cells():
    rows = np.ones((2 * GRID_ROWS + 900, 3), np.float32)
    bad = (2, GRID_ROWS + 600, 2 * GRID_ROWS + 1)
    rows[list(bad)] = 0
    moments = moments_of(np.array_split(rows, 7))
    assert moments.rejected == bad
    assert moments.count == len(rows) - 3
    merged = moments_of([rows[:10]]).merge(moments_of([rows[10:]]))
    assert merged.rejected == bad


def test_no_usable_row_is_refused():
    with pytest.raises(ValueError, match="all 3 are missing, not finite"):
        moments_of([np.zeros((3, 4), np.float32)])
    with pytest.raises(ValueError, match="no usable row"):
        moments_of([])


def test_batches_of_different_width_are_refused(text):
    with pytest.raises(ValueError, match=r"width \(5,\) after rows of width \(24,\)"):
        moments_of([text, text[:, :5]])


def test_integers_are_refused():
    with pytest.raises(ValueError, match="floating point"):
        moments_of([np.ones((3, 4), np.int64)])


def test_read_only_rows_are_left_alone(text):
    before = text.copy()
    text.flags.writeable = False
    moments_of([text])
    assert np.array_equal(text, before)


def test_grid_keeps_rows_and_order():
    cells = list(grid([np.arange(5.0)[:, None], np.arange(5.0, 12.0)[:, None]], size=5))
    assert [len(cell) for cell in cells] == [5, 5, 2]
    assert np.array_equal(np.concatenate(cells)[:, 0], np.arange(12.0))


def test_transform_is_applied_to_unit_rows_before_summing(text):
    shift = torch.linspace(-1, 1, text.shape[1], dtype=torch.float64)
    shifted = moments_of_transformed([text], lambda rows: rows.add_(shift))
    assert np.abs(shifted.mean - (moments_of([text]).mean + shift.numpy())).max() < 1e-12


def test_statistics_use_one_thread_and_give_the_others_back(text):
    seen = []

    def transform(rows):
        seen.append(torch.get_num_threads())
        return rows

    cells = Cells(230, lambda start, stop: text[start:stop], "text", num_workers=2, size=100)
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        moments_of_transformed([text], transform)
        moments_of_transformed(cells, transform)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(threads)
    assert seen == [1] * 4
