"""A job draws what its config says, and refuses a config that says two things."""

from pathlib import Path

import numpy as np
import pytest

from revision.alignment.methods.none import NoAlignment
from revision.alignment.methods.realign import ReAlign
from revision.studies.job import domains_of, run_job, samples_of
from revision.studies.measure import Sample
from tests.feature_sets import cloud, write_set


@pytest.fixture
def config(tmp_path: Path) -> dict:
    sets = {
        "source": write_set(tmp_path / "text", cloud(1, 120), "text"),
        "target": write_set(tmp_path / "image", cloud(2, 120, mean=0.35), "image"),
        "holdout_source": write_set(tmp_path / "text_h", cloud(1, 60), "text"),
        "holdout_target": write_set(tmp_path / "image_h", cloud(2, 60, mean=0.35), "image"),
    }
    return {
        "name": "study",
        **{name: str(path) for name, path in sets.items()},
        "rows": 40,
        "resample": False,
        "holdout_rows": None,
        "trial": 0,
        "accumulator": None,
        "storage": "as_stored",
        "domains": None,
        "mix": 0.0,
        "evaluated": None,
        "labels": {"rows": 40},
        "columns": ["gap"],
        "figure": {"x": "rows"},
    }


TWO = {"low": {"ids": "^[0-9]$|^[1-5][0-9]$"}, "high": {"ids": "^[6-9][0-9]$|^1[01][0-9]$"}}


def ids(sample: Sample) -> list[str]:
    return [id for pool in sample.pools for id in pool.ids()]


def test_a_job_is_a_reading_with_its_labels_and_what_it_read(config):
    reading = run_job(config, ReAlign(), 3)
    assert (reading.name, reading.labels, reading.trial, reading.job) == (
        "study",
        {"rows": 40},
        0,
        3,
    )
    assert reading.numbers["fit_rows"] == 40
    assert reading.numbers["test_rows"] == 60
    assert reading.numbers["words"] == 2.0
    assert 0 < reading.numbers["gap"] < reading.numbers["raw_gap"]
    assert set(reading.inputs) == {
        f"all {part} {side}" for part in ("fitted", "unseen") for side in ("text", "image")
    }
    assert run_job(config, ReAlign(), 3).numbers["gap"] == reading.numbers["gap"]
    assert run_job(config | {"trial": 1}, ReAlign(), 3).numbers["gap"] != reading.numbers["gap"]


def test_held_out_rows_are_cut_as_pairs(config, tmp_path):
    rows = cloud(3, 60)
    for side, kind in (("source", "text"), ("target", "image")):
        config[f"holdout_{side}"] = str(write_set(tmp_path / f"same_{kind}", rows, kind))
    numbers = run_job(config | {"holdout_rows": 30}, NoAlignment(), 0).numbers
    assert numbers["test_rows"] == 30
    assert numbers["paired_cosine"] == pytest.approx(1.0)


def test_texts_and_images_are_drawn_independently(config):
    source, target = samples_of(config, domains_of(config))
    assert len(source) == len(target) == 40
    assert ids(source) != ids(target)
    assert source.shared_with(target) == len({*ids(source)} & {*ids(target)})


def test_a_mixture_holds_its_share_of_the_second_domain(config):
    for mix, second in ((0.0, 0), (0.25, 10), (0.5, 20), (1.0, 40)):
        described = config | {"domains": TWO, "mix": mix, "evaluated": "low"}
        for sample in samples_of(described, domains_of(described)):
            assert len(sample) == 40
            assert sum(int(id) >= 60 for id in ids(sample)) == second


def test_the_domain_that_is_evaluated_gives_the_unseen_rows(config):
    described = config | {"domains": {"few": {"ids": "^[1-4][0-9]$"}, "all": {"ids": "."}}}
    counts = [
        run_job(described | {"evaluated": name}, ReAlign(), 0).numbers["test_rows"]
        for name in ("few", "all", None)
    ]
    assert counts == [40, 60, 40]


def test_a_domain_may_have_sets_of_its_own(config, tmp_path):
    other = write_set(tmp_path / "other", cloud(5, 50), "text")
    domains = domains_of(config | {"domains": {"a": {}, "b": {"source": str(other)}}})
    assert domains["a"].source == Path(config["source"])
    assert domains["b"].source == other
    assert domains["b"].target == Path(config["target"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mix": 0.5}, "mix=0.5 of one domain"),
        ({"domains": TWO, "mix": 1.5}, "mix=1.5 is no share"),
        ({"domains": TWO, "rows": None}, "fixed number of rows; give rows="),
        ({"domains": TWO, "evaluated": "middle"}, "'middle' is none of low, high"),
        ({"domains": {**TWO, "third": {}}}, "3 domains"),
        ({"domains": {"a": {"shards": "x"}}}, r"not \['shards'\]"),
        ({"rows": 121}, "121 rows wanted of 120"),
    ],
)
def test_a_config_that_cannot_be_meant_is_refused(config, change, message):
    with pytest.raises(ValueError, match=message):
        run_job(config | change, ReAlign(), 0)


def test_numbers_are_finite(config):
    numbers = run_job(config, ReAlign(), 0).numbers
    assert all(np.isfinite(value) for value in numbers.values())
