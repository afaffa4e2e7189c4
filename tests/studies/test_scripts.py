"""The study as a command: a sweep, its table and figure, a second run that repeats nothing."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.feature_sets import cloud, write_set

ROOT = Path(__file__).parents[2]


def python(directory: Path, script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "scripts" / script), *arguments]
    return subprocess.run(command, cwd=directory, capture_output=True, text=True, check=False)


@pytest.fixture
def sets(tmp_path: Path) -> list[str]:
    write_set(tmp_path / "text", cloud(1, 160), "text")
    write_set(tmp_path / "image", cloud(2, 160, mean=0.35), "image")
    return ["source=text", "target=image"]


@pytest.mark.slow
def test_a_study_ends_with_its_table_and_figure(tmp_path, sets):
    arguments = ["-m", "experiment=gap_ablation", "rows=60", "trial=0,1", *sets]
    done = python(tmp_path, "gap_study.py", *arguments)
    assert done.returncode == 0, done.stderr
    study = tmp_path / "runs" / "gap_ablation"
    readings = sorted(study.glob("*/numbers.json"))
    assert len(readings) == 10
    assert (study / "gap_ablation.md").read_text() in done.stdout
    assert [line.split("|")[1].strip() for line in done.stdout.splitlines()[2:7]] == [
        *("none", "anchor", "anchor_trace", "anchor_centroid", "all")
    ]
    assert (study / "gap_ablation.png").stat().st_size < 120_000

    before = [path.stat().st_mtime_ns for path in readings]
    assert python(tmp_path, "gap_study.py", *arguments).stdout == done.stdout
    assert [path.stat().st_mtime_ns for path in readings] == before

    pattern = "input='runs/gap_ablation/*/numbers.json'"
    table = python(tmp_path, "gap_table.py", pattern, "output_dir=out", "name=again")
    assert table.stdout == done.stdout
    assert (tmp_path / "out" / "again.csv").is_file()


@pytest.mark.slow
def test_a_wrong_command_ends_with_one_line(tmp_path, sets):
    done = python(tmp_path, "gap_study.py", "name=x", "rows=400", *sets)
    assert done.returncode == 1
    assert done.stderr.startswith("error: 400 rows wanted of")
    done = python(tmp_path, "gap_table.py", "input=nothing.json", "output_dir=out")
    assert done.stderr == "error: there is no reading at nothing.json\n"
