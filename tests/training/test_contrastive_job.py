"""Refusals of the contrastive stages, and towers from scratch; heads are in tests/test_train.py."""

import json

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file

import train
from revision.config import compose
from revision.encoders.load import load_encoder
from revision.training import run as training_run
from revision.training.contrastive_job import contrastive_job
from revision.training.metrics_file import read_metrics
from tests.tiny_encoders import WORDS, save_clip, save_siglip, tokenizer


@pytest.mark.parametrize(
    ("setting", "clear"),
    [
        ("stage.accumulate=2", "accumulate=2 and 1 processes"),
        ("devices=2", "accumulate=1 and 2 processes"),
        ("num_nodes=3", "accumulate=1 and 3 processes"),
    ],
)
def test_a_batch_that_is_divided_would_lose_negatives(setting, clear):
    settings = ["name=x", "stage=contrastive", "data.images=a", "data.texts=b", "accelerator=cpu"]
    cfg = compose("train", [*settings, "devices=1", setting])
    with pytest.raises(ValueError, match=rf"{clear}.*raise stage\.batch_size"):
        contrastive_job(cfg, lambda node: 1 / 0)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Captions that name the colour of their picture, and a tokenizer that knows the words."""
    root = tmp_path_factory.mktemp("pictures")
    tokenizer(12).save_pretrained(root / "words")
    rng = np.random.default_rng(0)
    colours, entries = {"red": 0, "green": 1, "blue": 2}, []
    for i in range(24):
        colour, animal = list(colours)[i % 3], WORDS[i % 8]
        pixels = rng.integers(0, 60, (20, 20, 3), dtype=np.uint8)
        pixels[:, i % 20 :, colours[colour]] += 180
        Image.fromarray(pixels).save(root / f"{i}.png")
        entries.append({"id": str(i), "image": f"{i}.png", "caption": f"{colour} {animal}"})
    for name, part in (("train", entries[:16]), ("val", entries[16:])):
        (root / f"{name}.json").write_text(json.dumps(part))
    return root


def scratch(pictures, runs, *more):
    sizes = {"image_size": 16, "patch_size": 8, "width": 16, "num_layers": 1, "num_heads": 2}
    return [
        "stage=contrastive_scratch",
        f"encoder.tokenizer_dir={pictures / 'words'}",
        *[f"encoder.{name}={size}" for name, size in sizes.items()],
        "encoder.dim=8",
        "encoder.max_length=8",
        f"data.input={pictures / 'train.json'}",
        f"data.val_input={pictures / 'val.json'}",
        f"data.image_root={pictures}",
        "data.keep_pictures=99",
        f"run_root={runs}",
        "name=towers",
        "accelerator=cpu",
        "devices=1",
        "precision=32-true",
        "progress=false",
        "stage.batch_size=8",
        "stage.max_steps=8",
        "stage.track.every=2",
        "stage.track.rank=3",
        "stage.track.freeze_step=2",
        "checkpoint_steps=3",
        *more,
    ]


class Stopped(Exception):
    pass


def test_towers_from_scratch_learn_and_survive_a_kill(pictures, tmp_path, monkeypatch):
    whole = train.run(compose("train", scratch(pictures, tmp_path / "whole")))
    curves = read_metrics(whole / "metrics.csv")
    assert curves["train/loss"][-1][1] < curves["train/loss"][0][1]
    assert curves["gap/drift"][-1][1] > 0
    assert curves["val/i2t_r1"]
    encoder = load_encoder(whole / "encoder")
    assert encoder.dim == 8 and encoder.identity()["model_type"] == "clip"
    facts = json.loads((whole / "encoder" / "training.json").read_text())
    assert facts["training"]["num_pairs"] == 16
    assert facts["held_out"]["validation"]["num_pairs"] == 8

    checkpoint = training_run.ResumeCheckpoint.on_train_batch_end

    def stop_at_5(self, trainer, *rest):
        checkpoint(self, trainer, *rest)
        if trainer.global_step == 5:
            raise Stopped

    with monkeypatch.context() as patch:
        patch.setattr(training_run.ResumeCheckpoint, "on_train_batch_end", stop_at_5)
        with pytest.raises(Stopped):
            train.run(compose("train", scratch(pictures, tmp_path / "killed")))
    resumed = train.run(compose("train", scratch(pictures, tmp_path / "killed")))
    one, other = (load_file(run / "encoder" / "model.safetensors") for run in (whole, resumed))
    assert all((one[name] == other[name]).all() for name in one)
    again = read_metrics(resumed / "metrics.csv")
    for name in curves:
        if name.startswith(("gap/", "val/", "train/")):
            assert curves[name] == again[name], name


def test_the_seed_decides_the_towers(pictures, tmp_path):
    one, same, other = (
        contrastive_job_of(pictures, tmp_path, seed).model.state_dict() for seed in (0, 0, 1)
    )
    assert all((one[name] == same[name]).all() for name in one)
    assert any((one[name] != other[name]).any() for name in one)


def contrastive_job_of(pictures, tmp_path, seed):
    from revision.config import build

    return contrastive_job(compose("train", scratch(pictures, tmp_path, f"seed={seed}")), build)


def test_a_clip_that_is_there_is_trained_further(pictures, tmp_path):
    save_clip(tmp_path / "clip")
    encoder = ["encoder=clip_b32", f"encoder.path={tmp_path / 'clip'}", "encoder.revision=null"]
    settings = [o for o in scratch(pictures, tmp_path) if not o.startswith("encoder.")]
    run_dir = train.run(compose("train", [*settings, *encoder]))
    before, after = (
        load_file(directory / "model.safetensors")
        for directory in (tmp_path / "clip", run_dir / "encoder")
    )
    assert before.keys() == after.keys()
    assert not (before["visual_projection.weight"] == after["visual_projection.weight"]).all()


def test_whole_towers_must_be_those_of_a_clip(pictures, tmp_path):
    save_siglip(tmp_path / "siglip")
    encoder = ["encoder=clip_b32", f"encoder.path={tmp_path / 'siglip'}", "encoder.revision=null"]
    settings = [o for o in scratch(pictures, tmp_path) if not o.startswith("encoder.")]
    with pytest.raises(ValueError, match=r"both towers of a CLIP.*encoder=clip_tiny"):
        train.run(compose("train", [*settings, *encoder]))
