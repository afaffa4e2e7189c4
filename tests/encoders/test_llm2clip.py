"""The LLM2CLIP encoder: rows by formula, the directory it is saved to, and embed.py with it."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import LlamaForCausalLM

from revision.encoders.bidirectional import make_bidirectional
from revision.encoders.embedding import embed_records
from revision.encoders.llm2clip import load_llm2clip
from revision.encoders.load import load_encoder
from revision.shards import ShardReader
from tests.tiny_llm2clip import (
    DIM,
    SIZE,
    golden,
    save_parts,
    tiny_adapter,
    tiny_llama,
    tiny_llm2clip,
    tiny_vision,
)

ROOT = Path(__file__).resolve().parents[2]
CAPTIONS = ["a red cat", "the picture of a small dog on a blue car", "x"]


def picture(colour="red"):
    return Image.new("RGB", (30, 20), colour)


def pixels_of(encoder):
    return torch.stack([encoder.image_inputs(picture(c)) for c in ("red", "blue")])


def test_text_rows_are_the_adapted_states_of_llm2vec_at_unit_norm(tmp_path):
    encoder = tiny_llm2clip(tmp_path)
    expected = tiny_adapter()(torch.from_numpy(golden()["llama3_user/pooled"]))
    expected = expected / expected.norm(dim=1, keepdim=True)
    rows = encoder.encode_texts(encoder.text_inputs(golden()["captions"]))
    torch.testing.assert_close(rows, expected.detach(), rtol=0, atol=1e-5)
    assert encoder.dim == encoder.feature_dim("text") == DIM


def test_templates_give_different_rows(tmp_path):
    rows = [
        encoder.encode_texts(encoder.text_inputs(CAPTIONS))
        for encoder in (tiny_llm2clip(tmp_path / t, template=t) for t in ("llama3_user", "none"))
    ]
    assert (rows[0] - rows[1]).norm(dim=1).min() > 0.01


def test_image_rows_are_the_projected_class_token_at_unit_norm(tmp_path):
    encoder = tiny_llm2clip(tmp_path)
    pixels = torch.stack(
        [
            encoder.image_processor(images=picture(c), return_tensors="pt")["pixel_values"][0]
            for c in ("red", "blue")
        ]
    )
    expected = tiny_vision()(pixel_values=pixels).image_embeds
    expected = expected / expected.norm(dim=1, keepdim=True)
    rows = encoder.encode_images(pixels_of(encoder))
    torch.testing.assert_close(rows, expected.detach(), rtol=0, atol=1e-6)


def test_bfloat16_rows_have_unit_norm_in_float32(tmp_path):
    encoder = tiny_llm2clip(tmp_path, dtype="bfloat16")
    for rows in (
        encoder.encode_texts(encoder.text_inputs(CAPTIONS)),
        encoder.encode_images(pixels_of(encoder)),
    ):
        assert rows.dtype == torch.float32
        torch.testing.assert_close(rows.norm(dim=1), torch.ones(len(rows)), rtol=0, atol=1e-6)
    assert encoder.identity()["dtype"] == "bfloat16"


@pytest.mark.parametrize("options", [{}, {"template": "none", "max_length": 20}])
def test_saved_and_loaded_again_is_the_same(tmp_path, options):
    encoder = tiny_llm2clip(tmp_path / "parts", **options)
    encoder.save(tmp_path / "saved")
    shutil.move(tmp_path / "saved", tmp_path / "moved")
    again = load_encoder(tmp_path / "moved")
    assert again.identity() == encoder.identity()
    inputs = again.text_inputs(CAPTIONS)
    assert torch.equal(again.encode_texts(inputs), encoder.encode_texts(inputs))
    pixels = pixels_of(encoder)
    assert torch.equal(again.encode_images(pixels), encoder.encode_images(pixels))


def test_a_changed_copy_is_another_encoder(tmp_path):
    encoder = tiny_llm2clip(tmp_path / "parts")
    encoder.save(tmp_path / "saved")
    config = tmp_path / "saved" / "config.json"
    config.write_text(config.read_text().replace("512", "511"))
    changed = load_encoder(tmp_path / "saved").identity()
    assert changed["max_length"] == 511
    assert changed["revision"] != encoder.identity()["revision"]


def test_identity_follows_every_part_and_setting(tmp_path):
    parts = save_parts(tmp_path)
    identities = [load_llm2clip(**parts).identity()]
    identities.append(load_llm2clip(**parts, template="none").identity())
    identities.append(load_llm2clip(**parts, max_length=40).identity())
    processor = json.loads((parts["image_processor"] / "preprocessor_config.json").read_text())
    processor["image_mean"] = [0.5, 0.5, 0.5]
    (parts["image_processor"] / "preprocessor_config.json").write_text(json.dumps(processor))
    identities.append(load_llm2clip(**parts).identity())
    llm = tiny_llama()
    llm.norm.weight.data += 1
    llm.save_pretrained(parts["text_path"])
    identities.append(load_llm2clip(**parts).identity())
    assert len({str(identity) for identity in identities}) == 5
    assert all(identity["model_type"] == "llm2clip" for identity in identities)


def test_for_pictures_alone_the_text_llm_is_not_needed(tmp_path):
    parts = save_parts(tmp_path)
    whole, light = load_llm2clip(**parts), load_llm2clip(**parts, with_text=False)
    assert light.identity() == whole.identity()
    assert torch.equal(light.encode_images(pixels_of(light)), whole.encode_images(pixels_of(whole)))
    with pytest.raises(ValueError, match=r"loaded for pictures alone.*with_text=true"):
        light.encode_texts(whole.text_inputs(CAPTIONS))
    with pytest.raises(ValueError, match=r"loaded for pictures alone.*modality=image"):
        light.text_inputs(CAPTIONS)
    light.save(tmp_path / "saved")
    assert load_encoder(tmp_path / "saved").identity() == whole.identity()


@torch.no_grad()
def test_patches_are_the_hidden_states_of_the_vision_tower(tmp_path):
    encoder = tiny_llm2clip(tmp_path / "parts", pooling="patches", layer=-1)
    pixels = pixels_of(encoder)
    assert encoder.whole.llm is None  # 16 GB that pictures do not need
    values = encoder.whole.pixels(pixels)
    expected = tiny_vision()(pixel_values=values, output_hidden_states=True).hidden_states[-1]
    torch.testing.assert_close(encoder.visual(pixels), expected[:, 1:], rtol=0, atol=1e-5)
    pooled = load_llm2clip(**save_parts(tmp_path / "parts"))
    facts = {"pooling": "patches", "layer": -1, "rows_per_image": expected.shape[1] - 1}
    assert encoder.identity() == pooled.identity() | facts
    encoder.save(tmp_path / "saved")
    assert load_encoder(tmp_path / "saved").identity() == encoder.identity()


def test_fast_decoding_is_done_and_said(tmp_path):
    exact, fast = (tiny_llm2clip(tmp_path, decode=decode) for decode in ("exact", "fast"))
    assert (fast.decode, fast.pixels.decode) == ("fast", "fast")
    assert fast.identity() == exact.identity() | {"decode": "fast"}
    fast.save(tmp_path / "saved")
    assert load_encoder(tmp_path / "saved").identity() == fast.identity()


def test_cut_captions_are_counted(tmp_path):
    encoder = tiny_llm2clip(tmp_path, max_length=12)
    assert encoder.tokenize(["x", "y" * 40, "z" * 50]).num_truncated == 2


def test_a_causal_model_file_serves_as_text_llm(tmp_path):
    """With the head that it does not need, and names that start with `model.`."""
    parts = save_parts(tmp_path)
    encoder = load_llm2clip(**parts)
    whole = LlamaForCausalLM(tiny_llama().config)
    whole.model.load_state_dict(tiny_llama().state_dict())
    shutil.copytree(parts["text_path"], tmp_path / "causal")
    whole.save_pretrained(tmp_path / "causal")
    causal = load_llm2clip(**parts | {"text_path": tmp_path / "causal"})
    inputs = encoder.text_inputs(CAPTIONS)
    assert torch.equal(causal.encode_texts(inputs), encoder.encode_texts(inputs))


def test_a_text_llm_with_missing_weights_is_refused(tmp_path):
    parts = save_parts(tmp_path)
    llm = tiny_llama()
    state = {k: v for k, v in llm.state_dict().items() if k != "layers.1.mlp.up_proj.weight"}
    llm.save_pretrained(parts["text_path"], state_dict=state)
    with pytest.raises(ValueError, match=r"text LLM .*missing \(layers\.1\.mlp\.up_proj\.weight"):
        load_llm2clip(**parts)


def test_a_model_that_stays_causal_is_refused_at_load(tmp_path, monkeypatch):
    monkeypatch.setattr("revision.encoders.llm2clip.make_bidirectional", lambda llm: llm)
    with pytest.raises(ValueError, match="the text LLM attends causally"):
        tiny_llm2clip(tmp_path)


def test_a_kernel_that_needs_its_device_is_tested_with_the_first_text(tmp_path, monkeypatch):
    parts = save_parts(tmp_path)
    monkeypatch.setattr("revision.encoders.llm2clip._ON_ANY_DEVICE", ())
    monkeypatch.setattr("revision.encoders.llm2clip.make_bidirectional", lambda llm: llm)
    encoder = load_llm2clip(**parts)
    with pytest.raises(ValueError, match="the text LLM attends causally"):
        encoder.encode_texts(encoder.text_inputs(CAPTIONS))
    make_bidirectional(encoder.llm)
    assert encoder.encode_texts(encoder.text_inputs(CAPTIONS)).shape == (3, DIM)


def test_parts_that_do_not_belong_together_are_refused(tmp_path):
    parts = save_parts(tmp_path / "narrow", adapter=tiny_adapter(dim=20))
    with pytest.raises(
        ValueError, match=r"states of the text LLM have width 24, the adapter .* 20"
    ):
        load_llm2clip(**parts)
    parts = save_parts(tmp_path / "small")
    path = parts["image_processor"] / "preprocessor_config.json"
    path.write_text(path.read_text().replace(f": {SIZE}", ": 8"))
    with pytest.raises(
        ValueError, match=rf"pictures of \(8, 8\) pixels, the vision tower sees {SIZE}"
    ):
        load_llm2clip(**parts)
    config = parts["text_path"] / "config.json"
    config.write_text(config.read_text().replace('"llama"', '"qwen2"'))
    with pytest.raises(ValueError, match="model of type 'qwen2', not llama"):
        load_llm2clip(**save_parts(tmp_path / "other") | {"text_path": parts["text_path"]})


@pytest.mark.parametrize("option", ["path", "text_path", "image_processor"])
def test_a_part_that_is_not_there_is_named_with_the_remedy(tmp_path, monkeypatch, option):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    parts = save_parts(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=rf"LLM2CLIP: {option}=.*encoder\.{option}"):
        load_llm2clip(**parts | {option: tmp_path / "empty"})


def test_the_joint_model_alone_is_not_taken_for_a_clip(tmp_path):
    parts = save_parts(tmp_path)
    with pytest.raises(ValueError, match=r"CLIP's would be drawn at random.*encoder=llm2clip"):
        load_encoder(parts["path"])


def test_a_clip_without_a_text_tower_is_refused_on_every_way(tmp_path):
    """As the joint model is that comes from the hub: to transformers it is a CLIP."""
    path = save_parts(tmp_path)["path"] / "config.json"
    small = {"hidden_size": 8, "num_hidden_layers": 1, "vocab_size": 50}
    config = json.loads(path.read_text())
    del config["architectures"]
    path.write_text(json.dumps(config | {"text_config": small}))
    with pytest.raises(ValueError, match=r"tensors of the model are not in its files.*text_model"):
        load_encoder(path.parent)


def test_embedding_and_resuming_give_the_same_shards(tmp_path):
    encoder = tiny_llm2clip(tmp_path / "parts")
    records = {
        "images": [{"id": str(i), "image": f"{i}.png"} for i in range(4)],
        "texts": [{"id": str(i), "text": f"a cat {'and a dog ' * i}"} for i in range(7)],
    }
    for i in range(4):
        picture(("red", "blue", "green", "white")[i]).save(tmp_path / f"{i}.png")
    (tmp_path / "0.png").write_bytes(b"no picture")
    (tmp_path / "data.json").write_text(json.dumps(records))

    def run(out):
        options = {"batch_size": 2, "rows_per_shard": 3, "num_workers": 0, "devices": 1}
        embed_records(
            encoder,
            input=tmp_path / "data.json",
            image_root=tmp_path,
            output_dir=out,
            accelerator="cpu",
            **options,
        )
        return {p.relative_to(out): p.read_bytes() for p in out.rglob("*.tar")}

    shards = run(tmp_path / "out")
    texts, images = (ShardReader(tmp_path / "out" / side) for side in ("texts", "images"))
    assert (texts.num_rows, images.num_rows, images.header.num_rejected) == (7, 3, 1)
    assert texts.header.encoder == images.header.encoder == encoder.identity()
    for side in ("texts", "images"):  # as if the run had been killed before the last shard
        shutil.copytree(tmp_path / "out" / side, tmp_path / "again" / side)
        (tmp_path / "again" / side / "header.json").unlink()
        max((tmp_path / "again" / side).glob("*.tar")).unlink()
    assert run(tmp_path / "again") == shards
