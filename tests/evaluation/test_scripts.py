"""The command lines: what they write and print, that they resume, and what they refuse."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

import revision
from revision.config import compose
from revision.evaluation.results import read_results
from revision.models.directory import save_model
from scripts import evaluate, generate
from tests.evaluation.conftest import tiny_llava
from tests.tiny_encoders import tiny_composed

ROOT = Path(__file__).resolve().parents[2]


def command(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The script as a user runs it."""
    return subprocess.run(
        [sys.executable, str(ROOT / "scripts" / f"{name}.py"), *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
    )


@pytest.fixture
def seeing_model_dir(tmp_path):
    encoder = tiny_composed()
    return save_model(tiny_llava(encoder), tmp_path / "seeing", provenance={})


def test_evaluate_writes_rows_and_reads_them_back_without_the_model(
    model_dir, features, tmp_path, capsys, monkeypatch
):
    overrides = [
        f"model={model_dir}",
        f"input={features}",
        f"output_dir={tmp_path}/out",
        "setting=realign",
        "after_stage=pretrain",
        "seed=2",
        "max_new_tokens=2",
        "limit=5",
    ]
    evaluate.run(compose("evaluate", overrides))
    rows = read_results(tmp_path / "out" / "results.json")
    assert {row.setting for row in rows} == {
        "realign",
        "realign (blind)",
        "realign (shuffled)",
        "chance",
    }
    assert {(row.stage, row.seed, row.split) for row in rows} == {("pretrain", 2, "test")}
    assert "| pretrain | realign (blind)" in capsys.readouterr().out

    def load(_):
        raise AssertionError("a finished evaluation loads no model")

    monkeypatch.setattr(revision, "load", load, raising=False)
    evaluate.run(compose("evaluate", overrides))
    assert read_results(tmp_path / "out" / "results.json") == rows


def test_another_template_is_another_evaluation(model_dir, features, tmp_path):
    overrides = [f"model={model_dir}", f"input={features}", f"output_dir={tmp_path}/out"]
    short = ["visual=[real]", "max_new_tokens=1", "limit=2"]
    evaluate.run(compose("evaluate", [*overrides, *short, "template=plain"]))
    with pytest.raises(ValueError, match=r"another evaluation \(template: 'plain' -> None\)"):
        evaluate.run(compose("evaluate", [*overrides, *short]))


def test_generate_answers_about_one_picture_two_or_none(seeing_model_dir, tmp_path, capsys):
    for name in "ab":
        Image.new("RGB", (20, 20), "red").save(tmp_path / f"{name}.png")
    images = ["[]", f"{tmp_path}/a.png", f"[{tmp_path}/a.png,{tmp_path}/b.png]"]
    for image in images:
        overrides = [f"model={seeing_model_dir}", f"image={image}", "prompt='What is it?'"]
        answer = generate.run(compose("generate", [*overrides, "max_new_tokens=3"]))
        assert capsys.readouterr().out == answer + "\n"


@pytest.mark.slow
def test_one_clear_line_where_there_is_no_model_or_no_image(tmp_path):
    Image.new("RGB", (20, 20), "red").save(tmp_path / "a.png")
    for arguments, message in [
        (
            ("generate", f"model={tmp_path}", f"image={tmp_path}/a.png", "prompt=x"),
            "is not a model directory: it has no config.json",
        ),
        (
            ("generate", f"model={tmp_path}", f"image={tmp_path}/b.png", "prompt=x"),
            "b.png: missing image",
        ),
        (
            ("evaluate", f"model={tmp_path}", f"input={tmp_path}", f"output_dir={tmp_path}/out"),
            "is not a model directory: it has no config.json",
        ),
    ]:
        done = command(*arguments)
        assert done.returncode == 1
        assert done.stdout == ""
        assert message in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1
