"""Stages of `train.py` with alignments that move images, and with noise on the text rows."""

import numpy as np
import pytest
import torch

import train
from revision.alignment import Cloud
from revision.alignment.apply import apply_alignment
from revision.alignment.methods.c3 import C3
from revision.alignment.methods.collapse import Collapse
from revision.alignment.methods.mean_shift import MeanShift
from revision.alignment.storage import load_alignment, save_alignment
from revision.config import compose
from revision.encoders.load import load_encoder
from revision.models.directory import load_model, save_model
from revision.records import load_image, read_records
from revision.shards import ShardReader
from revision.training.metrics_file import read_metrics
from tests.test_train import (
    difference,
    overrides,
    parts,
    pretrain,
    weights,
    write_features,
)

__all__ = ["parts"]  # a fixture


def fit(alignment, parts, directory):
    """The map on the captions and on images that lie elsewhere, saved and applied beside it."""
    rows = np.concatenate(list(ShardReader(parts / "texts").iter_rows()))
    alignment.fit(Cloud.of(rows), Cloud.of(rows[:, ::-1] + 1.5))
    save_alignment(alignment, directory / "alignment")
    apply_alignment(alignment, parts / "texts", directory / "shards")
    return alignment


def sft(parts, runs, start, name, *more):
    common = ["stage=sft", "stage.template=vicuna_v1", "stage.optimizer.learning_rate=1e-2"]
    begin = [f"name={name}", f"start_from={start / 'model'}", "stage.max_steps=2"]
    return train.run(compose("train", overrides(parts, runs, *common, *begin, *more)))


def features_of_pictures(parts):
    encoder = load_encoder(parts / "clip")
    records = list(read_records(parts / "conversations.json", side="both", image_root=parts))
    pictures = [load_image(record.images[0], image_root=parts) for record in records]
    with torch.no_grad():
        rows = encoder.encode_images(torch.stack([encoder.image_inputs(p) for p in pictures]))
    return rows, records, encoder.identity()


def test_a_map_that_moves_images_follows_the_model_through_both_stages(parts, tmp_path):
    """Rows moved by hand, with a model that has no map, train to the same weights."""
    alignment, runs = fit(Collapse(), parts, tmp_path), tmp_path / "runs"
    clip = ["encoder=clip_b32", f"encoder.path={parts / 'clip'}", "encoder.revision=null"]
    aligned = [f"data.shards={tmp_path / 'shards'}", "stage.max_steps=2", *clip]
    first = train.run(compose("train", pretrain(parts, runs, *aligned)))
    model = load_model(first / "model")
    assert isinstance(model.image_map, Collapse)
    model.image_map = None
    plain = save_model(model, tmp_path / "plain" / "model", provenance={}).parent

    rows, records, encoder = features_of_pictures(parts)
    by_hand = alignment.forward_images(rows).numpy()
    raw = write_features(tmp_path / "raw", rows.numpy(), "image", records, encoder)
    moved = write_features(tmp_path / "moved", by_hand, "image", records, encoder)
    pictures = [f"data.input={parts / 'conversations.json'}", f"data.image_root={parts}"]
    pictures += [f"data.index_root={tmp_path / 'index'}", f"data.val_shards={raw}"]
    stored = [f"data.shards={raw}", f"data.val_shards={raw}"]
    done = {
        "pictures": sft(parts, runs, first, "pictures", *pictures),
        "stored": sft(parts, runs, first, "stored", *stored),
        "by_hand": sft(
            parts, runs, plain, "by_hand", f"data.shards={moved}", f"data.val_shards={moved}"
        ),
        "forgotten": sft(parts, runs, plain, "forgotten", *stored),
    }
    trained = {name: weights(run / "model") for name, run in done.items()}
    assert difference(trained["stored"], trained["by_hand"]) < 1e-6
    assert difference(trained["pictures"], trained["by_hand"]) < 1e-5
    assert difference(trained["forgotten"], trained["by_hand"]) > 1e-3
    losses = {
        name: read_metrics(run / "metrics.csv")["val/loss"][-1][1] for name, run in done.items()
    }
    assert losses["stored"] == pytest.approx(losses["by_hand"], abs=1e-5)
    for name in ("pictures", "stored"):
        image_map = load_model(done[name] / "model").image_map
        assert torch.equal(image_map.target_mean, alignment.target_mean)
    assert load_model(done["by_hand"] / "model").image_map is None


def test_images_of_two_frames_and_lost_maps_are_refused(parts, tmp_path):
    fit(Collapse(), parts, tmp_path)
    shards = f"data.shards={tmp_path / 'shards'}"
    first = train.run(
        compose("train", pretrain(parts, tmp_path / "runs", shards, "stage.max_steps=1"))
    )
    fit(MeanShift(), parts, tmp_path / "other")
    with pytest.raises(ValueError, match="two maps of which one moves images"):
        sft(parts, tmp_path / "runs", first, "two", f"data.shards={tmp_path / 'other' / 'shards'}")
    texts = [f"data.shards={parts / 'texts'}"]
    with pytest.raises(
        ValueError, match=r"texts that have not been through .*model/alignment, the map"
    ):
        sft(parts, tmp_path / "runs", first, "raw", *texts)
    sft(parts, tmp_path / "runs", first, "same", *texts, f"data.alignment={first}/model/alignment")
    (tmp_path / "alignment" / "alignment.json").rename(tmp_path / "lost.json")
    (tmp_path / "alignment" / "alignment.safetensors").unlink()
    (tmp_path / "alignment").rmdir()
    with pytest.raises(ValueError, match=r"alignment collapse of .* moves images too, and its map"):
        train.run(compose("train", pretrain(parts, tmp_path / "again", shards)))


def test_noise_changes_what_is_trained_and_its_seed_too(parts, tmp_path):
    def trained(name, *more):
        plan = ["stage.max_steps=2", *more]
        return weights(
            train.run(compose("train", pretrain(parts, tmp_path / name, *plan))) / "model"
        )

    clean, noised = trained("clean"), trained("noised", "noise=close")
    assert difference(clean, noised) > 1e-6
    assert difference(noised, trained("other", "noise=close", "noise.seed=1")) > 1e-6


def test_noise_has_to_have_texts_and_to_be_the_only_noise(parts, tmp_path):
    images = pretrain(parts, tmp_path, f"data.shards={parts / 'val'}", "noise=capdec")
    with pytest.raises(ValueError, match="noise= disturbs features of texts"):
        train.run(compose("train", images))
    fit(C3(), parts, tmp_path)
    disturbed = pretrain(parts, tmp_path, f"data.shards={tmp_path / 'shards'}", "noise=capdec")
    with pytest.raises(ValueError, match="have noise in them already"):
        train.run(compose("train", disturbed))
    twice = pretrain(parts, tmp_path, f"data.alignment={tmp_path / 'alignment'}", "noise=capdec")
    with pytest.raises(ValueError, match="takes no second noise"):
        train.run(compose("train", twice))
    contrastive = [
        "stage=contrastive",
        "data=pairs",
        f"data.images={parts / 'val'}",
        f"data.texts={parts / 'texts'}",
    ]
    with pytest.raises(ValueError, match="no use for it"):
        train.run(
            compose("train", overrides(parts, tmp_path, "name=x", *contrastive, "noise=close"))
        )


def test_a_random_map_on_the_fly_leaves_its_noise_in_the_model_directory(parts, tmp_path):
    fit(C3(std=0.05), parts, tmp_path)
    on_the_fly = f"data.alignment={tmp_path / 'alignment'}"
    run = train.run(
        compose("train", pretrain(parts, tmp_path / "runs", on_the_fly, "stage.max_steps=2"))
    )
    assert load_alignment(run / "model" / "alignment").noise == C3(std=0.05).noise
