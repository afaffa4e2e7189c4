"""Towers of timm beside timm itself, and its EfficientNet-Lite0 beside ours with real weights."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from revision.encoders.composed import load_towers
from revision.encoders.vision_towers import _import_timm, load_vision_tower, timm_pixels

try:
    timm = _import_timm()
except ValueError as error:
    pytest.skip(str(error), allow_module_level=True)

ASSETS = Path(__file__).resolve().parents[2] / "assets"


def pictures() -> list[Image.Image]:
    random = np.random.default_rng(0)
    sizes = [(60, 91), (64, 64), (120, 74), (9, 50), (77, 190)]
    return [Image.fromarray(random.integers(0, 256, (*s, 3), dtype=np.uint8)) for s in sizes]


def save_timm(directory: Path, name: str = "test_vit", **changed) -> Path:
    """A model with random weights in the layout in which timm's lie on the hub."""
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=10)
    directory.mkdir(parents=True, exist_ok=True)
    save_file(model.state_dict(), directory / "model.safetensors")
    kept = ("input_size", "interpolation", "crop_pct", "crop_mode", "mean", "std", "classifier")
    pretrained = {key: model.pretrained_cfg.get(key) for key in kept} | changed
    config = {"architecture": name, "num_classes": 10, "pretrained_cfg": pretrained}
    (directory / "config.json").write_text(json.dumps(config))
    return directory


@torch.no_grad()
@pytest.mark.parametrize("name", ["test_vit", "test_resnet", "test_efficientnet", "test_convnext"])
def test_rows_and_pixels_are_those_of_timm(name, tmp_path):
    tower = load_vision_tower(save_timm(tmp_path, name), pooling=None)
    model = timm.create_model(name, num_classes=0).eval()
    state = load_file(tmp_path / "model.safetensors")
    model.load_state_dict({k: v for k, v in state.items() if k in model.state_dict()})
    transform = timm.data.create_transform(**timm.data.resolve_data_config({}, model=model))
    expected = torch.stack([transform(picture) for picture in pictures()])
    pixels = torch.stack([tower.image_inputs(picture) for picture in pictures()])
    torch.testing.assert_close(tower.pixels(pixels), expected, rtol=0, atol=1e-6)
    tower.eval()
    torch.testing.assert_close(tower(pixels), model(expected), rtol=0, atol=1e-4)
    assert tower(pixels).shape[1] == tower.dim


@pytest.mark.parametrize("mode", ["center", "squash"])
@pytest.mark.parametrize("crop_pct", [1.0, 0.875, 0.9, 0.95])
def test_pixels_are_those_of_timm_for_each_cut(mode, crop_pct):
    config = {"input_size": [3, 32, 32], "crop_pct": crop_pct, "crop_mode": mode}
    options = config | {"interpolation": "bicubic", "mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.1)}
    transform = timm.data.create_transform(**options)
    path = timm_pixels(options)
    for picture in pictures():
        own = path(path.to_bytes(picture)[None])[0]
        torch.testing.assert_close(own, transform(picture), rtol=0, atol=1e-6)


def test_every_key_is_accounted_for(tmp_path):
    directory = save_timm(tmp_path)
    state = load_file(directory / "model.safetensors")
    del state["norm.weight"]
    save_file(state | {"other.weight": torch.ones(1)}, directory / "model.safetensors")
    with pytest.raises(ValueError, match=r"unknown .*: other\.weight; missing: norm\.weight"):
        load_vision_tower(directory, pooling=None)


def test_saved_and_loaded_again_is_the_same(tmp_path):
    tower = load_vision_tower(save_timm(tmp_path / "first"), pooling=None).eval()
    tower.save(tmp_path / "second")
    again = load_vision_tower(tmp_path / "second", pooling=None).eval()
    assert again.settings == tower.settings
    pixels = tower.image_inputs(pictures()[0])[None]
    torch.testing.assert_close(again(pixels), tower(pixels), rtol=0, atol=1e-6)


def test_what_a_tower_cannot_do_is_refused(tmp_path):
    directory = save_timm(tmp_path)
    with pytest.raises(ValueError, match="pools itself"):
        load_vision_tower(directory, pooling="mean")
    with pytest.raises(ValueError, match="crop_mode='border' is not supported"):
        load_vision_tower(save_timm(tmp_path, crop_mode="border"), pooling=None)
    (directory / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="no weights; pickles are not read"):
        load_vision_tower(directory, pooling=None)


@torch.no_grad()
@pytest.mark.skipif(not (ASSETS / "efficientnet_lite0").is_dir(), reason="assets/ not fetched")
def test_real_efficientnet_lite0_gives_the_rows_of_the_composed_encoder(tmp_path):
    """The same weights under timm's names: TensorFlow's padding, as they were trained with."""
    towers = load_towers(
        vision_dir=ASSETS / "efficientnet_lite0", text_dir=ASSETS / "minilm_l6", image_size=64
    )
    own = towers.vision.state_dict()
    wanted = timm.create_model("tf_efficientnet_lite0", num_classes=0).state_dict()
    state = {to: own[name].contiguous() for name, to in zip(own, wanted, strict=True)}
    save_file(state, tmp_path / "model.safetensors")
    pretrained = {
        "input_size": [3, 64, 64],
        "crop_pct": 1.0,
        "mean": [127 / 255] * 3,
        "std": [128 / 255] * 3,
        "interpolation": "bicubic",
    }
    config = {"architecture": "tf_efficientnet_lite0", "pretrained_cfg": pretrained}
    (tmp_path / "config.json").write_text(json.dumps(config))
    tower = load_vision_tower(tmp_path, pooling=None).eval()
    squares = [picture.crop((0, 0, 64, 64)) for picture in pictures()[:3]]
    rows = tower(torch.stack([tower.image_inputs(square) for square in squares]))
    rows = rows / rows.norm(dim=1, keepdim=True)
    expected = towers.encode_images(torch.stack([towers.image_inputs(s) for s in squares]))
    torch.testing.assert_close(rows, expected, rtol=0, atol=1e-5)
    assert (rows[0] @ rows[1]) < 0.999
