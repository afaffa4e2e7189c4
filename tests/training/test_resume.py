"""Resume: a continued run sees exactly the samples that an undisturbed one would have seen."""

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from revision.data.visual_datamodule import VisualDataModule
from tests.training.resume_runs import SETS, run_recorded, write_sets

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = Path(__file__).with_name("resume_runs.py")
KINDS = ("plain", "mixture", "packed plain", "packed mixture")


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    directory = tmp_path_factory.mktemp("sets")
    write_sets(directory)
    return directory


def lines(directory):
    logs = sorted(directory.glob("seen-*.jsonl"))
    return [json.loads(line) for log in logs for line in log.read_text().splitlines()]


def steps_seen(directory):
    """The ids of every step, of all its micro-batches and processes."""
    steps = {}
    for step, ids, _ in lines(directory):
        steps.setdefault(step, []).extend(ids)
    return {step: sorted(ids) for step, ids in steps.items()}


def visits(kind):
    """How often two epochs show every sample."""
    expected = Counter({f"cats-{n}": 2 for n in range(sum(SETS["cats"]))})
    if "mixture" in kind:
        expected += Counter({f"dogs-{n}": 3 for n in range(sum(SETS["dogs"]))})
    return expected


def seen(directory):
    return [id for _, ids, _ in lines(directory) for id in ids]


def in_processes(runs):
    done = subprocess.run(
        [sys.executable, str(SCRIPT), json.dumps(runs)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.parametrize("kind", KINDS)
def test_samples_after_resuming_are_those_of_the_undisturbed_run(sets, tmp_path, kind):
    for workers in (0, 1, 2):
        whole, killed = tmp_path / f"whole{workers}", tmp_path / f"killed{workers}"
        chosen = {"kind": kind, "accumulate": 2, "batch_size": 2, "workers": workers}
        run_recorded(whole, sets, **chosen)
        run_recorded(killed, sets, **chosen, stop_after=3)
        assert set(steps_seen(killed)) == {0, 1, 2}
        run_recorded(killed, sets, **chosen)
        assert steps_seen(whole) == steps_seen(killed)
    assert steps_seen(tmp_path / "whole0") == steps_seen(tmp_path / "whole2")
    assert Counter(seen(whole)) == visits(kind)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["plain", "packed mixture"])
def test_samples_after_resuming_are_the_same_for_two_processes(sets, tmp_path, kind):
    runs = []
    for workers in (0, 1, 2):
        chosen = {"kind": kind, "sets": str(sets), "world": 2, "batch_size": 2, "workers": workers}
        whole, killed = (str(tmp_path / f"{name}{workers}") for name in ("whole", "killed"))
        runs += [
            chosen | {"directory": whole},
            chosen | {"directory": killed, "stop_after": 3},
            chosen | {"directory": killed},
        ]
    in_processes(runs)
    one = {"kind": kind, "batch_size": 2, "accumulate": 2}
    run_recorded(tmp_path / "one", sets, **one)
    expected = steps_seen(tmp_path / "one")
    assert Counter(seen(tmp_path / "one")) == visits(kind)
    for run in runs:
        assert steps_seen(Path(run["directory"])) == expected


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["plain", "packed mixture"])
@pytest.mark.parametrize("before", [1, 2])
def test_another_number_of_processes_has_the_same_records_in_every_step(
    sets, tmp_path, kind, before
):
    """From 1 to 2 processes or back, and the accumulation with them, so that G stays the same."""
    shape = {1: {"world": 1, "accumulate": 4}, 2: {"world": 2, "accumulate": 2}}
    common = {"kind": kind, "sets": str(sets), "batch_size": 1}
    whole = common | shape[1] | {"directory": str(tmp_path / "whole")}
    killed = common | shape[before] | {"directory": str(tmp_path / "killed"), "stop_after": 3}
    resumed = common | shape[3 - before] | {"directory": str(tmp_path / "killed")}
    in_processes([whole])
    in_processes([killed])
    told = in_processes([resumed])
    assert f"{3 - before} processes (before: {before}): every step has the same" in told
    assert steps_seen(tmp_path / "killed") == steps_seen(tmp_path / "whole")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("before", "after"),
    [((4, 1), (2, 2)), ((4, 1), (3, 1)), ((2, 2), (1, 3)), ((2, 1), (10, 1)), ((1, 1), (1, 30))],
)
def test_another_size_of_the_steps_loses_and_repeats_nothing(
    sets, tmp_path, capsys, kind, before, after
):
    first = {"batch_size": before[0], "accumulate": before[1]}
    then = {"batch_size": after[0], "accumulate": after[1]}
    run_recorded(tmp_path / "whole", sets, kind=kind, **first)
    run_recorded(tmp_path / "killed", sets, kind=kind, **first, stop_after=2)
    before_resuming = len(seen(tmp_path / "killed"))
    capsys.readouterr()
    run_recorded(tmp_path / "killed", sets, kind=kind, **then)
    told = capsys.readouterr().out
    whole, killed = seen(tmp_path / "whole"), seen(tmp_path / "killed")
    assert 0 < before_resuming < len(killed)
    assert Counter(killed) == visits(kind)
    if "mixture" not in kind:  # which puts the samples of a batch in another order
        assert killed == whole
    sizes = [shape[1] if "packed" in kind else shape[0] * shape[1] for shape in (before, after)]
    changed = sizes[0] != sizes[1]
    assert ("is not repeated, the rest follows in the same order" in told) == changed


def test_the_epochs_of_a_continued_run_do_not_mix(sets, tmp_path):
    """What is left of an epoch comes before the next one, whatever the size of the steps."""
    run_recorded(tmp_path, sets, kind="plain", batch_size=5, stop_after=3)
    run_recorded(tmp_path, sets, kind="plain", batch_size=4)
    half = sum(SETS["cats"])
    assert len(set(seen(tmp_path)[:half])) == len(set(seen(tmp_path)[half:])) == half


def test_a_budget_of_tokens_ends_a_continued_run_where_it_ends_the_other(sets, tmp_path):
    tokens = {"kind": "plain", "max_tokens": 900, "tokens": "cached", "epochs": 1}
    run_recorded(tmp_path / "whole", sets, **tokens)
    run_recorded(tmp_path / "killed", sets, **tokens, stop_after=4)
    run_recorded(tmp_path / "killed", sets, **tokens)
    assert steps_seen(tmp_path / "whole") == steps_seen(tmp_path / "killed")
    counts = Counter()
    for step, _, positions in lines(tmp_path / "whole"):
        counts[step] += positions
    assert sum(counts.values()) >= 900 > sum(counts.values()) - counts[max(counts)]


class Dying:
    """A part of the data whose worker process is killed at step 3, as the system does when
    memory runs out."""

    def __init__(self, source):
        self.source = source
        self.block_sizes, self.block_shards = source.block_sizes, source.block_shards
        self.calls = 0

    def batch(self, numbers, epoch=0):
        self.calls += 1
        if self.calls == 4:
            os.kill(os.getpid(), signal.SIGKILL)
        return self.source.batch(numbers, epoch)


def test_a_killed_worker_ends_the_run_and_nothing_is_lost(sets, tmp_path, monkeypatch):
    chosen = {"kind": "plain", "workers": 1}
    run_recorded(tmp_path / "whole", sets, **chosen)
    with monkeypatch.context() as patch:
        made = VisualDataModule.make_sources
        patch.setattr(VisualDataModule, "make_sources", lambda self: (Dying(made(self)[0]), None))
        with pytest.raises(ChildProcessError, match="a process that loads data died"):
            run_recorded(tmp_path / "killed", sets, **chosen)
    run_recorded(tmp_path / "killed", sets, **chosen)
    latest = {step: ids for step, ids, _ in lines(tmp_path / "killed")}
    assert {step: sorted(ids) for step, ids in latest.items()} == steps_seen(tmp_path / "whole")
