"""Laws of the step cache: run once per distinct input, resume after a death, share safely."""

import multiprocessing
from pathlib import Path

import pytest

import revision.report.demo
import scripts.pipeline as script
from revision.config import compose
from revision.pipeline import Result, StepCache, step_key


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


@pytest.fixture
def keys_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The keys of a pipeline's steps, by name; nothing is run."""

    def step(cache, name, run, *, config, inputs=(), files=()):
        key = step_key(name, config, inputs, files)
        seen.append((name, key))
        return Result(name, tmp_path / "cache" / f"{name}-{key}", key, 0.0)

    seen: list[tuple[str, str]] = []
    monkeypatch.setattr(StepCache, "step", step)
    monkeypatch.setattr(revision.report.demo, "write_demo", lambda run_dir, *_, **__: run_dir)
    monkeypatch.setattr(script, "claim_directory", lambda *_, **__: None)

    def keys(*overrides: str) -> dict[str, str]:
        seen.clear()
        script.run(compose("pipeline", ["baseline=null", *overrides]))
        return dict(seen)

    return keys


def changed(before: dict[str, str], after: dict[str, str]) -> set[str]:
    return {name for name in before if after[name] != before[name]}


def test_a_sweep_over_the_number_of_captions_trains_and_scores_only(keys_of) -> None:
    trained = {"pretrain", "evaluate-pretrain", "sft", "evaluate-sft", "evaluate-sft-questions"}
    assert changed(keys_of(), keys_of("data.num_samples=100")) == trained


@pytest.mark.parametrize("option", ["max_caption_words=4", "caption_length=long"])
def test_a_sweep_over_captions_leaves_encoder_and_pictures_alone(keys_of, option) -> None:
    again = changed(keys_of(), keys_of(f"data.{option}"))
    assert {"embed-pretrain", "align-realign", "pretrain"} <= again
    others = {"embed-tune", "embed-val", "embed-test"}
    assert not again & (others | {"prepare", "encoder", "towers-contrastive"})


def test_what_changes_no_result_changes_no_key(keys_of) -> None:
    neutral = ["log_to=wandb", "name=other", "more.pretrain=['checkpoint_minutes=3']"]
    assert not changed(keys_of(), keys_of(*neutral))


def test_a_changed_default_of_a_stage_reaches_its_key(keys_of, monkeypatch) -> None:
    before = keys_of()

    def edited(root, overrides=()):
        cfg = compose(root, overrides)
        if root == "train" and "stage=sft" in overrides:
            cfg.stage.max_length = 77  # as if conf/stage/sft.yaml had been edited
        return cfg

    monkeypatch.setattr(script, "compose", edited)
    assert changed(before, keys_of()) == {"sft", "evaluate-sft", "evaluate-sft-questions"}
