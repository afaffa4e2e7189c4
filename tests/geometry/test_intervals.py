from math import sqrt

import numpy as np
import pytest

from revision.geometry.bootstrap import Interval
from revision.geometry.intervals import (
    interval_number,
    jackknife_covariances,
    length_number,
    number,
    rest_of,
)
from revision.geometry.spectrum import covariance_of
from tests.feature_sets import cloud


def rows(seed, count=200, dim=8):
    return cloud(seed, count, dim).astype(np.float64)


def trace(covariance):
    return {"trace": float(np.trace(covariance))}


def test_the_bias_is_taken_off_the_interval_and_not_off_the_value():
    drawn = Interval(estimate=1.0, low=1.1, high=1.5, level=0.95, bias=0.3, draws=9)
    found = interval_number(drawn, null=0.5)
    assert found == pytest.approx({"value": 1.0, "low": 0.8, "high": 1.2, "null": 0.5})
    assert interval_number(drawn, bounds=(0.9, 1.1))["low"] == 0.9


def test_a_length_is_corrected_in_its_square_and_not_below_zero():
    square = Interval(estimate=0.04, low=0.03, high=0.10, level=0.95, bias=0.02, draws=9)
    found = length_number(square)
    assert (found["value"], found["low"]) == pytest.approx((0.2, 0.1))
    assert found["high"] == pytest.approx(sqrt(0.08))
    near = Interval(estimate=1e-4, low=0.03, high=0.05, level=0.95, bias=0.04, draws=9)
    assert length_number(near)["low"] == 0.0


def test_the_rest_of_a_share_turns_its_interval_round():
    assert rest_of(number(0.3, 0.2, 0.6, 0.5)) == pytest.approx(number(0.7, 0.4, 0.8, 0.5))
    assert rest_of(number(float("nan"))) == number(float("nan"))


def test_what_is_not_finite_becomes_null():
    assert number(float("inf"), 1.0, float("nan")) == {
        "value": None,
        "low": 1.0,
        "high": None,
        "null": None,
    }


def test_the_jackknife_gives_the_plain_value_and_the_spread_of_fresh_samples():
    found = jackknife_covariances([rows(1)], trace, {"trace": 2.0})["trace"]
    assert found["value"] == pytest.approx(float(np.trace(covariance_of(rows(1)))), abs=1e-12)
    assert found["null"] == 2.0
    rng = np.random.default_rng(0)
    samples = [rng.standard_normal((200, 8)) for _ in range(150)]
    spread = np.std([np.trace(covariance_of(sample)) for sample in samples])
    found = [jackknife_covariances([sample], trace)["trace"] for sample in samples]
    errors = [(f["high"] - f["low"]) / (2 * 1.96) for f in found]
    assert np.mean(errors) == pytest.approx(spread, rel=0.15)


def test_errors_of_two_clouds_add_up():
    one, two = rows(1), rows(2)

    def both(a, b):
        return {"sum": float(np.trace(a) + np.trace(b))}

    widths = [jackknife_covariances([c], trace)["trace"] for c in (one, two)]
    alone = sqrt(sum((w["high"] - w["low"]) ** 2 for w in widths))
    joint = jackknife_covariances([one, two], both)["sum"]
    assert joint["high"] - joint["low"] == pytest.approx(alone, rel=0.5)


def test_an_interval_in_proportion_stays_positive():
    def wild(covariance):
        return {"x": float(np.exp(40 * np.trace(covariance)))}

    plain = jackknife_covariances([rows(1)], wild)["x"]
    found = jackknife_covariances([rows(1)], wild, logarithmic=["x"])["x"]
    assert plain["low"] < 0 < found["low"] < found["value"] < found["high"]
    trace_error = jackknife_covariances([rows(1)], trace)["trace"]
    expected = np.exp(40 * (trace_error["high"] - trace_error["value"]))
    assert found["high"] / found["value"] == pytest.approx(expected)


def test_a_statistic_that_is_infinite_somewhere_has_no_interval():
    found = jackknife_covariances([rows(1)], lambda c: {"x": float("inf")})["x"]
    assert found == {"value": None, "low": None, "high": None, "null": None}
