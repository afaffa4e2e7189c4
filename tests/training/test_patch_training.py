"""Instruction tuning on rows of patches: decoded on the fly, and from shards."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

import train
from revision.config import compose
from revision.encoders.embedding import embed_records
from revision.encoders.load import load_encoder
from revision.evaluation.heldout import open_heldout
from revision.models.directory import load_model
from revision.training.metrics_file import read_metrics
from tests.test_train import difference, overrides, weights
from tests.tiny_encoders import save_clip
from tests.tiny_models import save_tiny_llm

LAYER = ["encoder=clip_b32", "encoder.revision=null", "encoder.pooling=patches", "encoder.layer=-2"]
STAGE = ["stage=sft", "stage.template=vicuna_v1", "stage.optimizer.learning_rate=1e-3"]


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """A language model, a CLIP, and conversations about one or two pictures or none."""
    root = tmp_path_factory.mktemp("parts")
    save_tiny_llm(root / "llm")
    save_clip(root / "clip")
    random = np.random.default_rng(0)
    records = []
    for i in range(8):
        for j in range(i % 3):
            pixels = random.integers(0, 256, (20 + i, 30, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / f"{i}_{j}.png")
        marks = "<image>\n" * (i % 3)
        turns = [
            {"from": "human", "value": f"{marks}What is in the image?"},
            {"from": "gpt", "value": f"A {['red', 'blue', 'small'][i % 3]} cat"},
        ]
        images = {"image": [f"{i}_{j}.png" for j in range(i % 3)]} if i % 3 else {}
        records.append({"id": str(i), "conversations": turns} | images)
    (root / "data.json").write_text(json.dumps(records))
    return root


def stored(parts, directory):
    encoder = load_encoder(parts / "clip", pooling="patches")
    return embed_records(
        encoder,
        input=parts / "data.json",
        output_dir=directory,
        image_root=parts,
        modality="image",
        dtype="float32",
        num_workers=0,
        accelerator="cpu",
        devices=1,
    )["image"]


def test_patches_on_the_fly_and_from_shards_train_the_same_model(parts, tmp_path):
    shards = stored(parts, tmp_path / "features")
    encoder = [*LAYER, f"encoder.path={parts / 'clip'}"]
    sources = {
        "fly": [f"data.input={parts / 'data.json'}", f"data.image_root={parts}"],
        "shards": [f"data.shards={shards}"],
    }
    runs = {
        name: train.run(
            compose("train", overrides(parts, tmp_path, f"name={name}", *STAGE, *encoder, *data))
        )
        for name, data in sources.items()
    }
    losses = {name: read_metrics(run / "metrics.csv")["train/loss"] for name, run in runs.items()}
    assert len(losses["fly"]) == 2
    np.testing.assert_allclose(losses["fly"], losses["shards"], rtol=0, atol=1e-6)
    # rows differ by the rounding of other batches; Adam makes 1.7e-6 of it, with two threads
    assert difference(*(weights(run / "model") for run in runs.values())) < 1e-5

    model = load_model(runs["shards"] / "model")
    assert model.encoder.rows_per_image == 16
    picture = Image.open(parts / "1_0.png")
    rows = model.encoder.visual(model.encoder.image_inputs(picture)[None])[0]
    asked = model.prompt([picture], "What is in the image?")
    assert torch.equal(asked.visual, rows[None])
    assert model.answer([picture], "What?", 4) == model.answer([rows], "What?", 4)

    on_the_fly = open_heldout(parts / "data.json", encoder=model.encoder, image_root=parts)
    from_shards = open_heldout(shards, encoder=model.encoder)
    assert on_the_fly.pictures == from_shards.pictures
    for number in range(7):
        torch.testing.assert_close(
            on_the_fly.rows(number), from_shards.rows(number), rtol=0, atol=1e-5
        )


def test_pooled_features_are_refused_beside_patches(parts, tmp_path):
    shards = stored(parts, tmp_path / "features")
    pooled = [*LAYER, f"encoder.path={parts / 'clip'}", "encoder.pooling=pooled"]
    with pytest.raises(ValueError, match=r"made by another encoder|width"):
        train.run(
            compose(
                "train",
                overrides(parts, tmp_path, "name=x", *STAGE, *pooled, f"data.shards={shards}"),
            )
        )
