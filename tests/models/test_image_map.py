"""Alignments that move images: the model moves features of pictures, once, wherever they enter."""

import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from revision.alignment import AlignmentMap, Cloud
from revision.alignment.methods.c3 import C3
from revision.alignment.methods.collapse import Collapse
from revision.alignment.methods.mean_shift import MeanShift
from revision.alignment.methods.unicorn import Unicorn
from revision.alignment.storage import load_alignment, save_alignment
from revision.data.samples import Sample, collate
from revision.data.shard_source import ShardSource
from revision.evaluation.heldout import open_heldout
from revision.models.directory import load_model, save_model
from revision.models.llava import LlavaModel
from revision.models.llm import load_llm
from revision.models.projector import Projector
from tests.feature_sets import cloud, write_set
from tests.tiny_encoders import tiny_composed
from tests.tiny_models import HIDDEN, save_tiny_llm, tiny_llava

DIM = 8
MAPS = [
    Collapse(),
    C3(variant="origin"),
    Unicorn(image_mean="train"),
    MeanShift(symmetric=1.5),
]


@pytest.fixture(params=MAPS, ids=lambda alignment: alignment.name)
def image_map(request) -> AlignmentMap:
    request.param.fit(Cloud.of(cloud(1, 90, DIM)), Cloud.of(cloud(2, 90, DIM, mean=0.6)))
    assert request.param.changes_images
    return request.param


@pytest.fixture
def model(tmp_path) -> LlavaModel:
    """With weights for which features matter."""
    llm, tokenizer = load_llm(save_tiny_llm(tmp_path / "llm"))
    made = tiny_llava(llm=llm, tokenizer=tokenizer, encoder=None)
    torch.manual_seed(3)
    made.projector, made.encoder = Projector(DIM, HIDDEN), tiny_composed()
    torch.nn.init.normal_(made.projector.layers[0].weight, std=2.0)
    return made


def loss(model: LlavaModel, images: list) -> float:
    """Of a fixed answer about pictures: unlike greedy words, it tells any two features apart."""
    turns = model.prompt(images, "What is it?")
    labels = turns.input_ids.clone()
    labels[:-4] = -100
    batch = collate([Sample("x", turns.input_ids, labels, visual=turns.visual)])
    return float(model.score(batch)[0])


def test_pictures_and_features_are_moved_once(model, image_map):
    picture = Image.new("RGB", (9, 5), "red")
    with torch.no_grad():
        feature = model.encoder.encode_images(model.encoder.image_inputs(picture)[None])
    by_hand = image_map.forward_images(feature)
    plain = loss(model, [feature[0]])
    expected = loss(model, [by_hand[0]])
    answer = model.answer([by_hand[0]], "What is it?", 8)
    model.image_map = image_map
    assert abs(plain - expected) > 1e-3
    assert loss(model, [picture]) == pytest.approx(expected, abs=1e-6)
    assert loss(model, [feature[0]]) == pytest.approx(expected, abs=1e-6)
    assert model.answer([picture], "What is it?", 8) == answer
    assert model.answer([feature[0]], "What is it?", 8) == answer
    turns = model.prompt([picture], "What is it?")
    pixels = model.encoder.image_inputs(picture)[None]
    raw = Sample("x", turns.input_ids, turns.labels, pixels=pixels)
    assert model.generate([raw], 8) == [answer]
    placed = Sample("x", turns.input_ids, turns.labels, visual=by_hand[:, None])
    assert model.generate([placed], 8) == [answer]


def test_the_map_travels_through_generations_of_model_directories(model, image_map, tmp_path):
    model.image_map = image_map
    first = save_model(model, tmp_path / "first", provenance={})
    second = save_model(load_model(first), tmp_path / "second", provenance={})
    feature = torch.tensor(cloud(4, 1, DIM)[0])
    for directory in (first, second):
        again = load_model(directory)
        assert type(again.image_map) is type(image_map)
        assert loss(again, [feature]) == loss(model, [feature])
        assert load_alignment(directory / "alignment").options() == image_map.options()


def test_a_model_whose_map_got_lost_is_refused(model, image_map, tmp_path):
    model.image_map = image_map
    saved = save_model(model, tmp_path / "model", provenance={})
    shutil.rmtree(saved / "alignment")
    with pytest.raises(ValueError, match=r"incomplete: alignment/alignment\.json is missing"):
        load_model(saved)


def test_a_map_that_leaves_images_alone_is_not_applied(model, tmp_path):
    alignment = MeanShift()
    alignment.fit(Cloud.of(cloud(1, 90, DIM)), Cloud.of(cloud(2, 90, DIM, mean=0.6)))
    save_alignment(alignment, tmp_path / "alignment")
    directory = tmp_path / "model"
    save_model(model, directory, provenance={}, alignment_dir=tmp_path / "alignment")
    assert load_model(directory).image_map is None


def test_stored_features_of_pictures_are_moved_where_they_are_read(model, image_map, tmp_path):
    rows = cloud(5, 12, DIM)
    moved = image_map.forward_images(torch.tensor(rows)).numpy()
    for kind in ("image", "text"):
        shards = write_set(tmp_path / kind, rows, kind)
        expected = moved if kind == "image" else rows / np.linalg.norm(rows, axis=1)[:, None]
        source = ShardSource(shards, model.turn_encoder(), image_map=image_map)
        seen = torch.cat([source.sample(i).visual[:, 0] for i in range(12)]).numpy()
        assert np.abs(seen - expected).max() < 1e-6, kind
        blind = ShardSource(shards, model.turn_encoder(), image_map=image_map, visual="zero")
        assert not blind.sample(0).visual.any()
        heldout = open_heldout(shards, image_map=image_map)
        scored = torch.cat([heldout.rows(i) for i in range(12)]).numpy()
        assert np.abs(scored - (moved if kind == "image" else rows)).max() < 1e-6, kind


def test_pictures_of_a_held_out_set_are_moved_as_the_model_moves_them(model, image_map, tmp_path):
    Image.new("RGB", (20, 14), "green").save(tmp_path / "green.png")
    (tmp_path / "data.json").write_text('[{"id": "0", "image": "green.png", "text": "a"}]')
    options = {"encoder": model.encoder, "image_root": tmp_path}
    heldout = open_heldout(tmp_path / "data.json", image_map=image_map, **options)
    raw = open_heldout(tmp_path / "data.json", **options).rows(0)
    assert torch.equal(heldout.rows(0), image_map.forward_images(raw))
