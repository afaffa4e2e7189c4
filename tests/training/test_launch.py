"""How many processes, and when a run must start its own."""

import pytest

from revision.training import launch
from revision.training.launch import (
    in_own_processes,
    is_first_process,
    needs_own_processes,
    num_local_processes,
)


@pytest.mark.parametrize(
    ("accelerator", "devices", "expected"),
    [("cpu", 2, 2), ("cpu", "auto", 1), ("cpu", "2", 2), ("gpu", "0,3", 2), ("gpu", [1], 1)],
)
def test_devices_are_counted_as_lightning_counts_them(accelerator, devices, expected):
    assert num_local_processes(accelerator, devices) == expected


def test_only_a_run_that_cannot_repeat_its_command_starts_its_own(monkeypatch, tmp_path):
    for name in launch._OUTSIDE:
        monkeypatch.delenv(name, raising=False)
    script = tmp_path / "train.py"
    script.touch()
    main = type("main", (), {"__file__": str(script)})
    monkeypatch.setitem(launch.sys.modules, "__main__", main)
    assert not needs_own_processes(2, is_sweep=False, script=str(script))
    assert needs_own_processes(2, is_sweep=True, script=str(script))
    assert not needs_own_processes(1, is_sweep=True, script=str(script))
    other = tmp_path / "pipeline.py"
    other.touch()
    assert needs_own_processes(2, is_sweep=False, script=str(other))
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert not needs_own_processes(2, is_sweep=True, script=str(other))


def test_a_failure_of_the_own_processes_is_passed_on(tmp_path):
    script = tmp_path / "fails.py"
    script.write_text("raise SystemExit(3)")
    with pytest.raises(ValueError, match="exit status 3"):
        in_own_processes(str(script), "a: 1")


@pytest.mark.parametrize(
    ("environment", "is_first"),
    [
        ({}, True),
        ({"RANK": "0", "LOCAL_RANK": "0"}, True),
        ({"RANK": "8", "LOCAL_RANK": "0"}, False),
        ({"SLURM_PROCID": "0", "LOCAL_RANK": "1"}, False),
        ({"SLURM_PROCID": "3"}, False),
        ({"NODE_RANK": "1", "LOCAL_RANK": "0"}, False),
    ],
)
def test_one_process_of_all_is_the_first(monkeypatch, environment, is_first):
    for name in (*launch._RANKS, "NODE_RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert is_first_process() == is_first
