"""Laws of training: cutting, resuming and freezing change nothing that they should not change."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from revision.training.metrics_file import read_metrics

TOY = Path(__file__).with_name("toy.py")
spec = importlib.util.spec_from_file_location("toy", TOY)
toy = importlib.util.module_from_spec(spec)
sys.modules["toy"] = toy  # dataclasses look their module up
spec.loader.exec_module(toy)

ROOT = TOY.parents[2]


def difference(one, other):
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max()) for name in one)


def in_processes(directory, **settings):
    """Run the toy in its own process(es); returns its trained weights, or None if it stopped."""
    done = subprocess.run(
        [sys.executable, str(TOY), json.dumps({"directory": str(directory), **settings})],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    weights = directory / "weights.pt"
    return torch.load(weights, weights_only=True) if weights.exists() else None


def curves(directory, *names):
    read = read_metrics(directory / "metrics.csv")
    return {name: read[name] for name in names}


def test_accumulation_does_not_change_the_weights(tmp_path):
    whole = toy.train_toy(tmp_path / "whole", batch=8, accumulate=1, max_grad_norm=0.5)
    cut = toy.train_toy(tmp_path / "cut", batch=2, accumulate=4, max_grad_norm=0.5)
    assert difference(whole, cut) < 1e-6  # measured 3e-8


@pytest.mark.slow
def test_two_processes_do_not_change_the_weights(tmp_path):
    whole = toy.train_toy(tmp_path / "whole", batch=8)
    split = in_processes(tmp_path / "split", batch=4, world=2, strategy="ddp")
    assert difference(whole, split) < 1e-6  # measured 3e-8


def test_the_logged_loss_is_the_mean_over_all_targets_of_the_step(tmp_path):
    toy.train_toy(tmp_path, batch=2, accumulate=4, steps=2)
    model = toy.Toy()
    batch = toy.pad(toy.toy_samples()[:8])
    expected = model(batch).loss / sum(batch.lengths - 1)
    assert curves(tmp_path, "train/loss")["train/loss"][0] == (1, pytest.approx(expected.item()))


@pytest.mark.parametrize(
    ("step", "in_validation"), [(1, False), (2, False), (2, True), (4, True), (5, False), (6, True)]
)
def test_a_run_that_was_stopped_equals_one_that_was_not(tmp_path, step, in_validation):
    settings = {
        "batch": 2,
        "accumulate": 2,
        "steps": 6,
        "val_every": 2,
        "dropout": 0.3,
        "checkpoint_steps": 1,
    }
    names = ("train/loss", "val/loss", "train/learning_rate", "train/gradient_norm")
    undisturbed = toy.train_toy(tmp_path / "whole", **settings)
    stop = {"stop_after": step, "stop_in_validation": in_validation}
    assert toy.train_toy(tmp_path / "stopped", **stop, **settings) == {}
    resumed = toy.train_toy(tmp_path / "stopped", **settings)
    assert all(torch.equal(undisturbed[name], resumed[name]) for name in undisturbed)
    assert curves(tmp_path / "whole", *names) == curves(tmp_path / "stopped", *names)


def test_steps_since_the_last_checkpoint_are_repeated_and_logged_once(tmp_path):
    def logged_steps():
        return [step for step, _ in curves(tmp_path, "train/loss")["train/loss"]]

    toy.train_toy(tmp_path, stop_after=5, checkpoint_steps=4, steps=9)
    assert logged_steps() == [1, 2, 3, 4, 5]
    toy.train_toy(tmp_path, checkpoint_steps=4, steps=9)
    assert logged_steps() == list(range(1, 10))


def test_the_step_before_the_last_is_always_saved(tmp_path):
    """A run that dies while it writes its result repeats one step, not all since a checkpoint."""
    toy.train_toy(tmp_path, steps=4, stop_after=4, val_every=4, stop_in_validation=True)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000003"]


def test_only_the_trainable_set_moves(tmp_path, monkeypatch):
    models = []
    original = toy.Toy.__init__

    def remember(self, *arguments, **named):
        original(self, *arguments, **named)
        models.append(self)

    monkeypatch.setattr(toy.Toy, "__init__", remember)
    trained = toy.train_toy(tmp_path)
    before = toy.Toy().state_dict()
    after = models[0].state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == set(trained) == {name for name in before if name != "embedding.weight"}


def test_a_checkpoint_holds_the_trainable_set_only(tmp_path):
    toy.train_toy(tmp_path, steps=4, checkpoint_steps=2, stop_after=3)
    (state,) = tmp_path.glob("checkpoints/step-*/state")
    saved = torch.load(state, weights_only=True)
    assert "model.embedding.weight" not in saved["state_dict"]
    assert len(saved["state_dict"]) == 7


STRATEGIES = [
    "ddp",
    "fsdp",
    "deepspeed:1",
    "deepspeed:2",
    "deepspeed:3",
    "deepspeed:3:1",
]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    directory = tmp_path_factory.mktemp("one")
    return directory, toy.train_toy(directory, **SPREAD | {"batch": 8, "accumulate": 1, "world": 1})


SPREAD = {
    "batch": 2,
    "accumulate": 2,
    "steps": 4,
    "world": 2,
    "max_grad_norm": 0.5,
    "val_every": 2,
    "checkpoint_steps": 2,
}


@pytest.mark.slow
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_strategy_trains_clips_and_resumes_as_one_process_does(
    tmp_path, undisturbed, strategy
):
    """Two processes over gloo, stopped after step 2 and continued, against one undisturbed."""
    settings = SPREAD | {"strategy": strategy}
    assert in_processes(tmp_path, **settings, stop_after=2) is None
    resumed = in_processes(tmp_path, **settings)
    directory, expected = undisturbed
    assert difference(expected, resumed) < 1e-6  # measured 6e-8
    for name in ("train/loss", "val/loss", "train/gradient_norm"):
        for (step, value), (same, other) in zip(
            curves(directory, name)[name], curves(tmp_path, name)[name], strict=True
        ):
            assert (step, value) == (same, pytest.approx(other, rel=1e-5))
