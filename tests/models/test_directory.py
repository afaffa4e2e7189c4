"""Model directories: bit-equal round trips, linked weights, a clear word where there is none."""

import json

import pytest
import torch
from PIL import Image
from safetensors import SafetensorError

import revision
from revision.models.directory import load_model, save_model
from revision.models.llm import load_llm
from revision.models.projector import Projector
from tests.tiny_encoders import tiny_composed
from tests.tiny_models import save_tiny_llm, tiny_llava


@pytest.fixture
def model(tmp_path):
    llm, tokenizer = load_llm(save_tiny_llm(tmp_path / "llm"))
    return tiny_llava(llm=llm, tokenizer=tokenizer, tokens="repeat", num_tokens=3)


def test_round_trip_is_bit_equal(model, tmp_path):
    save_model(model, tmp_path / "model", provenance={"commit": "abc"})
    again = revision.load(tmp_path / "model")
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
    assert again.projector.options() == model.projector.options()
    assert (again.template, again.layout) == (model.template, model.layout)
    assert not again.training
    feature = torch.ones(6)
    assert again.answer([feature], "What is it?", 8) == model.answer([feature], "What is it?", 8)
    assert json.loads((tmp_path / "model/provenance.json").read_text()) == {"commit": "abc"}


def test_unchanged_weights_are_hard_links_through_generations(model, tmp_path):
    first = save_model(model, tmp_path / "first", provenance={})
    second = save_model(load_model(first), tmp_path / "second", provenance={})
    weights = [d / "model.safetensors" for d in (tmp_path / "llm", first / "llm", second / "llm")]
    assert weights[0].samefile(weights[1])
    assert weights[0].samefile(weights[2])


def test_a_changed_language_model_is_written_and_its_source_left_alone(model, tmp_path):
    source = tmp_path / "llm/model.safetensors"
    before = source.read_bytes()
    with torch.no_grad():
        model.language_model.model.layers[1].mlp.up_proj.weight[0, 0] += 1
    saved = save_model(model, tmp_path / "model", provenance={})
    assert not source.samefile(saved / "llm/model.safetensors")
    assert source.read_bytes() == before
    again = load_model(saved)
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name


def test_lower_precision_is_no_change(model, tmp_path):
    model.language_model.bfloat16()
    saved = save_model(model, tmp_path / "model", provenance={})
    assert (tmp_path / "llm/model.safetensors").samefile(saved / "llm/model.safetensors")


def test_full_weights_may_come_from_outside(model, tmp_path):
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state["projector.layers.0.bias"] += 1
    state["language_model.model.norm.weight"] += 1
    again = load_model(save_model(model, tmp_path / "model", provenance={}, state_dict=state))
    for name, tensor in state.items():
        assert torch.equal(again.state_dict()[name], tensor), name


def test_the_encoder_travels_and_is_linked(model, tmp_path):
    encoder = tiny_composed()
    model.projector, model.encoder = Projector(encoder.dim, 16), encoder
    first = save_model(model, tmp_path / "first", provenance={})
    loaded = load_model(first)
    second = save_model(loaded, tmp_path / "second", provenance={})
    path = "encoder/heads.safetensors"
    assert (first / path).samefile(second / path)
    picture = Image.new("RGB", (9, 5), "red")
    answer = model.answer([picture], "What is it?", 8)
    assert load_model(second).answer([picture], "What is it?", 8) == answer


def test_the_alignment_is_copied_and_saving_again_replaces(model, tmp_path):
    (tmp_path / "alignment").mkdir()
    (tmp_path / "alignment/alignment.json").write_text("{}")
    directory = tmp_path / "model"
    save_model(model, directory, provenance={}, alignment_dir=tmp_path / "alignment")
    assert (directory / "alignment/alignment.json").read_text() == "{}"
    save_model(model, directory, provenance={"second": True})
    assert not (directory / "alignment").exists()
    assert {path.name for path in tmp_path.iterdir()} == {"llm", "alignment", "model"}


def test_a_failed_save_leaves_the_old_directory(model, tmp_path):
    directory = save_model(model, tmp_path / "model", provenance={})
    with pytest.raises(TypeError):
        save_model(model, directory, provenance={"x": object()})
    assert load_model(directory)
    assert {path.name for path in tmp_path.iterdir()} == {"llm", "model"}


def test_what_is_not_a_model_directory_is_refused_in_one_sentence(model, tmp_path):
    with pytest.raises(ValueError, match=r"nowhere is not a model directory: it does not exist"):
        load_model(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"not a model directory: it has no config.json"):
        load_model(tmp_path)
    with pytest.raises(ValueError, match="its model_type is 'llama', expected 'revision_llava'"):
        load_model(tmp_path / "llm")
    saved = save_model(model, tmp_path / "model", provenance={})
    (saved / "projector.safetensors").unlink()
    with pytest.raises(ValueError, match=r"incomplete: projector.safetensors is missing"):
        load_model(saved)
    config = json.loads((saved / "config.json").read_text())
    (saved / "config.json").write_text(json.dumps(config | {"schema_version": 2}))
    with pytest.raises(ValueError, match="schema version 2, this code reads 1"):
        load_model(saved)


def test_what_is_not_a_language_model_is_refused(tmp_path):
    with pytest.raises(ValueError, match="is not a causal language model with a tokenizer"):
        load_llm(tmp_path)
    with pytest.raises(ValueError, match="'no/such' is no local directory, and the hub did not"):
        load_llm("no/such")


def test_importing_the_package_does_not_import_transformers():
    import subprocess
    import sys

    code = "import sys, revision; assert 'transformers' not in sys.modules; assert revision.load"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_full_disk_is_one_sentence_and_leaves_the_old_directory(model, tmp_path, monkeypatch):
    directory = save_model(model, tmp_path / "model", provenance={"first": True})

    def full(*_):
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("revision.models.directory.save_file", full)
    with pytest.raises(ValueError, match=r"model: cannot be written \(No space left on device\)"):
        save_model(model, directory, provenance={})
    assert json.loads((directory / "provenance.json").read_text()) == {"first": True}
    assert load_model(directory)
    assert {path.name for path in tmp_path.iterdir()} == {"llm", "model"}
