"""Readings become a table, a CSV and a figure: grouped by label, in the order of the jobs."""

import csv
import io
import json
from pathlib import Path

import pytest

from revision.report.tables import markdown
from revision.studies.figure import study_figure, write_study
from revision.studies.table import Reading, read_readings, study_csv, study_table, write_reading

FIGURE = {"x": "step", "line": None, "panels": [["gap", "floor"], ["phi"]], "log": []}


def reading(job: int, step, trial: int, **numbers: float) -> Reading:
    return Reading(
        name="study",
        labels={"step": step},
        trial=trial,
        job=job,
        columns=["gap", "phi"],
        figure=FIGURE,
        numbers=numbers,
        inputs={},
    )


@pytest.fixture
def readings() -> list[Reading]:
    return [
        reading(0, "none", 0, gap=0.5, phi=1.0, floor=0.1),
        reading(1, "none", 1, gap=0.5, phi=1.0, floor=0.1),
        reading(2, "all", 0, gap=0.01, phi=0.9, floor=0.1),
        reading(3, "all", 1, gap=0.03, phi=0.8, floor=0.1),
    ]


def test_trials_become_mean_and_deviation_in_the_order_of_the_jobs(tmp_path, readings):
    paths = []
    for name, item in zip("dcba", readings, strict=True):  # files sort the other way round
        paths.append(tmp_path / f"{name}.json")
        write_reading(paths[-1], item)
    found = read_readings(sorted(paths))
    assert found == readings
    table = study_table(found)
    assert table.header == ["step", "trials", "gap", "phi"]
    assert table.body == [
        ["none", "2", "0.5 ± 0", "1 ± 0"],
        ["all", "2", "0.02 ± 0.01", "0.85 ± 0.07"],
    ]


def test_one_trial_has_no_deviation_and_a_missing_number_is_empty():
    table = study_table([reading(0, 10, 0, gap=1234.0), reading(1, 20, 0, gap=0.125, phi=0.5)])
    assert table.body == [["10", "1", "1234", ""], ["20", "1", "0.125", "0.5"]]


def test_the_csv_has_every_number_at_full_precision(readings):
    lines = list(csv.reader(io.StringIO(study_csv(readings))))
    assert lines[0] == ["step", "trials", "gap", "gap_std", "phi", "phi_std", "floor", "floor_std"]
    assert float(lines[2][2]) == pytest.approx(0.02, abs=1e-16)
    assert float(lines[2][3]) == pytest.approx(0.02 / 2**0.5, rel=1e-12)


@pytest.mark.parametrize("line", [None, "step"])
def test_a_figure_is_drawn_over_words_and_over_numbers(readings, line):
    wanted = FIGURE | {"line": line, "log": ["step", "gap"]}
    for values in (("none", "all"), (10, 100)):
        drawn = [
            Reading(**vars(r) | {"figure": wanted, "labels": {"step": values[r.job // 2]}})
            for r in readings
        ]
        assert study_figure(drawn).startswith(b"\x89PNG")


def test_everything_is_written_and_can_be_read_back(tmp_path: Path, readings):
    table = write_study(readings, tmp_path, "name")
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        f"name.{suffix}" for suffix in ("csv", "json", "md", "png")
    ]
    assert (tmp_path / "name.md").read_text() == table == markdown(study_table(readings))
    assert read_readings([tmp_path / "name.json"]) == readings


def test_other_files_and_mixed_studies_are_refused(tmp_path, readings):
    path = tmp_path / "x.json"
    path.write_text("{")
    with pytest.raises(ValueError, match="is not JSON"):
        read_readings([path])
    path.write_text(json.dumps({"gap": 1}))
    with pytest.raises(ValueError, match="holds no reading of a gap study"):
        read_readings([path])
    write_reading(path, readings[0])
    other = tmp_path / "y.json"
    write_reading(other, Reading(**vars(readings[1]) | {"labels": {"rows": 3}}))
    with pytest.raises(ValueError, match="readings of 2 studies"):
        read_readings([path, other])
