"""The command line of `train.py` on tiny real parts: stages, refusals, resume, sweeps."""

import inspect
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hydra.utils import get_method
from omegaconf import OmegaConf
from PIL import Image
from safetensors.torch import load_file

import train
from revision.alignment.realign import ReAlign
from revision.alignment.storage import save_alignment
from revision.config import compose
from revision.encoders.load import load_encoder
from revision.models.directory import load_model
from revision.records import Record
from revision.shards import ShardWriter, write_header
from revision.training.metrics_file import read_metrics
from tests.tiny_encoders import save_clip
from tests.tiny_models import save_tiny_llm

ROOT = Path(__file__).resolve().parents[1]
WORDS = ["red", "cat", "blue", "mat", "image", "helpful", "polite", "answers"]


def write_features(directory, rows, kind, records, encoder):
    with ShardWriter(directory, 0, rows.shape[1], "float32") as writer:
        for start in range(0, len(rows), 8):
            writer.add_block(rows[start : start + 8], records[start : start + 8])
    write_header(directory, kind=kind, encoder=encoder, source={"input": "test"}, num_shards=1)
    return directory


def captions(count):
    rng = np.random.default_rng(0)
    return [
        Record(id=str(i), text=" ".join(rng.choice(WORDS, 1 + i % 5))) for i in range(count)
    ]


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """A language model, an encoder, caption features of the encoder, and real conversations."""
    root = tmp_path_factory.mktemp("parts")
    save_tiny_llm(root / "llm")
    save_clip(root / "clip")
    encoder = load_encoder(root / "clip").identity()
    rng = np.random.default_rng(1)
    rows = rng.standard_normal((24, 8)).astype(np.float32)
    write_features(root / "texts", rows, "text", captions(24), encoder)
    write_features(root / "val", rows[:5], "image", captions(5), encoder)
    turns = []
    for i in range(8):
        pixels = rng.integers(0, 256, (20, 20, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / f"{i}.png")
        question = {"from": "human", "value": "<image>\nWhat is in the image?"}
        answer = {"from": "gpt", "value": f"A {WORDS[i]} cat"}
        turns.append({"id": i, "image": f"{i}.png", "conversations": [question, answer]})
    (root / "conversations.json").write_text(json.dumps(turns))
    return root


def overrides(parts, runs, *more):
    return [
        f"llm.name={parts / 'llm'}",
        f"run_root={runs}",
        "accelerator=cpu",
        "devices=1",
        "progress=false",
        "data.num_workers=0",
        "stage.batch_size=2",
        "stage.accumulate=2",
        *more,
    ]


def pretrain(parts, runs, *more):
    return overrides(
        parts,
        runs,
        "name=one",
        f"data.shards={parts / 'texts'}",
        f"data.val_shards={parts / 'val'}",
        *more,
    )


def command(*arguments, **environment):
    return subprocess.run(
        [sys.executable, "train.py", *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
        timeout=500,
    )


def weights(model_dir):
    projector = load_file(model_dir / "projector.safetensors")
    llm = load_file(model_dir / "llm" / "model.safetensors")
    return {**projector, **llm}


def difference(one, other):
    assert one.keys() == other.keys()
    return max(float((one[name].float() - other[name].float()).abs().max()) for name in one)


def test_pretraining_leaves_a_model_whose_projector_learned(parts, tmp_path):
    run_dir = train.run(
        compose("train", pretrain(parts, tmp_path, "stage.max_steps=6", "val_every=3"))
    )
    curves = read_metrics(run_dir / "metrics.csv")
    assert [step for step, _ in curves["train/loss"]] == [1, 2, 3, 4, 5, 6]
    assert [step for step, _ in curves["val/loss"]] == [3, 6]
    model = load_model(run_dir / "model")
    assert model.template == "plain"
    before, after = (
        load_file(path / "model.safetensors") for path in (parts / "llm", run_dir / "model" / "llm")
    )
    assert difference(before, after) == 0
    assert json.loads((run_dir / "model" / "provenance.json").read_text())["inputs"]["data.shards"]
    assert not (run_dir / "checkpoints").exists()
