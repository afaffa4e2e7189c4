import json
import warnings

import numpy as np
import pytest

from revision.alignment import moments_of
from revision.alignment.domain import compare, with_covariance
from tests.feature_sets import cloud


def moments(rows):
    return moments_of([rows], second="covariance")


def test_two_samples_of_one_domain_bring_no_warning():
    rows = cloud(1, 900)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = compare(moments(rows[:400]), moments(rows[400:]), "text")
    assert found["ratio"] < 2
    assert abs(found["trace_z"]) < 4
    assert (found["fitted_rows"], found["mapped_rows"]) == (400, 500)
    assert json.loads(json.dumps(found)) == found


def test_two_domains_are_told_with_their_numbers():
    one, two = moments(cloud(1, 400)), moments(cloud(7, 500))
    distance = np.linalg.norm(one.mean - two.mean)
    expected = rf"400 text rows .* 500 text rows .* means are {distance:.3g} apart, .* times the"
    with pytest.warns(UserWarning, match=expected):
        found = compare(one, two, "text")
    assert found["distance"] == pytest.approx(distance)
    assert found["z"] > 5


def test_traces_tell_what_means_do_not():
    """A wider cloud has a shorter mean, which only the precise direction along it shows."""
    rng = np.random.default_rng(0)
    narrow, wide = (
        np.eye(24)[0] + spread * np.pad(rng.standard_normal((2000, 23)), ((0, 0), (1, 0)))
        for spread in (0.3, 0.315)
    )
    with pytest.warns(UserWarning, match="traces 0.6.* and 0.6.*"):
        found = compare(moments(narrow), moments(wide), "image")
    assert abs(found["z"]) < 5 < -found["trace_z"]


def test_means_of_all_rows_stand_beside_a_sampled_covariance():
    rows = cloud(1, 300)
    joined = with_covariance(moments_of([rows]), moments(rows[::3]))
    assert np.array_equal(joined.mean, moments_of([rows]).mean)
    assert np.array_equal(joined.covariance, moments(rows[::3]).covariance)
    assert (joined.count, joined.second_count) == (300, 100)
