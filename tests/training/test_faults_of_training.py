"""A run that is asked to stop, or whose gradient is not a number."""

import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import torch

import train
from revision.config import compose
from revision.models.llava import LlavaModel
from revision.training.checkpoint import latest_checkpoint
from revision.training.module import TrainingModule
from revision.training.nonfinite import NonFiniteGuard
from revision.training.optim import OptimizerSettings
from revision.training.stopping import STATUS, StopRequest
from tests.test_train import ROOT, command, difference, parts, pretrain, weights

__all__ = ["parts"]  # a fixture


def overflown(*, ids, loss, scaler=None, is_first=True):
    """A guard's arguments behind a backward pass that left infinite gradients."""
    model = torch.nn.Linear(2, 2)
    settings = OptimizerSettings(learning_rate=1e-3)
    module = TrainingModule(model, trainable=["weight"], optimizer=settings, total_steps=9)
    model.weight.grad = torch.full_like(model.weight, float("inf"))
    module.batch_loss = module.window_loss = torch.tensor(loss)
    strategy = SimpleNamespace(
        handles_gradient_accumulation=False, reduce=lambda own, reduce_op: own
    )
    trainer = SimpleNamespace(
        strategy=strategy,
        precision_plugin=SimpleNamespace(scaler=scaler),
        accumulate_grad_batches=1,
        global_step=4,
        is_global_zero=is_first,
    )
    module._trainer = trainer
    return trainer, module, SimpleNamespace(ids=ids)


def guarded(guard, trainer, module, batch):
    guard.on_train_batch_start(trainer, module, batch, 0)
    guard.on_after_backward(trainer, module)
    guard.on_before_optimizer_step(trainer, module, None)


def test_a_gradient_that_overflows_in_float16_is_left_to_the_scaler():
    guarded(NonFiniteGuard(), *overflown(ids=["a"], loss=1.0, scaler=object()))
    with pytest.raises(ValueError, match="step 5: the gradient is not finite; the losses of this"):
        guarded(NonFiniteGuard(), *overflown(ids=["a"], loss=1.0))
    with pytest.raises(ValueError, match="the loss of samples a is not finite"):
        guarded(NonFiniteGuard(), *overflown(ids=["a"], loss=float("nan"), scaler=object()))


def test_the_process_with_the_samples_names_them(capsys):
    guarded(NonFiniteGuard("skip"), *overflown(ids=["a"], loss=1.0, is_first=False))
    assert capsys.readouterr().out == ""
    arguments = overflown(ids=["a"], loss=float("nan"), is_first=False)
    guarded(NonFiniteGuard("skip"), *arguments)
    assert "the loss of samples a is not finite" in capsys.readouterr().out
    assert arguments[1].model.weight.grad is None


def spoil(monkeypatch, sample):
    """The loss of `sample` is not a number."""
    forward = LlavaModel.forward

    def spoiled(model, batch):
        losses = forward(model, batch)
        bad = sample in batch.ids and model.training
        return losses._replace(loss=losses.loss * float("nan")) if bad else losses

    monkeypatch.setattr(LlavaModel, "forward", spoiled)


def test_a_loss_that_is_no_number_stops_the_run_and_names_the_samples(parts, tmp_path, monkeypatch):
    config = compose("train", pretrain(parts, tmp_path, "checkpoint_steps=1"))
    spoil(monkeypatch, "7")
    with pytest.raises(
        ValueError, match="the gradient is not finite; the loss of samples"
    ) as error:
        train.run(config)
    named = str(error.value).split("samples ")[1].split(" is not")[0].split(", ")
    assert "7" in named and len(named) == 2  # those of its micro-batch
    step = int(str(error.value).split("step ")[1].split(":")[0])
    kept = latest_checkpoint(tmp_path / "one" / "checkpoints")
    assert (kept is None) == (step == 1)
    monkeypatch.undo()
    healed = train.run(config)
    whole = train.run(compose("train", pretrain(parts, tmp_path / "whole", "checkpoint_steps=1")))
    assert difference(weights(healed / "model"), weights(whole / "model")) == 0


def test_such_a_step_can_be_left_out(parts, tmp_path, monkeypatch, capsys):
    spoil(monkeypatch, "7")
    run_dir = train.run(compose("train", pretrain(parts, tmp_path, "on_nonfinite=skip")))
    assert capsys.readouterr().out.count("Skipped (1 so far): step") == 1
    assert all(bool(w.isfinite().all()) for w in weights(run_dir / "model").values())


def test_an_unknown_reaction_is_refused():
    with pytest.raises(ValueError, match="on_nonfinite is stop or skip, got 'ignore'"):
        NonFiniteGuard("ignore")


def test_a_request_is_noted_once_and_the_next_one_kills():
    request = StopRequest()
    request.listen()
    os.kill(os.getpid(), signal.SIGTERM)
    assert request.is_made
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    request.forget()


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_a_run_that_is_asked_to_stop_saves_and_continues_to_the_same_weights(
    parts, tmp_path, processes
):
    settings = ["stage.max_steps=40", f"devices={processes}", "checkpoint_minutes=60"]
    settings += ["stage.batch_size=1"] if processes == 2 else []
    whole = command(*pretrain(parts, tmp_path / "whole", *settings))
    assert whole.returncode == 0, whole.stderr
    arguments = pretrain(parts, tmp_path / "cut", *settings)
    process = subprocess.Popen(
        [sys.executable, "train.py", *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    metrics = tmp_path / "cut" / "one" / "metrics.csv"
    while not (metrics.exists() and len(metrics.read_text().splitlines()) > 2):
        assert process.poll() is None
        time.sleep(0.01)
    process.terminate()
    output, _ = process.communicate(timeout=120)
    assert process.returncode == STATUS, output
    assert "Stopped on request after step" in output
    assert latest_checkpoint(tmp_path / "cut" / "one" / "checkpoints") is not None
    done = command(*arguments)
    assert done.returncode == 0, done.stderr
    one, two = (tmp_path / name / "one" / "model" for name in ("whole", "cut"))
    assert difference(weights(one), weights(two)) == 0
    assert torch.is_tensor(next(iter(weights(one).values())))
