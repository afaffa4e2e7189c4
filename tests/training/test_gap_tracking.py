"""`stage.track`: what it writes, that it changes nothing, and that a killed run does not show."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import train
from revision.config import compose
from revision.encoders.load import load_encoder
from revision.training import gap_tracking
from revision.training.metrics_file import read_metrics
from tests.feature_sets import cloud, write_set
from tests.tiny_encoders import tiny_towers

PAIRS, HELD_OUT = 24, 20


@pytest.fixture(scope="module")
def towers(tmp_path_factory) -> Path:
    """Towers, and rows of paired records as encoder=towers embeds them, to train and to probe."""
    root = tmp_path_factory.mktemp("towers")
    pair = tiny_towers()
    pair.save(root / "towers")
    identity = load_encoder(root / "towers").identity()
    for seed, (side, kind) in enumerate((("images", "image"), ("texts", "text"))):
        width = pair.feature_dim(kind)
        write_set(root / side, cloud(seed, PAIRS, width), kind, encoder=identity)
        write_set(root / f"val_{side}", cloud(seed, HELD_OUT, width), kind, encoder=identity)
    return root


def settings(towers, runs, *more):
    return [
        "stage=contrastive",
        "encoder=clipart",
        f"encoder.path={towers / 'towers'}",
        *[f"data.{side}={towers / side}" for side in ("images", "texts")],
        *[f"data.val_{side}={towers / f'val_{side}'}" for side in ("images", "texts")],
        f"run_root={runs}",
        "name=heads",
        "accelerator=cpu",
        "devices=1",
        "precision=32-true",
        "progress=false",
        "stage.batch_size=8",
        "stage.max_steps=7",
        "stage.optimizer.learning_rate=1e-2",
        "stage.heads.dim=8",
        *more,
    ]


TRACK = ["stage.track.every=2", "stage.track.rank=3", "stage.track.freeze_step=2"]


def tracked(towers, runs, *more):
    return train.run(compose("train", settings(towers, runs, *TRACK, *more)))


def gap_curves(run_dir):
    curves = read_metrics(run_dir / "metrics.csv")
    return {name: curve for name, curve in curves.items() if name.startswith("gap/")}


def heads(run_dir):
    return load_file(run_dir / "encoder" / "heads.safetensors")


@pytest.fixture(scope="module")
def whole(towers, tmp_path_factory):
    return tracked(towers, tmp_path_factory.mktemp("whole"))


def test_every_quantity_is_logged_at_every_logging_step(whole):
    curves = gap_curves(whole)
    steps = [0, 2, 4, 6, 7]
    assert [step for step, _ in curves["gap/leakage"]] == steps
    assert [step for step, _ in curves["gap/drift"]] == steps[1:]
    assert [step for step, _ in curves["gap/sin_theta"]] == steps[2:]
    assert len(curves) > 30
    with Image.open(whole / "gap_dynamics.png") as figure:
        assert figure.width > 1000


def test_the_gap_is_that_of_the_validation(whole):
    """Two ways to the distance of the two means of the held-out pairs."""
    curves = read_metrics(whole / "metrics.csv")
    (_, expected), (_, found) = curves["val/gap"][-1], curves["gap/mean_gap"][-1]
    assert found == pytest.approx(expected, rel=1e-5)


def test_tracking_does_not_change_the_training(towers, whole, tmp_path):
    plain = train.run(compose("train", settings(towers, tmp_path)))
    assert not gap_curves(plain) and not (plain / "gap_dynamics.png").exists()
    one, other = heads(whole), heads(plain)
    assert all(torch.equal(one[name], other[name]) for name in one)


class Stopped(Exception):
    pass


@pytest.mark.parametrize("step", [2, 4, 7])
def test_a_run_that_was_killed_measures_what_the_undisturbed_one_did(
    towers, whole, tmp_path, monkeypatch, step
):
    """Killed at a measurement; before the first checkpoint, too (step 2 with none yet)."""
    log = gap_tracking.log_metrics

    def stop_at_step(trainer, numbers):
        if trainer.global_step == step:
            raise Stopped
        log(trainer, numbers)

    more = [] if step == 2 else ["checkpoint_steps=1"]
    with monkeypatch.context() as patch:
        patch.setattr(gap_tracking, "log_metrics", stop_at_step)
        with pytest.raises(Stopped):
            tracked(towers, tmp_path, *more)
    resumed = tracked(towers, tmp_path, *more)
    assert gap_curves(resumed) == gap_curves(whole)
    assert np.array_equal(
        *(np.asarray(Image.open(run / "gap_dynamics.png")) for run in (resumed, whole))
    )


def test_without_held_out_pairs_there_is_nothing_to_track(towers, tmp_path):
    none = ["data.val_images=null", "data.val_texts=null"]
    with pytest.raises(ValueError, match=r"every=2 measures held-out pairs and there are none"):
        tracked(towers, tmp_path, *none)
    assert not (tmp_path / "heads").exists()
