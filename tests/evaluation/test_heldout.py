"""Held-out sets: any picture by its number, from shards or from files."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from revision.evaluation.heldout import input_digest, open_heldout, visual_rows
from revision.records import Record, load_image
from revision.shards import ShardReader, ShardWriter, write_header
from tests.tiny_encoders import tiny_composed

COLOURS = ["red", "green", "blue"]


@pytest.fixture
def conversations(tmp_path):
    for colour in COLOURS:
        Image.new("RGB", (20, 14), colour).save(tmp_path / f"{colour}.png")
    turns = [{"from": "human", "value": "<image>\nIs it red?"}, {"from": "gpt", "value": "Yes."}]
    pair = [{"from": "human", "value": "<image><image> Same?"}, {"from": "gpt", "value": "No."}]
    entries = [
        {"id": 0, "image": "red.png", "conversations": turns},
        {"id": 1, "image": "nowhere.png"},
        {"id": 2, "image": ["green.png", "blue.png"], "conversations": pair},
        {"image": "red.png", "conversations": turns},
    ]
    (tmp_path / "data.json").write_text(json.dumps(entries))
    return tmp_path / "data.json"


def test_rows_of_a_feature_set_are_numbered_through_blocks_and_shards(features):
    heldout = open_heldout(features)
    rows = np.concatenate(list(ShardReader(features).iter_rows()))
    assert [list(pictures) for pictures in heldout.pictures] == [[i] for i in range(10)]
    for picture in (0, 3, 4, 5, 6, 9):
        np.testing.assert_array_equal(heldout.rows(picture)[0].numpy(), rows[picture])


def test_images_are_encoded_on_the_fly_as_the_encoder_does(conversations):
    encoder = tiny_composed()
    heldout = open_heldout(conversations, encoder=encoder, image_root=conversations.parent)
    assert [list(pictures) for pictures in heldout.pictures] == [[0], [1], [2, 3]]
    image = load_image("blue.png", image_root=conversations.parent)
    with torch.no_grad():
        expected = encoder.encode_images(encoder.image_inputs(image)[None])
    torch.testing.assert_close(heldout.rows(3), expected, rtol=0, atol=1e-6)


def test_what_is_refused_is_kept_and_a_missing_image_is_named(conversations):
    heldout = open_heldout(conversations, encoder=tiny_composed(), image_root=conversations.parent)
    assert [entry.reason for entry in heldout.rejected] == ["missing id"]
    with pytest.raises(ValueError, match=r"record '1': nowhere\.png: missing image"):
        heldout.rows(1)


def test_images_without_an_encoder_are_refused(conversations):
    with pytest.raises(ValueError, match="the model directory holds no encoder"):
        open_heldout(conversations)


def test_rows_of_another_encoder_than_the_models_are_refused(features, tmp_path):
    encoder = tiny_composed()
    both = r"made by another encoder, \{'name': 'tiny'\}, than the model's, \{'name': 'composed_"
    with pytest.raises(ValueError, match=both):
        open_heldout(features, encoder=encoder)
    rows = np.eye(8, dtype=np.float32)
    with ShardWriter(tmp_path / "own", 0, 8, "float32") as writer:
        writer.add_block(rows, [Record(str(i), "a", (f"{i}.png",), ()) for i in range(8)])
    own = {"kind": "image", "encoder": encoder.identity(), "source": {}, "num_shards": 1}
    write_header(tmp_path / "own", **own)
    assert len(open_heldout(tmp_path / "own", encoder=encoder).records) == 8


def test_visual_conditions(features):
    heldout = open_heldout(features)
    other = [9, 8, 7, 6, 5, 4, 3, 2, 1, 0]
    real, zero, shuffled = (
        visual_rows(heldout, [2], visual, other) for visual in ("real", "zero", "shuffled")
    )
    assert real is not None
    assert zero is not None
    assert shuffled is not None
    assert real.shape == zero.shape == (1, 1, 8)
    assert not zero.any()
    torch.testing.assert_close(shuffled[0], heldout.rows(7))
    assert visual_rows(heldout, [], "real", other) is None


def test_the_digest_follows_the_data(features, conversations):
    before = input_digest(features), input_digest(conversations)
    assert before == (input_digest(features), input_digest(conversations))
    conversations.write_text(conversations.read_text() + " ")
    assert input_digest(conversations) != before[1]
    with pytest.raises(ValueError, match="no such input file"):
        input_digest(features / "nothing")
