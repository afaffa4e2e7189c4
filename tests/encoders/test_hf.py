"""Encoders from Hugging Face directories: oracles from `transformers` itself."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

from revision.encoders.base import unit_rows
from revision.encoders.load import load_encoder
from revision.models.directory import load_model, save_model
from tests.evaluation.conftest import tiny_llava
from tests.tiny_encoders import SAVED, save_clip

TEXTS = ["a red cat", "the picture of a small blue car on the dog", "dog"]


def pictures(count: int = 3) -> list[Image.Image]:
    random = np.random.default_rng(0)
    sizes = [(20, 33), (16, 16), (40, 24), (9, 50)]
    return [
        Image.fromarray(random.integers(0, 256, (*sizes[i % 4], 3), dtype=np.uint8))
        for i in range(count)
    ]


@pytest.fixture(scope="module", params=list(SAVED))
def directory(request, tmp_path_factory):
    return SAVED[request.param](tmp_path_factory.mktemp(request.param.replace("-", "_")))


@pytest.fixture(scope="module")
def encoder(directory):
    return load_encoder(directory)


@torch.no_grad()
def test_image_rows_are_the_models_own_normalised(directory, encoder):
    model = AutoModel.from_pretrained(directory).eval()
    inputs = AutoImageProcessor.from_pretrained(directory, backend="pil")(
        images=pictures(), return_tensors="pt"
    )
    expected = unit_rows(model.get_image_features(**inputs).pooler_output)
    pixels = torch.stack([encoder.image_inputs(p) for p in pictures()])
    rows = encoder.encode_images(pixels)
    torch.testing.assert_close(rows, expected, rtol=0, atol=1e-6)
    assert rows.shape == (3, encoder.dim)


@torch.no_grad()
def test_text_rows_are_the_models_own_normalised(directory, encoder):
    model = AutoModel.from_pretrained(directory).eval()
    tokenizer = AutoTokenizer.from_pretrained(directory)
    if encoder.model.config.model_type.startswith("siglip"):
        tokens = tokenizer(TEXTS, padding="max_length", max_length=10, truncation=True)
        inputs = {"input_ids": torch.tensor(tokens["input_ids"])}
    else:
        inputs = tokenizer(TEXTS, padding=True, return_tensors="pt")
    expected = unit_rows(model.get_text_features(**inputs).pooler_output)
    rows = encoder.encode_texts(encoder.text_inputs(TEXTS))
    torch.testing.assert_close(rows, expected, rtol=0, atol=1e-6)
    assert rows.shape == (3, encoder.dim)


def test_rows_are_unit_float32(encoder):
    rows = encoder.encode_texts(encoder.text_inputs(TEXTS))
    assert rows.dtype == torch.float32
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(3), rtol=0, atol=1e-6)


def test_a_row_does_not_depend_on_its_batch(encoder):
    together = encoder.encode_texts(encoder.text_inputs(TEXTS))
    alone = torch.cat([encoder.encode_texts(encoder.text_inputs([text])) for text in TEXTS])
    torch.testing.assert_close(alone, together, rtol=0, atol=2e-6)
    pixels = torch.stack([encoder.image_inputs(p) for p in pictures()])
    together = encoder.encode_images(pixels)
    alone = torch.cat([encoder.encode_images(pixels[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(alone, together, rtol=0, atol=2e-6)


def test_rows_differ_between_inputs(encoder):
    """Guards the other tests: equal rows would satisfy them all."""
    rows = encoder.encode_texts(encoder.text_inputs(TEXTS))
    pixels = torch.stack([encoder.image_inputs(p) for p in pictures()])
    for cosines in (rows @ rows.T, encoder.encode_images(pixels) @ encoder.encode_images(pixels).T):
        assert cosines.fill_diagonal_(0).max() < 0.9999


def test_long_texts_are_cut_to_the_models_length(encoder):
    inputs = encoder.text_inputs(["a cat " * 100])
    assert inputs["input_ids"].shape[1] == encoder.max_length
    assert encoder.encode_texts(inputs).isfinite().all()


def test_saved_and_loaded_again_is_the_same(encoder, tmp_path):
    encoder.save(tmp_path)
    again = load_encoder(tmp_path)
    inputs = encoder.text_inputs(TEXTS)
    assert torch.equal(again.encode_texts(inputs), encoder.encode_texts(inputs))
    pixels = encoder.image_inputs(pictures()[0])
    assert torch.equal(again.image_inputs(pictures()[0]), pixels)


def test_a_saved_encoder_keeps_its_identity(directory, encoder, tmp_path):
    """As an encoder from the hub, whose id is no directory."""
    encoder = load_encoder(directory, dtype="bfloat16")
    encoder.name, encoder.revision = "openai/clip", "3d74acf"
    encoder.save(tmp_path / "first")
    again = load_encoder(tmp_path / "first")
    assert again.identity() == encoder.identity()
    again.save(tmp_path / "second")
    assert load_encoder(tmp_path / "second").identity() == encoder.identity()
    assert load_encoder(tmp_path / "first", dtype="float32").identity()["dtype"] == "float32"


def test_a_changed_copy_loses_the_identity(encoder, tmp_path):
    encoder.save(tmp_path)
    path = tmp_path / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"image_mean": [0, 0, 0]}))
    changed = load_encoder(tmp_path).identity()
    assert changed["revision"] != encoder.identity()["revision"]
    assert changed["name"] == tmp_path.name


@pytest.mark.parametrize("from_directory", [False, True], ids=["saved", "linked"])
def test_an_encoder_keeps_its_identity_in_a_model_directory(tmp_path, from_directory):
    encoder = load_encoder(save_clip(tmp_path / "clip"))
    model = tiny_llava(encoder, dim=encoder.dim)
    model.encoder_dir = tmp_path / "clip" if from_directory else None
    first = save_model(model, tmp_path / "first", provenance={})
    loaded = load_model(first)
    assert loaded.encoder.identity() == encoder.identity()
    second = save_model(loaded, tmp_path / "second", provenance={})
    assert load_model(second).encoder.identity() == encoder.identity()
    assert not (tmp_path / "clip/identity.json").exists()


def test_nothing_trains_and_train_mode_does_not_reach_it(encoder):
    torch.nn.ModuleList([encoder]).train()
    assert not any(module.training for module in encoder.modules())
    assert not any(parameter.requires_grad for parameter in encoder.parameters())


def test_identity_changes_with_the_weights_and_the_dtype(tmp_path):
    save_clip(tmp_path)
    first = load_encoder(tmp_path).identity()
    assert load_encoder(tmp_path, dtype="bfloat16").identity() != first
    config = json.loads((tmp_path / "preprocessor_config.json").read_text())
    config["image_mean"] = [0, 0, 0]
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(config))
    assert load_encoder(tmp_path).identity()["revision"] != first["revision"]


def test_bfloat16_towers_still_give_unit_float32_rows(tmp_path):
    encoder = load_encoder(save_clip(tmp_path), dtype="bfloat16")
    rows = encoder.encode_images(torch.stack([encoder.image_inputs(p) for p in pictures()]))
    assert rows.dtype == torch.float32
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(3), rtol=0, atol=1e-6)


def test_refuses_what_is_no_dual_encoder(tmp_path, monkeypatch):
    from transformers import BertConfig, BertModel

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ValueError, match=r"no config\.json: not an encoder directory"):
        load_encoder(tmp_path)
    BertModel(
        BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    ).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="BertModel without get_image_features"):
        load_encoder(tmp_path)
    with pytest.raises(ValueError, match="choose one of float32"):
        load_encoder(tmp_path, dtype="float8")


@pytest.mark.parametrize("revision", [None, "main", "v1.0", "0123abc"])
def test_code_from_the_hub_runs_at_a_commit_only(revision, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ValueError, match="other code whenever that changes"):
        load_encoder("nobody/no-such-encoder", revision=revision, trust_remote_code=True)
    with pytest.raises(ValueError, match="nor a model that the hub gave"):
        load_encoder("nobody/no-such-encoder", revision="a" * 40, trust_remote_code=True)


def test_an_unreachable_hub_id_is_one_clear_sentence(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match="neither a local directory"):
        load_encoder("nobody/no-such-encoder")


@pytest.mark.parametrize("path", ["runs/demo", "a/b/encoder", "/nowhere/at/all", "./encoder"])
def test_an_absent_directory_is_not_looked_for_on_the_hub(path, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=f"no directory '{path}'; run `make demo` first.*encoder="):
        load_encoder(path)
