import numpy as np
import pytest

from revision.alignment.moments import moments_of
from revision.geometry.domain import mismatch
from tests.feature_sets import cloud


def moments(rows):
    return moments_of([rows], second="covariance")


def test_halves_of_one_cloud_are_one_domain():
    found = [mismatch(*(moments(r) for r in np.split(cloud(s, 400), 2))) for s in range(40)]
    assert np.mean([f.ratio**2 for f in found]) == pytest.approx(1, abs=0.15)
    assert np.std([f.z for f in found]) < 1.6
    assert np.std([f.trace_z for f in found]) == pytest.approx(1, abs=0.35)


def test_another_centre_or_another_spread_is_another_domain():
    rows, other = cloud(1, 300), cloud(2, 300)
    assert mismatch(moments(rows), moments(other)).z > 20
    centre = rows.mean(0)
    wide = centre + 3 * (rows - centre)
    assert abs(mismatch(moments(rows), moments(wide)).trace_z) > 6


def test_the_order_of_the_two_changes_only_the_sign_of_the_trace():
    a, b = moments(cloud(1, 90)), moments(cloud(3, 140))
    there, back = mismatch(a, b), mismatch(b, a)
    assert there.z == pytest.approx(back.z)
    assert there.trace_z == pytest.approx(-back.trace_z)


def test_rows_without_spread_are_refused():
    same = np.ones((5, 4), np.float32)
    with pytest.raises(ValueError, match="no sampling error"):
        mismatch(moments(same), moments(same))
