"""Pairs of towers: each side against plain formulas, real weights, and the directory of both."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModel,
    BertConfig,
    BertModel,
    ConvNextConfig,
    ConvNextModel,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    SiglipModel,
    ViTConfig,
    ViTImageProcessorPil,
    ViTModel,
)

import embed
from revision.config import compose
from revision.encoders.composed import ComposedDualEncoder, Head, load_towers
from revision.encoders.load import load_encoder
from revision.encoders.pairing import load_pair
from revision.encoders.vision_towers import load_vision_tower
from revision.shards import ShardReader
from tests.tiny_encoders import _TEXT, save_siglip, tokenizer

pytest.importorskip("sentence_transformers")

ASSETS = Path(__file__).resolve().parents[2] / "assets"
MINILM = ASSETS / "minilm_l6"
TEXTS = ["a red cat", "the picture of a small blue car on the dog", "dog"]
SIZE = 16
_VISION = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": SIZE,
    "patch_size": 4,
}
MEAN = {"pooling_mode_mean_tokens": True}


def pictures() -> list[Image.Image]:
    random = np.random.default_rng(0)
    sizes = [(20, 33), (16, 16), (40, 24)]
    return [Image.fromarray(random.integers(0, 256, (*s, 3), dtype=np.uint8)) for s in sizes]


def randomised(model):
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        scales_a_norm = "norm" in name.lower() and name.endswith("weight")
        torch.nn.init.normal_(parameter, mean=float(scales_a_norm), std=0.3)
    return model.eval()


def save_vision(directory: Path, kind: str = "vit", **options) -> Path:
    if kind == "siglip":
        return save_siglip(directory)
    if kind == "registers":
        config = Dinov2WithRegistersConfig(**_VISION, num_register_tokens=3)
        model = Dinov2WithRegistersModel(config)
    else:
        model = ViTModel(ViTConfig(**_VISION), **options)
    randomised(model).save_pretrained(directory)
    ViTImageProcessorPil(size={"height": SIZE, "width": SIZE}).save_pretrained(directory)
    return directory


def save_text(directory: Path, pooling: dict | None = None, dense: bool = False) -> Path:
    """A BERT of width 16 in the layout of sentence-transformers, written by hand."""
    randomised(BertModel(BertConfig(**_TEXT, max_position_embeddings=12))).save_pretrained(
        directory
    )
    tokenizer(12).save_pretrained(directory)
    modules = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")]
    write_pooling(directory, 16, pooling or MEAN)
    if dense:
        modules.insert(2, ("2_Dense", "Dense"))
        modules[-1] = ("3_Normalize", "Normalize")
        from sentence_transformers.sentence_transformer.modules import Dense

        layer = Dense(16, 6, activation_function=torch.nn.Tanh())
        (directory / "2_Dense").mkdir()
        randomised(layer).save(str(directory / "2_Dense"))
    content = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in enumerate(modules)
    ]
    (directory / "modules.json").write_text(json.dumps(content))
    (directory / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 12}))
    return directory


def write_pooling(directory: Path, width: int, modes: dict) -> None:
    kinds = ("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens")
    config = {"word_embedding_dimension": width} | {f"pooling_mode_{k}": False for k in kinds}
    (directory / "1_Pooling").mkdir()
    (directory / "1_Pooling" / "config.json").write_text(json.dumps(config | modes))


def tiny_pair(directory: Path, **options):
    vision, text = save_vision(directory / "v"), save_text(directory / "t")
    return load_pair(vision=vision, text=text, **options)


@torch.no_grad()
@pytest.mark.parametrize("mode", ["cls_token", "mean_tokens", "max_tokens"])
@pytest.mark.parametrize("dense", [False, True])
def test_text_rows_are_pooled_as_the_layout_says(mode, dense, tmp_path):
    directory = save_text(tmp_path / "t", {f"pooling_mode_{mode}": True}, dense)
    pair = load_pair(vision=save_vision(tmp_path / "v"), text=directory)
    rows = pair.encode_texts(pair.text_inputs(TEXTS))
    bert = AutoModel.from_pretrained(directory)
    pool = {
        "cls_token": lambda states: states[0],
        "mean_tokens": lambda states: states.mean(0),
        "max_tokens": lambda states: states.max(0).values,
    }[mode]
    layer = pair.text.model[2].linear if dense else None
    for text, row in zip(TEXTS, rows, strict=True):
        tokens = tokenizer(12)([text], return_tensors="pt", truncation=True)
        expected = pool(bert(**tokens).last_hidden_state[0])
        if layer is not None:
            expected = torch.tanh(layer.weight @ expected + layer.bias)
        torch.testing.assert_close(row, expected / expected.norm(), rtol=0, atol=1e-5)
    assert pair.feature_dim("text") == (6 if dense else 16)


def test_the_default_prompt_stands_before_each_text(tmp_path):
    directory = save_text(tmp_path / "t")
    config = {"prompts": {"query": "the picture of "}, "default_prompt_name": "query"}
    (directory / "config_sentence_transformers.json").write_text(json.dumps(config))
    pair = load_pair(vision=save_vision(tmp_path / "v"), text=directory)
    expected = pair.text.model.encode(TEXTS, convert_to_tensor=True)
    rows = pair.encode_texts(pair.text_inputs(TEXTS))
    torch.testing.assert_close(rows, expected, rtol=0, atol=1e-5)
    ids = pair.text_inputs(["dog"])["input_ids"]
    assert torch.equal(ids, tokenizer(12)(["the picture of dog"], return_tensors="pt")["input_ids"])


@torch.no_grad()
@pytest.mark.parametrize(
    ("kind", "pooling"),
    [("vit", "class"), ("vit", "mean"), ("registers", "mean"), ("registers", "class")],
)
def test_image_rows_are_the_states_of_class_token_or_patches(kind, pooling, tmp_path):
    directory = save_vision(tmp_path, kind)
    tower = load_vision_tower(directory, pooling=pooling)
    pixels = torch.stack([tower.image_inputs(picture) for picture in pictures()])
    processed = ViTImageProcessorPil.from_pretrained(directory)(pictures(), return_tensors="pt")
    states = AutoModel.from_pretrained(directory)(**processed).last_hidden_state
    prefix = 4 if kind == "registers" else 1
    expected = states[:, 0] if pooling == "class" else states[:, prefix:].mean(1)
    assert states.shape[1] == prefix + 16
    torch.testing.assert_close(tower(pixels), expected, rtol=0, atol=1e-5)


@torch.no_grad()
def test_the_vision_half_of_a_dual_encoder_is_a_tower(tmp_path):
    directory = save_vision(tmp_path / "v", "siglip")
    whole = SiglipModel.from_pretrained(directory)
    pair = load_pair(vision=directory, text=save_text(tmp_path / "t"), vision_pooling="pooler")
    pixels = torch.stack([pair.image_inputs(picture) for picture in pictures()])
    expected = whole.get_image_features(pixel_values=pair.vision.pixels(pixels)).pooler_output
    expected = expected / expected.norm(dim=1, keepdim=True)
    torch.testing.assert_close(pair.encode_images(pixels), expected, rtol=0, atol=1e-5)
    pair.save(tmp_path / "saved")
    again = load_encoder(tmp_path / "saved")
    torch.testing.assert_close(again.encode_images(pixels), expected, rtol=0, atol=1e-5)
    assert again.identity() == pair.identity()
    with pytest.raises(ValueError, match="has no rows for vision_pooling=class"):
        load_vision_tower(directory, pooling="class")


def test_rows_are_unit_and_do_not_depend_on_the_batch(tmp_path):
    pair = tiny_pair(tmp_path)
    together = pair.encode_texts(pair.text_inputs(TEXTS))
    alone = torch.cat([pair.encode_texts(pair.text_inputs([text])) for text in TEXTS])
    torch.testing.assert_close(alone, together, rtol=0, atol=2e-6)
    torch.testing.assert_close(together.norm(dim=1), torch.ones(3), rtol=0, atol=1e-6)
    assert (together @ together.T).fill_diagonal_(0).max() < 0.999
    assert pair.tokenize(["a cat " * 100, "a"]).num_truncated == 1
    assert not any(parameter.requires_grad for parameter in pair.parameters())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_saved_and_loaded_again_is_the_same(dtype, tmp_path):
    pair = tiny_pair(tmp_path, dtype=dtype, vision_pooling="mean")
    pair.save(tmp_path / "saved")
    again = load_encoder(tmp_path / "saved")
    assert again.identity() == pair.identity()
    assert again.identity()["dtype"] == dtype
    inputs, pixels = pair.text_inputs(TEXTS), pair.image_inputs(pictures()[0])[None]
    rows = [one.encode_texts(inputs) for one in (pair, again)]
    torch.testing.assert_close(*rows, rtol=0, atol=1e-6)
    rows = [one.encode_images(pixels) for one in (pair, again)]
    torch.testing.assert_close(*rows, rtol=0, atol=1e-6)
    assert rows[0].dtype == torch.float32


def test_with_heads_it_is_a_dual_encoder(tmp_path):
    pair = tiny_pair(tmp_path)
    torch.manual_seed(0)
    encoder = ComposedDualEncoder(pair, Head(16, 8), Head(16, 8), card={"note": 1})
    encoder.save(tmp_path / "saved")
    again = load_encoder(tmp_path / "saved")
    assert isinstance(again, ComposedDualEncoder)
    assert again.identity() == encoder.identity() != pair.identity()
    pixels = encoder.image_inputs(pictures()[0])[None]
    rows = [one.encode_images(pixels) for one in (encoder, again)]
    torch.testing.assert_close(*rows, rtol=0, atol=1e-6)
    assert again.dim == again.feature_dim("text") == 8
    assert again.card == {"note": 1}


def test_identity_follows_weights_pooling_and_prompt(tmp_path):
    first = tiny_pair(tmp_path / "1")
    seen = [first.identity()["revision"]]
    seen.append(tiny_pair(tmp_path / "2", vision_pooling="mean").identity()["revision"])
    assert tiny_pair(tmp_path / "3").identity()["revision"] == seen[0]  # wherever it lies
    first.text.model[0].auto_model.embeddings.LayerNorm.bias.data += 1
    seen.append(first.identity()["revision"])
    text = save_text(tmp_path / "4", {"pooling_mode_cls_token": True})
    other = load_pair(vision=tmp_path / "1" / "v", text=text)
    seen.append(other.identity()["revision"])
    assert len(set(seen)) == 4


def edited(path: Path, **fields) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


@pytest.mark.parametrize(
    ("file", "fields"),
    [
        ("v/preprocessor_config.json", {"image_mean": [0.1, 0.2, 0.3]}),
        ("v/config.json", {"hidden_act": "relu"}),
        ("t/config.json", {"num_attention_heads": 4}),
        ("t/tokenizer.json", {"normalizer": None}),
        ("t/sentence_bert_config.json", {"max_seq_length": 8}),
    ],
)
def test_identity_follows_what_no_tensor_shows(file, fields, tmp_path):
    pair = tiny_pair(tmp_path)
    edited(tmp_path / file, **fields)
    changed = load_pair(vision=tmp_path / "v", text=tmp_path / "t")
    assert changed.identity()["revision"] != pair.identity()["revision"]


def test_identity_stays_the_same_when_texts_were_tokenised(tmp_path):
    pair = tiny_pair(tmp_path)
    before = pair.identity()
    pair.tokenize(["a cat " * 100, "a"])
    assert pair.identity() == before


def test_a_model_that_renders_its_texts_is_refused(tmp_path, monkeypatch):
    directory = save_text(tmp_path / "t")
    from sentence_transformers import SentenceTransformer

    preprocess = SentenceTransformer.preprocess
    monkeypatch.setattr(
        SentenceTransformer,
        "preprocess",
        lambda self, texts, **options: preprocess(self, [f"a {t}" for t in texts], **options),
    )
    with pytest.raises(ValueError, match="renders its texts is not supported"):
        load_pair(vision=save_vision(tmp_path / "v"), text=directory)


def test_a_feature_map_has_a_mean_and_no_class_token(tmp_path):
    """Also where its config names a patch size, as that of ConvNeXt does."""
    config = ConvNextConfig(patch_size=4, num_stages=2, hidden_sizes=[8, 16], depths=[1, 1])
    randomised(ConvNextModel(config)).save_pretrained(tmp_path)
    ViTImageProcessorPil(size={"height": SIZE, "width": SIZE}).save_pretrained(tmp_path)
    tower = load_vision_tower(tmp_path, pooling="mean")
    pixels = torch.stack([tower.image_inputs(picture) for picture in pictures()])
    with torch.no_grad():
        states = tower.model(pixel_values=tower.pixels(pixels)).last_hidden_state
        torch.testing.assert_close(tower(pixels), states.mean((2, 3)), rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="has no rows for vision_pooling=class"):
        load_vision_tower(tmp_path, pooling="class")


def test_a_pooler_without_weights_is_refused(tmp_path):
    directory = save_vision(tmp_path, add_pooling_layer=False)
    assert load_vision_tower(directory, pooling="class").dim == 16
    assert load_vision_tower(directory, pooling="class").model.pooler is None
    with pytest.raises(ValueError, match=r"no weights for pooler\.dense\.bias, .*would be random"):
        load_vision_tower(directory, pooling="pooler")


def drop(directory: Path, start: str) -> None:
    path = directory / "model.safetensors"
    kept = {k: v for k, v in load_file(path).items() if not k.startswith(start)}
    save_file(kept, path, metadata={"format": "pt"})


def test_poolers_that_nobody_reads_need_no_weights_and_change_no_identity(tmp_path):
    tiny_pair(tmp_path)
    for side in "vt":
        drop(tmp_path / side, "pooler.")
    first, second = (load_pair(vision=tmp_path / "v", text=tmp_path / "t") for _ in range(2))
    assert first.identity() == second.identity()
    first.save(tmp_path / "saved")
    assert load_encoder(tmp_path / "saved").identity() == first.identity()


def test_text_weights_that_are_missing_are_named(tmp_path):
    tiny_pair(tmp_path)
    drop(tmp_path / "t", "encoder.layer.1.output.dense.")
    with pytest.raises(ValueError, match=r"no weights for encoder\.layer\.1\.output.*\(2 in all\)"):
        load_pair(vision=tmp_path / "v", text=tmp_path / "t")


def test_what_is_no_tower_is_refused(tmp_path):
    vision = save_vision(tmp_path / "v")
    text = save_text(tmp_path / "t")
    with pytest.raises(ValueError, match=r"v has no modules\.json"):
        load_pair(vision=vision, text=vision)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="neither a model_type"):
        load_pair(vision=tmp_path / "empty", text=text)
    modules = json.loads((text / "modules.json").read_text())
    modules[0]["type"] = "custom_code.Thing"
    (text / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(ValueError, match="code that comes with the model"):
        load_pair(vision=vision, text=text)
    modules[0]["type"] = "sentence_transformers.models.WordEmbeddings"
    (text / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(ValueError, match="only a Transformer is read here"):
        load_pair(vision=vision, text=text)
    modules[0]["type"] = "sentence_transformers.models.Transformer"
    (text / "modules.json").write_text(json.dumps(modules))
    (text / "1_Pooling" / "config.json").unlink()
    with pytest.raises(ValueError, match="nobody knows how"):
        load_pair(vision=vision, text=text)


@pytest.mark.slow
@pytest.mark.skipif(not (MINILM / "1_Pooling").is_dir(), reason="assets/ not fetched")
def test_real_minilm_gives_the_rows_of_the_composed_encoder(tmp_path):
    pair = load_pair(vision=save_vision(tmp_path / "v"), text=MINILM)
    towers = load_towers(vision_dir=ASSETS / "efficientnet_lite0", text_dir=MINILM, image_size=64)
    texts = ["a cat on a mat", "A kitten lying on a rug, by the fire.", "the stock market fell"]
    expected = towers.encode_texts(towers.text_inputs(texts))
    rows = pair.encode_texts(pair.text_inputs(texts))
    torch.testing.assert_close(rows, expected, rtol=0, atol=1e-6)
    own = pair.text.model.encode(texts, convert_to_tensor=True)
    torch.testing.assert_close(rows, own, rtol=0, atol=1e-6)


@pytest.mark.slow
@pytest.mark.skipif(not (MINILM / "1_Pooling").is_dir(), reason="assets/ not fetched")
def test_embed_takes_a_pair_with_the_text_tower_of_the_assets(tmp_path):
    vision = save_vision(tmp_path / "v")
    chosen = ["encoder=pair", f"encoder.vision={vision}", f"encoder.text={MINILM}"]
    cards = ASSETS.parent / "data" / "openclipart" / "val-000.tar"
    options = ["data.num_samples=5", "num_workers=0", "accelerator=cpu", "devices=1"]
    where = [f"input={cards}", f"output_dir={tmp_path / 'out'}"]
    out = embed.run(compose("embed", [*chosen, *options, *where]))
    images, texts = (ShardReader(out / side).header for side in ("images", "texts"))
    assert (images.num_rows, images.dim, texts.num_rows, texts.dim) == (5, 16, 5, 384)
    pair = load_pair(vision=vision, text=MINILM)
    assert images.encoder == texts.encoder == pair.identity()
