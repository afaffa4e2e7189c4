"""Laws of the step cache: run once per distinct input, resume after a death, share safely."""

import multiprocessing
from pathlib import Path

import pytest

from revision.pipeline import StepCache, step_key


def counting(log: Path):
    def run(directory: Path) -> None:
        with open(log, "a") as file:
            file.write("ran\n")
        (directory / "output").write_text("42")

    return run


def test_a_step_runs_once_per_distinct_config(tmp_path: Path) -> None:
    log = tmp_path / "log"
    cache = StepCache(tmp_path / "cache")
    first = cache.step("fit", counting(log), config={"a": 1, "b": 2})
    again = cache.step("fit", counting(log), config={"b": 2, "a": 1})
    other = cache.step("fit", counting(log), config={"a": 2, "b": 2})
    assert first.directory == again.directory != other.directory
    assert log.read_text().count("ran") == 2
    assert (again / "output").read_text() == "42"


def test_a_changed_input_reaches_every_later_step_and_no_other(tmp_path: Path) -> None:
    data = tmp_path / "data.json"
    cache = StepCache(tmp_path / "cache")

    def keys(content: str) -> tuple[str, str, str]:
        data.write_text(content)
        read = cache.step("read", lambda d: None, config={}, files=(data,))
        train = cache.step("train", lambda d: None, config={}, inputs=(read,))
        apart = cache.step("apart", lambda d: None, config={})
        return read.key, train.key, apart.key

    before, after = keys("one"), keys("two")
    assert before[0] != after[0] and before[1] != after[1]
    assert before[2] == after[2]


def test_a_step_that_died_is_called_again(tmp_path: Path) -> None:
    cache = StepCache(tmp_path)

    def dies(directory: Path) -> None:
        (directory / "partial").write_text("half")
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        cache.step("embed", dies, config={})
    resumed = cache.step("embed", counting(tmp_path / "log"), config={})
    assert (resumed / "partial").read_text() == "half"
    assert (tmp_path / "log").read_text() == "ran\n"


def _race(cache_dir: Path, log: Path) -> None:
    StepCache(cache_dir).step("slow", counting(log), config={})


def test_two_processes_share_one_computation(tmp_path: Path) -> None:
    log = tmp_path / "log"
    context = multiprocessing.get_context("fork")
    racers = [context.Process(target=_race, args=(tmp_path / "c", log)) for _ in range(3)]
    for racer in racers:
        racer.start()
    for racer in racers:
        racer.join()
    assert log.read_text() == "ran\n"


def test_the_name_is_part_of_the_key() -> None:
    assert step_key("a", {}) != step_key("b", {})
