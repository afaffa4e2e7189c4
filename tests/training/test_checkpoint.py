"""Checkpoints exist whole or not at all, and are refused where they do not fit."""

import json
from types import SimpleNamespace

import lightning as L
import pytest
import torch

from revision.training.checkpoint import (
    ResumeCheckpoint,
    check_continues,
    checkpoint_step,
    latest_checkpoint,
    save_checkpoint,
)


class FakeTrainer(L.Trainer):
    """A trainer that has done `step` steps and saves what `write` writes."""

    global_step = strategy = world_size = is_global_zero = save_checkpoint = None

    def __init__(self, step, write):
        self.global_step, self.save_checkpoint = step, write
        self.strategy = SimpleNamespace(barrier=lambda: None)
        self.world_size, self.is_global_zero = 1, True


def test_a_checkpoint_replaces_the_older_one(tmp_path):
    for step in (1, 2):
        save_checkpoint(FakeTrainer(step, lambda path: path.write_text("x")), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000002"]
    assert checkpoint_step(latest_checkpoint(tmp_path)) == 2


def test_a_death_while_writing_leaves_the_older_one(tmp_path):
    save_checkpoint(FakeTrainer(1, lambda path: path.write_text("x")), tmp_path)

    def dies(path):
        path.write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(FakeTrainer(2, dies), tmp_path)
    assert checkpoint_step(latest_checkpoint(tmp_path)) == 1
    save_checkpoint(FakeTrainer(3, lambda path: path.write_text("x")), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000003"]


def test_without_minutes_only_steps_count(tmp_path):
    callback = ResumeCheckpoint(tmp_path, total_steps=9, every_minutes=None, every_steps=2)
    for step in (2, 3):
        callback._save_if_due(FakeTrainer(step, lambda path: path.write_text("x")))
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000002"]


def test_a_full_disk_is_one_sentence(tmp_path):
    def full(path):
        raise RuntimeError("[enforce fail at inline_container.cc] PytorchStreamWriter failed")

    with pytest.raises(OSError, match="is the disk full"):
        save_checkpoint(FakeTrainer(1, full), tmp_path)


@pytest.mark.parametrize(
    ("key", "other", "message"),
    [("processes", 4, "processes = 4 .* has 1"), ("strategy", "DDPStrategy", "has SimpleNames")],
)
def test_another_world_is_refused(tmp_path, key, other, message):
    trainer = FakeTrainer(1, lambda path: path.write_text("x"))
    checkpoint = save_checkpoint(trainer, tmp_path)
    about = checkpoint / "about.json"
    about.write_text(json.dumps(json.loads(about.read_text()) | {key: other}))
    with pytest.raises(ValueError, match=message):
        check_continues(checkpoint, trainer)


@pytest.mark.parametrize("asked", [True, False])
def test_what_one_process_is_asked_all_do(tmp_path, asked, capsys):
    """Two processes, of which only the other one got the signal, or neither."""
    trainer = FakeTrainer(3, lambda path: path.write_text("x"))
    trainer.world_size, trainer.strategy = (
        2,
        SimpleNamespace(
            barrier=lambda: None,
            root_device=torch.device("cpu"),
            reduce=lambda own, reduce_op: own + torch.tensor([0.0, float(asked)]),
        ),
    )
    checkpoints = ResumeCheckpoint(tmp_path, total_steps=9)
    if asked:
        with pytest.raises(SystemExit, match="143"):
            checkpoints._save_if_due(trainer)
    else:
        checkpoints._save_if_due(trainer)
    assert (latest_checkpoint(tmp_path) is not None) == asked
    assert ("Stopped on request after step 3" in capsys.readouterr().out) == asked
