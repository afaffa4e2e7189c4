"""The composed encoder: formulas against plain sums, and the directory it is saved to."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from revision.encoders.composed import Head, fit_on_white, load_towers
from revision.encoders.load import load_encoder
from tests.tiny_encoders import tiny_composed, tiny_towers

ASSETS = Path(__file__).resolve().parents[2] / "assets"
TEXTS = ["a red cat", "the picture of a small blue car on the dog"]


def picture(width: int = 30, height: int = 20, colour: str = "red") -> Image.Image:
    return Image.new("RGB", (width, height), colour)


@torch.no_grad()
def test_text_feature_is_the_mean_over_real_tokens():
    towers = tiny_towers()
    inputs = towers.text_inputs(TEXTS)
    rows = towers.encode_texts(inputs)
    for text, row in zip(TEXTS, rows, strict=True):
        alone = towers.text(**towers.text_inputs([text])).last_hidden_state[0].mean(0)
        torch.testing.assert_close(row, alone / alone.norm(), rtol=0, atol=1e-6)


@torch.no_grad()
def test_image_feature_is_the_mean_over_positions():
    towers = tiny_towers()
    pixels = torch.stack([towers.image_inputs(picture()), towers.image_inputs(picture(9, 9))])
    values = [(p[None].float() - 127) / 128 for p in pixels]
    maps = torch.stack([towers.vision.extract_features(v)[0] for v in values])
    expected = maps.mean((2, 3))
    expected /= expected.norm(dim=1, keepdim=True)
    torch.testing.assert_close(towers.encode_images(pixels), expected, rtol=0, atol=1e-6)


def test_the_whole_picture_lies_on_white():
    canvas = fit_on_white(picture(30, 10, "black"), 30)
    assert canvas.getpixel((15, 15)) == (0, 0, 0)
    assert canvas.getpixel((15, 5)) == (255, 255, 255)
    assert canvas.getpixel((0, 15)) == canvas.getpixel((29, 15)) == (0, 0, 0)  # nothing cut away
    pixels = tiny_towers(32).image_inputs(picture(32, 32, "white"))
    assert pixels.shape == (3, 32, 32)
    assert pixels.dtype == torch.uint8
    assert pixels.unique().tolist() == [255]


def test_extreme_shapes_keep_at_least_one_pixel():
    assert fit_on_white(picture(1000, 1), 16).size == (16, 16)


def test_head_is_linear_on_rows_of_norm_sqrt_dim():
    torch.manual_seed(0)
    head, rows = Head(16, 8), torch.randn(5, 16) * 7
    expected = rows / rows.norm(dim=1, keepdim=True) * 4 @ head.weight.T
    expected /= expected.norm(dim=1, keepdim=True)
    torch.testing.assert_close(head(rows), expected, rtol=0, atol=1e-6)


def test_saved_and_loaded_again_is_the_same(tmp_path):
    encoder = tiny_composed()
    encoder.save(tmp_path)
    again = load_encoder(tmp_path)
    pixels = encoder.image_inputs(picture())[None]
    assert torch.equal(again.encode_images(pixels), encoder.encode_images(pixels))
    inputs = encoder.text_inputs(TEXTS)
    assert torch.equal(again.encode_texts(inputs), encoder.encode_texts(inputs))
    assert again.identity() == encoder.identity()
    assert again.dim == again.feature_dim("image") == again.feature_dim("text") == 8


def test_tower_pair_is_saved_and_has_two_widths(tmp_path):
    towers = tiny_towers()
    towers.save(tmp_path)
    again = load_encoder(tmp_path)
    assert again.identity() == towers.identity()
    assert (again.feature_dim("image"), again.feature_dim("text")) == (1280, 16)


def test_identity_follows_heads_towers_and_image_size():
    names = [str(tiny_composed().identity()), str(tiny_composed(64).identity())]
    other = tiny_composed()
    other.image_head.weight[0, 0] += 1
    names.append(str(other.identity()))
    other = tiny_composed()
    other.towers.text.encoder.layer[0].output.dense.bias[0] += 1
    names.append(str(other.identity()))
    assert len(set(names)) == 4


def test_missing_towers_name_the_remedy(tmp_path):
    with pytest.raises(ValueError, match=r"fetch_assets\.py"):
        load_towers(vision_dir=tmp_path, text_dir=tmp_path)


@pytest.mark.skipif(not (ASSETS / "minilm_l6").is_dir(), reason="assets/ not fetched")
def test_real_towers_tell_meanings_apart():
    towers = load_towers(
        vision_dir=ASSETS / "efficientnet_lite0", text_dir=ASSETS / "minilm_l6", image_size=64
    )
    texts = ["a cat on a mat", "a kitten lying on a rug", "the stock market fell sharply"]
    rows = towers.encode_texts(towers.text_inputs(texts))
    assert rows[0] @ rows[1] > 0.5 > 0.2 > rows[0] @ rows[2]
    pixels = torch.stack([towers.image_inputs(picture(c)) for c in (8, 16)])
    assert towers.encode_images(pixels).shape == (2, 1280)
