"""Patches: LLaVA's rows of a vision tower, in shards and on the fly, and what refuses them."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModel

from revision.alignment.fit import read_sets
from revision.encoders.embedding import embed_records
from revision.encoders.load import load_encoder
from revision.encoders.patches import PatchEncoder
from revision.shards import ShardReader, verify
from tests.tiny_encoders import SIZE, save_clip, save_siglip, save_siglip2, tiny_composed

TOWERS = {"clip": (save_clip, 1), "siglip": (save_siglip, 0)}
OPTIONS = {"batch_size": 2, "num_workers": 0, "accelerator": "cpu", "devices": 1}
ROWS = (SIZE // 4) ** 2


def pictures(count: int = 3) -> list[Image.Image]:
    pixels = np.random.default_rng(0).integers(0, 256, (count, 20, 30, 3), dtype=np.uint8)
    return [Image.fromarray(picture) for picture in pixels]


@pytest.fixture(scope="module", params=list(TOWERS))
def tower(request, tmp_path_factory):
    save, num_class_tokens = TOWERS[request.param]
    return save(tmp_path_factory.mktemp(request.param)), num_class_tokens


@pytest.mark.parametrize("layer", [-3, -2, -1, 0, 1, 2])
def test_rows_are_the_hidden_states_without_the_class_token(tower, layer):
    directory, num_class_tokens = tower
    encoder = load_encoder(directory, pooling="patches", layer=layer)
    pixels = torch.stack([encoder.image_inputs(picture) for picture in pictures()])
    model = AutoModel.from_pretrained(directory).eval()
    with torch.no_grad():
        states = model.vision_model(
            pixel_values=encoder.whole.pixel_values(pixels), output_hidden_states=True
        ).hidden_states
    expected = states[layer][:, num_class_tokens:]
    rows = encoder.visual(pixels)
    assert rows.shape == (3, ROWS, encoder.dim) == (3, encoder.rows_per_image, 16)
    torch.testing.assert_close(rows, expected, rtol=0, atol=1e-5)


def test_pooled_rows_are_one_a_picture(tower):
    encoder = load_encoder(tower[0])
    pixels = torch.stack([encoder.image_inputs(picture) for picture in pictures()])
    assert encoder.rows_per_image == 1
    assert torch.equal(encoder.visual(pixels)[:, 0], encoder.encode_images(pixels))


def test_identity_says_what_the_rows_are_and_survives_a_copy(tower, tmp_path):
    pooled = load_encoder(tower[0])
    encoder = load_encoder(tower[0], pooling="patches", layer=-1)
    facts = {"pooling": "patches", "layer": -1, "rows_per_image": ROWS}
    assert encoder.identity() == pooled.identity() | facts
    encoder.save(tmp_path)
    again = load_encoder(tmp_path)
    assert again.identity() == encoder.identity()
    assert load_encoder(tmp_path, pooling="pooled").identity() == pooled.identity()


def test_refusals(tower, tmp_path):
    encoder = load_encoder(tower[0], pooling="patches")
    with pytest.raises(ValueError, match=r"no text rows.*modality=image"):
        encoder.tokenize(["a cat"])
    with pytest.raises(ValueError, match="no text rows"):
        encoder.encode_texts({})
    with pytest.raises(ValueError, match="16 rows a picture, and one is asked"):
        encoder.encode_images(torch.zeros(1, 3, SIZE, SIZE, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"encoder\.layer=-4 of a vision tower with 2 layers"):
        load_encoder(tower[0], pooling="patches", layer=-4)
    with pytest.raises(ValueError, match="not for siglip2; use"):
        load_encoder(save_siglip2(tmp_path), pooling="patches")
    with pytest.raises(ValueError, match="not for composed_dual_encoder; use"):
        PatchEncoder(tiny_composed())


@pytest.fixture
def input(tmp_path):
    """Five pictures, one of them unreadable, and two in one record."""
    for i, picture in enumerate(pictures(5)):
        picture.save(tmp_path / f"{i}.png")
    (tmp_path / "3.png").write_bytes(b"no picture")
    turns = [{"from": "human", "value": "<image>?"}, {"from": "gpt", "value": "a cat"}]
    two = [{"from": "human", "value": "<image><image>?"}, turns[1]]
    records = [
        {"id": "0", "image": "0.png", "conversations": turns},
        {"id": "1", "image": ["1.png", "2.png"], "conversations": two},
        {"id": "3", "image": "3.png", "conversations": turns},
        {"id": "4", "image": "4.png", "conversations": turns},
    ]
    (tmp_path / "data.json").write_text(json.dumps(records))
    return tmp_path / "data.json"


def embed(encoder, input, output_dir, **options):
    options = OPTIONS | {"modality": "image", "dtype": "float32"} | options
    return embed_records(
        encoder, input=input, output_dir=output_dir, image_root=input.parent, **options
    )


def test_a_set_of_patches(tower, input, tmp_path):
    encoder = load_encoder(tower[0], pooling="patches")
    directory = embed(encoder, input, tmp_path / "out", rows_per_shard=2 * ROWS)["image"]
    reader = ShardReader(directory)
    header = reader.header
    assert (header.num_records, header.num_rows, header.num_rejected) == (3, 4 * ROWS, 1)
    assert [shard.num_records for shard in header.shards] == [2, 1]  # two entries a shard
    assert header.encoder == encoder.identity()
    assert not header.unit_norm
    assert verify(directory) == []
    rows = np.concatenate([reader.features(b) for b in range(len(reader.blocks))])
    chosen = [Image.open(input.parent / f"{i}.png") for i in (0, 1, 2, 4)]
    pixels = torch.stack([encoder.image_inputs(picture) for picture in chosen])
    expected = encoder.visual(pixels).flatten(0, 1).numpy()
    np.testing.assert_allclose(rows, expected, rtol=0, atol=1e-5)


def test_texts_are_refused_before_the_pictures_are_done(tower, input, tmp_path):
    encoder = load_encoder(tower[0], pooling="patches")
    with pytest.raises(ValueError, match=r"no text rows.*modality=image"):
        embed(encoder, input, tmp_path / "out", modality="both")
    assert not (tmp_path / "out").exists()


def test_a_batch_of_patches_fills_several_blocks(tower, input, tmp_path, monkeypatch):
    monkeypatch.setattr("revision.encoders.open_shard.GRID_ROWS", ROWS)
    encoder = load_encoder(tower[0], pooling="patches")
    directory = embed(encoder, input, tmp_path / "out", batch_size=8)["image"]
    reader = ShardReader(directory)
    assert [block.rows for block in reader.blocks] == [ROWS, 2 * ROWS, ROWS]
    assert verify(directory) == []


def test_patches_are_not_aligned(tower, input, tmp_path):
    patches = load_encoder(tower[0], pooling="patches")
    images = embed(patches, input, tmp_path / "patches")["image"]
    texts = embed(load_encoder(tower[0]), input, tmp_path / "pooled", modality="text")["text"]
    with pytest.raises(ValueError, match=r"16 rows of patches a picture.*pooling=pooled"):
        read_sets(texts, images)
