"""OpenCLIP checkpoints: features, pixels and tokens against those of open_clip itself."""

import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

pytest.importorskip("ftfy")

from revision.encoders import openclip, openclip_config
from revision.encoders.hub import Files
from revision.encoders.load import load_encoder
from revision.encoders.openclip import cleaner, load_openclip, preprocessing
from revision.encoders.openclip_config import Trunk, to_transformers
from revision.encoders.openclip_weights import read_weights
from tests.encoders.openclip_tokenizer import tokenizer

GOLDEN = Path(__file__).resolve().parents[1] / "data" / "openclip_golden"
MODELS = ["clip", "clip_quickgelu", "clip_custom_text", "siglip"]
TEXTS = ["a red cat", "The Picture of a small blue car", "dog_dog!"]
PICTURES = load_file(GOLDEN / "pixels.safetensors")


@pytest.fixture(autouse=True)
def tiny_trunk(monkeypatch):
    trunk = Trunk(num_heads=2, activation="gelu_pytorch_tanh", patch_size=4)
    monkeypatch.setitem(openclip_config.SIGLIP_TRUNKS, "vit_tiny_siglip_test", trunk)


def checkpoint(name: str, directory: Path) -> Path:
    shutil.copytree(GOLDEN / name, directory, dirs_exist_ok=True)
    (directory / "features.safetensors").unlink()
    tokenizer(12).save_pretrained(directory)
    return directory


def change(directory: Path, **model_cfg) -> Path:
    """Update the config: a dict updates a section."""
    path = directory / "open_clip_config.json"
    config = json.loads(path.read_text())
    for key, value in model_cfg.items():
        old = config["model_cfg"].get(key)
        config["model_cfg"][key] = old | value if isinstance(value, dict) else value
    path.write_text(json.dumps(config))
    return directory


@pytest.mark.parametrize("name", MODELS)
def test_rows_are_those_of_open_clip(name, tmp_path):
    encoder = load_encoder(checkpoint(name, tmp_path))
    golden = load_file(GOLDEN / name / "features.safetensors")
    images = encoder.model.get_image_features(pixel_values=golden["pixels"]).pooler_output
    images = images / images.norm(dim=1, keepdim=True)
    torch.testing.assert_close(images, golden["image_rows"], rtol=0, atol=1e-5)
    texts = encoder.encode_texts({"input_ids": golden["input_ids"]})
    torch.testing.assert_close(texts, golden["text_rows"], rtol=0, atol=1e-5)
    assert encoder.dim == texts.shape[1]


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("mode", ["shortest", "longest", "squash"])
def test_pixels_are_those_of_open_clip(mode, interpolation):
    config = {"resize_mode": mode, "interpolation": interpolation, "fill_color": 7}
    path = preprocessing(config, 16)
    for i, expected in enumerate(PICTURES[f"{mode}-{interpolation}"]):
        image = Image.fromarray(PICTURES[f"picture{i}"].numpy())
        assert torch.equal(path.to_bytes(image), expected), f"picture {i} of size {image.size}"
    if (mode, interpolation) == ("shortest", "bicubic"):
        numbers = path(PICTURES[f"{mode}-{interpolation}"][:2])
        assert torch.equal(numbers, PICTURES["numbers"])


def test_pixels_differ_from_those_of_the_image_processor():
    """Guards the test above: the cut of a processor would start one pixel before."""
    from transformers import CLIPImageProcessorPil

    side = {"height": 16, "width": 16}
    processor = CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size=side)
    image = Image.fromarray(PICTURES["picture2"].numpy()[:, :20])  # 16 x 32 -> 16 x 25
    own = preprocessing({}, 16)
    image = image.resize((16, 19))
    theirs = torch.tensor(processor(images=image)["pixel_values"][0])
    ours = own(own.to_bytes(image)[None])[0]
    assert not torch.equal(ours, theirs)
    assert torch.equal(ours[:, :-1], theirs[:, 1:])


def test_texts_are_cleaned_as_open_clip_does():
    text = "  The â€œbig” _Cat_ &amp;amp; dog’s\n tail "
    assert cleaner("lower")(text) == 'the "big" _cat_ & dog\'s tail'
    assert cleaner("whitespace")(text) == 'The "big" _Cat_ & dog\'s tail'
    assert cleaner("canonicalize")(text) == "the big cat dogs tail"
    with pytest.raises(ValueError, match="none of"):
        cleaner("upper")


@pytest.mark.parametrize("name", MODELS)
def test_padding_is_what_the_tower_needs(name, tmp_path):
    encoder = load_encoder(checkpoint(name, tmp_path))
    inputs = encoder.text_inputs(TEXTS)
    is_siglip = name == "siglip"
    assert inputs["input_ids"].shape[1] == (12 if is_siglip else 9)
    assert ("attention_mask" in inputs) != is_siglip
    alone = torch.cat([encoder.encode_texts(encoder.text_inputs([t])) for t in TEXTS])
    torch.testing.assert_close(encoder.encode_texts(inputs), alone, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", MODELS)
def test_saved_and_loaded_again_is_the_same(name, tmp_path):
    encoder = load_encoder(checkpoint(name, tmp_path / "first"))
    encoder.save(tmp_path / "second")
    again = load_encoder(tmp_path / "second")
    assert again.identity() == encoder.identity()
    inputs = encoder.text_inputs(TEXTS)
    assert torch.equal(again.text_inputs(TEXTS)["input_ids"], inputs["input_ids"])
    rows = [one.encode_texts(inputs) for one in (encoder, again)]
    torch.testing.assert_close(*rows, rtol=0, atol=1e-6)  # where weights lie shows in the last bit
    image = Image.fromarray(PICTURES["picture0"].numpy())
    pixels = encoder.image_inputs(image)[None]
    assert torch.equal(again.image_inputs(image)[None], pixels)
    rows = [one.encode_images(pixels) for one in (encoder, again)]
    torch.testing.assert_close(*rows, rtol=0, atol=1e-6)


def test_patches_are_those_of_the_vision_tower(tmp_path):
    encoder = load_encoder(checkpoint("clip", tmp_path), pooling="patches")
    assert (encoder.rows_per_image, encoder.dim) == (16, 16)
    pixels = PICTURES["squash-bicubic"][:2]
    model = encoder.whole.model.vision_model
    values = encoder.whole.pixel_values(pixels)
    states = model(pixel_values=values, output_hidden_states=True).hidden_states[-2]
    torch.testing.assert_close(encoder.visual(pixels), states[:, 1:], rtol=0, atol=1e-5)


def test_patches_may_be_asked_for_by_its_own_loader(tmp_path):
    directory = checkpoint("siglip", tmp_path)
    encoder = load_openclip(directory, pooling="patches", layer=-1)
    assert encoder.identity() == load_encoder(directory, pooling="patches", layer=-1).identity()


def test_quick_gelu_may_be_said_beside_the_config(tmp_path):
    told = checkpoint("clip_quickgelu", tmp_path / "told")
    silent = checkpoint("clip_quickgelu", tmp_path / "silent")
    change(silent, quick_gelu=False)
    pixels = PICTURES["squash-bicubic"]
    rows = {
        name: encoder.encode_images(pixels)
        for name, encoder in {
            "told": load_openclip(told),
            "silent": load_openclip(silent),
            "forced": load_openclip(silent, quick_gelu=True),
        }.items()
    }
    assert torch.equal(rows["told"], rows["forced"])
    assert not torch.allclose(rows["told"], rows["silent"], atol=1e-3)
    forced, plain = (load_openclip(silent, quick_gelu=q).identity() for q in (True, None))
    assert forced["revision"] != plain["revision"]


def test_every_key_is_accounted_for(tmp_path):
    directory = checkpoint("clip", tmp_path)
    path = directory / "open_clip_model.safetensors"
    state = load_file(path)
    for change_, message in [
        ({"visual.ln_5.weight": torch.ones(1)}, r"unknown in the file: visual\.ln_5\.weight"),
        (
            {"visual.ln_pre.weight": None},
            r"missing of the model: vision_model\.pre_layrnorm\.weight",
        ),
        (
            {"ln_final.bias": torch.ones(3)},
            r"text_model\.final_layer_norm\.bias \(3,\), not \(16,\)",
        ),
        (
            {"transformer.resblocks.0.attn.in_proj_bias": None},
            r"layers\.0\.self_attn\.k_proj\.bias, .*q_proj\.bias, .*v_proj\.bias",
        ),
        ({"transformer.resblocks.0.ls_1.gamma": torch.ones(16)}, r"resblocks\.0\.ls_1\.gamma"),
    ]:
        changed = {k: v for k, v in (state | change_).items() if v is not None}
        save_file(changed, path)
        with pytest.raises(ValueError, match=message):
            load_encoder(directory)


@pytest.mark.parametrize(
    ("section", "option", "value", "message"),
    [
        ("vision_cfg", "attentional_pool", True, "attentional_pool=True is not supported"),
        ("vision_cfg", "pool_type", "avg", "only 'tok' can be read"),
        ("vision_cfg", "layers", [3, 4, 6, 3], "is a ResNet"),
        ("vision_cfg", "timm_model_name", "convnext_base", "no SigLIP trunk"),
        ("vision_cfg", "image_size", [16, 32], "is no square"),
        ("vision_cfg", "eva", 1, r"vision_cfg\.eva=1 is not supported"),
        ("text_cfg", "hf_model_name", "roberta-base", "hf_model_name='roberta-base'"),
        ("text_cfg", "embed_cls", True, "embed_cls=True"),
        ("text_cfg", "act_kwargs", {"slope": 1}, "act_kwargs"),
        ("text_cfg", "tokenizer_kwargs", {"strip_sep_token": True}, "change the tokens"),
    ],
)
def test_options_of_other_models_are_refused_by_name(section, option, value, message, tmp_path):
    directory = change(checkpoint("clip", tmp_path), **{section: {option: value}})
    with pytest.raises(ValueError, match=message):
        load_encoder(directory)


def test_coca_and_causal_siglips_are_refused(tmp_path):
    coca = change(checkpoint("clip", tmp_path / "coca"), multimodal_cfg=1)
    with pytest.raises(ValueError, match="multimodal_cfg=1 is not supported"):
        load_encoder(coca)
    config = json.loads((GOLDEN / "siglip" / "open_clip_config.json").read_text())["model_cfg"]
    del config["text_cfg"]["no_causal_mask"]
    state = read_weights(GOLDEN / "siglip")
    with pytest.raises(ValueError, match=r"no_causal_mask=None .* only True can be read"):
        to_transformers(config, state, eos_token_id=1)


def test_missing_files_name_the_remedy(tmp_path, monkeypatch):
    directory = checkpoint("clip", tmp_path)
    (directory / "open_clip_model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"neither open_clip_model\.safetensors nor"):
        load_encoder(directory)
    for path in directory.glob("*token*"):
        path.unlink()
    with pytest.raises(ValueError, match="put the files of openai/clip-vit-large-patch14 there"):
        load_encoder(directory)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match="neither a local directory nor a model"):
        load_openclip("nobody/no-such-encoder")


def test_a_tokenizer_from_elsewhere_stands_in_the_identity(tmp_path, monkeypatch):
    own = load_openclip(checkpoint("clip", tmp_path / "model"))
    for path in (tmp_path / "model").glob("*token*"):
        path.unlink()
    tokenizer(12).save_pretrained(tmp_path / "c0ffee")
    hub = {"a/b": tmp_path / "model", "openai/clip-vit-large-patch14": tmp_path / "c0ffee"}
    monkeypatch.setattr(
        openclip, "files_of", lambda name, *_, **__: Files(hub[name], name, is_hub=True)
    )
    encoder = load_openclip("a/b")
    assert encoder.identity()["revision"] == "model tokenizer=openai/clip-vit-large-patch14@c0ffee"
    inputs = own.text_inputs(TEXTS)
    assert torch.equal(encoder.text_inputs(TEXTS)["input_ids"], inputs["input_ids"])


def test_a_tokenizer_with_another_end_is_refused(tmp_path):
    directory = change(checkpoint("clip", tmp_path), text_cfg={"vocab_size": 99})
    with pytest.raises(ValueError, match=r"ends a text with token 23.* the highest, 98"):
        load_encoder(directory)


def test_a_pickle_that_runs_code_is_not_run(tmp_path):
    directory = checkpoint("clip_quickgelu", tmp_path)

    class Evil:
        def __reduce__(self):
            return print, ("ran",)

    torch.save({"visual.proj": Evil()}, directory / "open_clip_pytorch_model.bin")
    with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
        load_encoder(directory)
