"""Laws of accumulators: what is exact, what loses what, and that the reference can be trusted."""

from fractions import Fraction

import numpy as np
import pytest

from revision.alignment.moments import unit_rows
from revision.geometry.precision import cosine_loss, exact_mean, mean_of, stored
from tests.feature_sets import cloud


def error(rows: np.ndarray, accumulator: str, size: int = 777) -> float:
    batches = [rows[i : i + size] for i in range(0, len(rows), size)]
    return float(np.linalg.norm(mean_of(batches, accumulator) - exact_mean(batches)))


def test_the_reference_agrees_with_rational_arithmetic_to_the_last_bit():
    rows = cloud(0, 300, 8)
    unit = unit_rows(rows)
    exact = [float(sum(map(Fraction, column)) / len(unit)) for column in unit.T.tolist()]
    np.testing.assert_allclose(exact_mean([rows[:7], rows[7:]]), exact, rtol=2e-16)


def test_sequential_float32_adds_row_after_row_across_batches():
    rows = cloud(1, 5000, 8)
    total = np.zeros(8, np.float32)
    for row in unit_rows(rows).astype(np.float32):
        total = total + row
    found = mean_of([rows[:4097], rows[4097:]], "float32_sequential")
    np.testing.assert_array_equal(found, total.astype(np.float64) / len(rows))


def test_accumulators_rank_as_their_rounding_does():
    rows = np.tile(cloud(2, 300, 8), (40, 1))  # 12 000 rows: sums far above a single number
    sequential, chunked, float64, fixed = (
        error(rows, name)
        for name in ("float32_sequential", "float32_chunked", "float64", "fixed_point")
    )
    assert 1e-8 < chunked < sequential < 1e-4
    assert float64 < 1e-13
    assert fixed < 1e-14  # numbers are rounded to 6e-14, by chance up and down


@pytest.mark.parametrize("accumulator", ["float64", "float32_chunked", "float32_sequential"])
def test_the_mean_is_that_of_the_rows_whatever_the_batches(accumulator):
    rows = cloud(3, 60, 8)
    whole, parts = (
        mean_of([rows], accumulator),
        mean_of([rows[:1], rows[1:33], rows[33:]], accumulator),
    )
    np.testing.assert_array_equal(whole, parts)
    np.testing.assert_allclose(whole, unit_rows(rows).mean(0), atol=1e-6)


def test_storage_loses_what_its_mantissa_says():
    rows = cloud(4, 200, 32)
    assert stored(rows, "as_stored") is rows
    assert cosine_loss([rows], "float32") < 1e-14
    assert 1e-9 < cosine_loss([rows], "float16") < 1e-7  # 2^-11 relative, at most
    assert 1e-7 < cosine_loss([rows], "bfloat16") < 4e-6  # 2^-8
    assert cosine_loss([rows[:9], rows[9:]], "bfloat16") == pytest.approx(
        cosine_loss([rows], "bfloat16"), rel=1e-12
    )


def test_unknown_names_and_no_rows_are_refused():
    with pytest.raises(ValueError, match=r"accumulator is one of fixed_point, float64, .*'float8'"):
        mean_of([cloud(0, 3, 8)], "float8")
    with pytest.raises(ValueError, match="storage is as_stored or one of float32"):
        stored(cloud(0, 3, 8), "int8")
    with pytest.raises(ValueError, match="a mean of 0 rows"):
        mean_of([], "float64")
