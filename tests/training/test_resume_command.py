"""The command line on mixtures and packed batches: resume, other sizes of steps, refusals."""

import json

import pytest
from safetensors.torch import load_file

import train
from revision.config import compose
from revision.training.visual_job import VisualJob
from tests.test_train import overrides, parts
from tests.training.toy import Killed, StopAfter

__all__ = ["parts"]  # a fixture


def mixed(parts, runs, *more):
    """Caption features and pictures on the fly, in packed batches."""
    pictures = f"{{input: {parts / 'conversations.json'}, image_root: {parts}, weight: 1.5}}"
    return overrides(
        parts,
        runs,
        "name=one",
        "encoder=clip_b32",
        f"encoder.path={parts / 'clip'}",
        "encoder.revision=null",
        f"data.mixture=[{{shards: {parts / 'texts'}, weight: 0.5}}, {pictures}]",
        f"data.val_shards={parts / 'val'}",
        "data.tokens=cached",
        "data.pack_tokens=80",
        "checkpoint_steps=1",
        "stage.template=vicuna_v1",
        "stage.epochs=2",
        *more,
    )


def run(parts, runs, *more):
    return train.run(compose("train", mixed(parts, runs, *more)))


def stopped(parts, runs, monkeypatch, *more):
    with monkeypatch.context() as patch:
        patch.setattr(VisualJob, "callbacks", property(lambda self: [StopAfter(2)]))
        with pytest.raises(Killed):
            run(parts, runs, *more)


def test_a_packed_mixture_resumes_to_the_same_weights(parts, tmp_path, monkeypatch, capsys):
    whole = run(parts, tmp_path / "whole")
    told = capsys.readouterr().out
    assert "packed 24 samples into" in told
    assert "batches of at most 80 tokens, fill" in told
    stopped(parts, tmp_path / "killed", monkeypatch)
    killed = run(parts, tmp_path / "killed", "data.num_workers=1")
    one, two = (load_file(r / "model" / "projector.safetensors") for r in (whole, killed))
    assert all((one[name] == two[name]).all() for name in one)
    inputs = json.loads((whole / "inputs.json").read_text())
    assert {"data.mixture[0].shards", "data.mixture[1].input"} < set(inputs)


def test_the_steps_may_change_while_a_run_has_a_checkpoint(parts, tmp_path, monkeypatch, capsys):
    stopped(parts, tmp_path, monkeypatch)
    capsys.readouterr()
    run(parts, tmp_path, "stage.accumulate=1")
    told = capsys.readouterr().out
    assert "From packed batch 4 of epoch 0 on in steps of 1 (before: 2)" in told
    with pytest.raises(ValueError, match=r"belongs to another config: stage.accumulate was 2"):
        run(parts, tmp_path, "stage.accumulate=1")


def test_a_source_of_the_mixture_that_changes_is_refused(parts, tmp_path, monkeypatch):
    stopped(parts, tmp_path, monkeypatch)
    path = parts / "conversations.json"
    before = path.read_bytes()
    try:
        path.write_bytes(before.replace(b"What is", b"What was"))
        with pytest.raises(ValueError, match=r"data.mixture\[1\].input changed since"):
            run(parts, tmp_path)
    finally:
        path.write_bytes(before)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.tokens=online", "use data.tokens=cached"),
        ("data.pack_tokens=3", r"has \d+ positions, .* pack_tokens=3; raise that"),
        ("data.num_samples=3", "does not say of which source of the mixture"),
        ("data.mixture=[]", "data.mixture is empty"),
        (
            "data.mixture=[{input: PARTS/conversations.json, wieght: 2}]",
            r"data.mixture\[0\] has no \['wieght'\]",
        ),
        ("data.mixture=[{weight: 2}]", r"exactly one of data.mixture\[0\].shards"),
        (
            "data.shards=PARTS/texts",
            "data.mixture names the training data, but so does data.shards",
        ),
        ("data.alignment=PARTS/llm", "maps the rows of raw text shards, but data.mixture"),
    ],
)
def test_what_does_not_fit_together_is_refused(parts, tmp_path, override, message):
    given = [override.replace("PARTS", str(parts))]
    if "alignment" in override:
        given.append(f"data.mixture=[{{input: {parts / 'conversations.json'}}}]")
    with pytest.raises(ValueError, match=message):
        run(parts, tmp_path, *given)


def test_a_run_has_one_end(parts, tmp_path):
    with pytest.raises(ValueError, match="max_steps=3 and max_tokens=9 both say where"):
        run(parts, tmp_path, "stage.max_steps=3", "stage.max_tokens=9")


def test_a_budget_of_tokens_needs_their_number(parts, tmp_path):
    options = ["stage.max_tokens=300", "data.pack_tokens=null", "data.tokens=online"]
    with pytest.raises(ValueError, match=r"use data.tokens=cached"):
        run(parts, tmp_path, *options)


def test_packed_batches_are_refused_where_samples_would_be_padded(parts, tmp_path, monkeypatch):
    monkeypatch.setattr("revision.models.llava.PACKED_MODEL_TYPES", ())
    with pytest.raises(ValueError, match=r"pack_tokens=80 bounds samples .*layout 'padded'"):
        run(parts, tmp_path)
