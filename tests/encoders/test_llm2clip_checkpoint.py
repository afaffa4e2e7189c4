"""The published joint checkpoint of LLM2CLIP: its layout, its adapter, and what is refused."""

import json
import re

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn.functional import gelu, layer_norm
from transformers import CLIPConfig, CLIPModel

from revision.encoders.llm2clip_checkpoint import TextAdapter, adapter_from, read_joint, write_joint
from tests.tiny_llm2clip import DIM, SIZE, tiny_adapter, tiny_vision

PUBLISHED_BLOCK = ("ln.weight", "ln.bias", "fn.0.weight", "fn.0.bias", "fn.3.weight", "fn.3.bias")


@pytest.fixture
def directory(tmp_path):
    write_joint(tiny_vision(), tiny_adapter(), tmp_path)
    return tmp_path


def rewrite(directory, change):
    """Let `change` edit the tensors of the checkpoint."""
    state = load_file(directory / "model.safetensors")
    change(state)
    save_file(state, directory / "model.safetensors")


def read(directory):
    return read_joint(str(directory), revision="main", dtype=torch.float32)


def test_the_published_adapter_has_its_number_of_parameters_and_its_names():
    with torch.device("meta"):
        adapter = TextAdapter(4096, 8192, 1280)
    assert sum(parameter.numel() for parameter in adapter.parameters()) == 273_769_728
    expected = {f"adaptor.{block}.{name}" for block in range(4) for name in PUBLISHED_BLOCK}
    expected |= {f"adaptor.{i}.{kind}" for i in (4, 5) for kind in ("weight", "bias")}
    assert set(adapter.state_dict()) == expected


def test_adapter_is_its_formula_whatever_the_norm_of_its_input():
    adapter, rows = tiny_adapter().double(), torch.randn(5, 24).double()
    w = adapter.state_dict()
    x = rows / rows.norm(dim=1, keepdim=True)
    for k in range(2):
        name = f"adaptor.{k}"
        y = layer_norm(x, (24,), w[f"{name}.ln.weight"], w[f"{name}.ln.bias"])
        y = gelu(y @ w[f"{name}.fn.0.weight"].T + w[f"{name}.fn.0.bias"])
        x = x + y @ w[f"{name}.fn.3.weight"].T + w[f"{name}.fn.3.bias"]
    x = layer_norm(x, (24,), w["adaptor.2.weight"], w["adaptor.2.bias"])
    expected = x @ w["adaptor.3.weight"].T + w["adaptor.3.bias"]
    torch.testing.assert_close(adapter(rows), expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(adapter(rows * 50), adapter(rows), rtol=0, atol=1e-5)


def test_vision_features_are_those_of_a_whole_clip(directory):
    joint, pixels = read(directory), torch.randn(3, 3, SIZE, SIZE)
    whole = CLIPModel(CLIPConfig(vision_config=joint.vision.config.to_dict(), projection_dim=DIM))
    whole.load_state_dict(joint.vision.state_dict(), strict=False)
    expected = whole.eval().get_image_features(pixel_values=pixels).pooler_output
    torch.testing.assert_close(joint.vision(pixel_values=pixels).image_embeds, expected)


def test_written_and_read_again_is_the_same(directory):
    joint = read(directory)
    for ours, original in ((joint.vision, tiny_vision()), (joint.adapter, tiny_adapter())):
        found, expected = ours.state_dict(), original.state_dict()
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert joint.commit is None


def test_of_the_hub_the_commit_is_known(directory, tmp_path, monkeypatch):
    snapshot = tmp_path / "snapshots" / "0123abc"
    snapshot.mkdir(parents=True)
    for name in ("config.json", "model.safetensors"):
        (directory / name).rename(snapshot / name)
    asked = []

    def from_cache(path, name, revision):
        asked.append((path, revision))
        return str(snapshot / name)

    monkeypatch.setattr("revision.encoders.llm2clip_checkpoint.cached_file", from_cache)
    joint = read_joint("owner/name", revision="v1", dtype=torch.float32)
    assert joint.commit == "0123abc"
    assert set(asked) == {("owner/name", "v1")}


def test_tensors_without_use_are_left_out_by_name(directory):
    rewrite(
        directory,
        lambda state: state.update(
            {"logit_scale": torch.ones(()), "vision_model.embeddings.position_ids": torch.arange(5)}
        ),
    )
    assert read(directory).adapter.output_dim == DIM


@pytest.mark.parametrize(
    "name",
    [
        "text_adapter.adaptor.1.ln.bias",
        "visual_projection.weight",
        "vision_model.pre_layrnorm.bias",
    ],
)
def test_a_missing_tensor_is_named(directory, name):
    rewrite(directory, lambda state: state.pop(name))
    with pytest.raises(ValueError, match=f"1 tensors are missing .{re.escape(name)}. and 0 are"):
        read(directory)


@pytest.mark.parametrize(
    "name",
    ["text_model.final_layer_norm.weight", "text_adapter.scale", "vision_model.extra.weight"],
)
def test_an_unknown_tensor_is_named(directory, name):
    rewrite(directory, lambda state: state.update({name: torch.ones(2)}))
    with pytest.raises(ValueError, match=f"0 tensors are missing .none. and 1 are unknown .{name}"):
        read(directory)


def test_an_adapter_of_other_names_is_refused_with_what_is_there(directory):
    def rename(state):
        for name in [name for name in state if ".fn." in name]:
            state[name.replace(".fn.", ".mlp.")] = state.pop(name)

    rewrite(directory, rename)
    with pytest.raises(ValueError, match=r"no text adapter of known names.*adaptor.0.ln.bias"):
        read(directory)


def test_shapes_that_do_not_fit_are_refused(directory):
    state = tiny_adapter().state_dict() | {"adaptor.1.fn.3.weight": torch.ones(24, 2)}
    with pytest.raises(ValueError, match=r"adaptor.1.fn.3.weight has shape \(24, 2\).*\(24, 48\)"):
        adapter_from(state, "file")
    config = json.loads((directory / "config.json").read_text())
    config["vision_config"]["image_size"] = 2 * SIZE
    (directory / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"does not fit its config\.json"):
        read(directory)


def test_sides_of_different_width_are_refused(tmp_path):
    write_joint(tiny_vision(), tiny_adapter(output_dim=DIM + 1), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["projection_dim"] = DIM
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=f"ends in {DIM + 1} dimensions, the pictures in {DIM}"):
        read(tmp_path)


def test_another_kind_of_model_is_refused(directory):
    (directory / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(ValueError, match="has no vision_config: not the joint LLM2CLIP model"):
        read(directory)
