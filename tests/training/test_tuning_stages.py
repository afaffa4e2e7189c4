"""The stages that tune by a method: what moves, what is kept, what comes back."""

import pytest
import torch
from safetensors.torch import load_file

import train
from revision.config import compose
from revision.data.schedule import Schedule
from revision.data.visual_datamodule import VisualDataModule
from revision.models.directory import load_model
from revision.models.tuning import METHODS
from tests.test_train import difference, overrides, parts

__all__ = ["parts"]  # a fixture

SMALL = {
    "lora": ["stage.tuning.rank=2", "stage.tuning.alpha=4"],
    "dora": ["stage.tuning.rank=2", "stage.tuning.alpha=4"],
    "ia3": [],
    "oft": ["stage.tuning.num_blocks=4"],
    "adapter": ["stage.tuning.size=3"],
    "mores": ["stage.tuning.positions={kind: all}"],
}
MERGING = ("lora", "dora", "ia3", "oft")


def run(parts, runs, stage, *more):
    return train.run(
        compose(
            "train",
            overrides(
                parts,
                runs,
                f"stage={stage}",
                "name=tuned",
                f"data.shards={parts / 'texts'}",
                f"data.val_shards={parts / 'val'}",
                "stage.max_steps=3",
                "stage.optimizer.learning_rate=1e-2",
                "stage.template=vicuna_v1",
                *SMALL.get(stage, []),
                *more,
            ),
        )
    )


def held_out_losses(model, parts):
    data = VisualDataModule(
        turns=model.turn_encoder(tokens_per_image=model.tokens_per_row),
        shards=parts / "texts",
        val_shards=parts / "val",
        schedule=Schedule(batch_size=4),
    )
    return torch.cat([model.score(batch)[0] for batch in data.held_out_batches()])


def trained(run_dir):
    return load_file(run_dir / "model" / "tuning" / "tuning.safetensors")


@pytest.fixture(scope="module", params=METHODS)
def tuned(request, parts, tmp_path_factory):
    return request.param, run(parts, tmp_path_factory.mktemp("runs"), request.param)


def test_the_language_model_is_kept_and_not_copied(tuned, parts):
    _, run_dir = tuned
    stored = run_dir / "model" / "llm" / "model.safetensors"
    assert difference(load_file(stored), load_file(parts / "llm" / "model.safetensors")) == 0
    assert stored.stat().st_nlink > 1


def test_all_that_the_method_adds_moves(tuned, parts, tmp_path):
    stage, run_dir = tuned
    still = run(parts, tmp_path, stage, "stage.optimizer.learning_rate=1e-30")
    begun, moved = trained(still), trained(run_dir)
    changed = {name for name in moved if not torch.equal(moved[name], begun[name])}
    unread = {name for name in moved if stage == "mores" and name.startswith("layers.1.")}
    assert changed == moved.keys() - unread  # nothing reads the pictures behind the last layer


def test_the_result_loads_as_it_was_trained_and_merges(tuned, parts):
    stage, run_dir = tuned
    model, again = load_model(run_dir / "model"), load_model(run_dir / "model")
    assert model.tuning is not None and model.tuning.method == stage
    losses = held_out_losses(model, parts)
    assert torch.equal(losses, held_out_losses(again, parts))
    if stage in MERGING:
        again.tuning.merge()
        torch.testing.assert_close(held_out_losses(again, parts), losses, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("stage", ["lora", "mores"])
def test_a_stopped_run_continues_to_the_same_weights(parts, tmp_path, monkeypatch, stage):
    whole = run(parts, tmp_path / "whole", stage, "checkpoint_steps=1")
    step = torch.optim.AdamW.step
    calls = []

    def failing(*arguments, **options):
        calls.append(1)
        if len(calls) == 3:
            raise RuntimeError("stopped")
        return step(*arguments, **options)

    with monkeypatch.context() as patched:
        patched.setattr(torch.optim.AdamW, "step", failing)
        with pytest.raises(RuntimeError, match="stopped"):
            run(parts, tmp_path / "cut", stage, "checkpoint_steps=1")
    continued = run(parts, tmp_path / "cut", stage, "checkpoint_steps=1")
    assert difference(trained(whole), trained(continued)) == 0


def test_a_merged_method_is_the_start_of_the_next(parts, tmp_path):
    first = run(parts, tmp_path / "one", "lora")
    second = run(parts, tmp_path / "two", "mores", f"start_from={first / 'model'}")
    before = load_model(first / "model")
    before.tuning.merge()
    stored = load_file(second / "model" / "llm" / "model.safetensors")
    state = before.language_model.state_dict()
    assert max(float((stored[name] - state[name]).abs().max()) for name in stored) < 1e-6
    with pytest.raises(ValueError, match=r"mores changes states .* cannot be merged"):
        run(parts, tmp_path / "three", "lora", f"start_from={second / 'model'}")
