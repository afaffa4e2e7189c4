"""Exact sums: the same bits however rows are cut, and what a scan of stored rows tells."""

import numpy as np
import pytest
import torch

from revision.alignment.moments import moments_of, unit_rows
from revision.sums import MomentSums, exact_sums, from_numpy, scan, to_float64, unit_sums
from tests.feature_sets import cloud


@pytest.fixture
def rows() -> np.ndarray:
    return cloud(1, 600)


@pytest.mark.parametrize("cuts", [[1], [300], [7, 256, 257, 512]])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_a_scan_of_parts_adds_up_to_the_scan_of_all(rows, cuts, dtype):
    rows = rows.astype(dtype)
    parts = [scan(part).sums for part in np.split(rows, cuts)]
    assert sum(parts[::-1], MomentSums.zero(24)) == scan(rows).sums


def test_a_scan_is_a_pass_over_the_rows(rows):
    moments, sums = moments_of([rows]), scan(rows).sums
    assert np.array_equal(sums.mean, moments.mean)
    assert (sums.count, sums.mean_square) == (600, moments.mean_square) == (600, 1.0)


def test_a_scan_leaves_bad_rows_out_and_the_rows_alone(rows):
    rows[3], rows[400] = np.nan, 0.0
    before = rows.copy()
    found = scan(rows)
    assert np.flatnonzero(found.bad).tolist() == [3, 400]
    assert found.sums == scan(np.delete(rows, [3, 400], axis=0)).sums
    assert np.array_equal(rows, before, equal_nan=True)


def test_a_scan_tells_how_far_norms_are_from_1(rows):
    unit = unit_rows(rows)
    unit[5] *= 1.25
    assert scan(unit).norm_error == pytest.approx(0.25)
    assert scan(unit[:0]).norm_error == 0
    assert scan(unit[:0]).sums == MomentSums.zero(24)


def test_squares_of_unit_rows_need_no_adding_up(rows):
    unit = torch.tensor(unit_rows(rows))
    assert unit_sums(unit.clone()) == exact_sums(unit.clone())
    assert exact_sums(2 * unit).mean_square == 4


def test_sums_survive_being_stored(rows):
    sums = scan(rows).sums
    stored = sums.to_array()
    assert (stored.dtype, stored.shape) == (np.int64, (2, 26))
    assert MomentSums.from_array(stored) == sums
    many = MomentSums(2**40, sums.limbs, 2**84)
    assert MomentSums.from_array(many.to_array()) == many


def test_close_sums_differ_by_a_unit_of_each_row_at_most(rows):
    sums = scan(rows).sums
    near, far = (sums.limbs + np.array([[0], [step]]) for step in (600, 601))
    assert sums != MomentSums(600, near, sums.square_sum)
    assert sums.is_close(MomentSums(600, near, sums.square_sum))
    assert not sums.is_close(MomentSums(600, far, sums.square_sum))
    assert not sums.is_close(MomentSums(601, sums.limbs, sums.square_sum))


def test_read_only_rows_are_copied_and_others_are_not(rows):
    assert from_numpy(rows).data_ptr() == rows.ctypes.data
    rows.flags.writeable = False
    assert from_numpy(rows).data_ptr() != rows.ctypes.data


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_float64_rows_are_always_a_copy(rows, dtype):
    given = torch.tensor(rows).to(dtype)
    copy = to_float64(given)
    assert copy.equal(given.double())
    assert copy.data_ptr() != given.data_ptr()


@pytest.mark.parametrize("cuts", [[1], [100], [7, 8, 150]])
def test_moved_rows_merge_exactly_in_any_order(rows, cuts):
    moved = torch.tensor(unit_rows(rows)) + 0.5
    parts = [exact_sums(part) for part in moved.clone().tensor_split(cuts)]
    assert sum(parts[::-1], MomentSums.zero(24)) == exact_sums(moved)


def test_sums_hold_more_rows_than_64_bits_would():
    many = exact_sums(torch.tensor([[1.0, -1.0, 0.0]], dtype=torch.float64))
    for _ in range(36):
        many = many + many
    assert many.count == 2**36
    assert np.array_equal(many.mean, [1, -1, 0])
    assert many.mean_square == 2


def test_sums_refuse_another_width():
    with pytest.raises(ValueError, match="width 3 and 4"):
        MomentSums.zero(3) + MomentSums.zero(4)


def test_the_rounding_is_far_below_float32(rows):
    unit = unit_rows(rows)
    assert np.abs(scan(rows).sums.mean - unit.mean(0)).max() < 2.0**-44
