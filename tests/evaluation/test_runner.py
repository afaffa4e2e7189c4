"""Evaluation is resumable to the same bytes, blind where it says blind, and refuses mix-ups."""

import json

import pytest
import torch

from revision.data.samples import Sample, collate
from revision.evaluation.heldout import open_heldout
from revision.evaluation.journal import (
    finished_scores,
    keep_whole_batches,
    read_predictions,
    read_scores,
)
from revision.evaluation.questions import answer_sample, make_questions, prompt_sample
from revision.evaluation.runner import Predictor, Settings, evaluate
from tests.evaluation.conftest import tiny_llava

SETTINGS = Settings(batch_size=4, max_new_tokens=3)


def run(model, features, output_dir, settings=SETTINGS, *, plan=None):
    plan = plan or {"model": "a", "limit": None}
    return evaluate(model, open_heldout(features), output_dir, settings, plan=plan)


def contents(directory):
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def test_scores_of_every_condition_and_of_chance(model, features, tmp_path):
    scores = run(model, features, tmp_path / "out")
    assert list(scores) == ["real", "zero", "shuffled", "chance"]
    names = {"token_loss", "perplexity", "choice_accuracy", "rouge_l", "chrf", "bleu_1", "bleu"}
    assert set(scores["zero"]) == names
    assert set(scores["real"]) == names | {"choice_accuracy_over_blind"}
    assert scores["chance"]["choice_accuracy"].value == 0.25
    assert scores["real"]["token_loss"].num_samples == 10
    assert read_scores(tmp_path / "out") == scores


@pytest.mark.parametrize("stops_after", [0, 1, 2, 5, 8])
def test_a_killed_run_resumes_to_the_same_bytes(
    model, features, tmp_path, monkeypatch, stops_after
):
    run(model, features, tmp_path / "whole")
    calls = iter(range(stops_after))
    predict = Predictor.__call__

    def dies(self, portion):
        if next(calls, None) is None:
            raise KeyboardInterrupt
        return predict(self, portion)

    with monkeypatch.context() as patch:
        patch.setattr(Predictor, "__call__", dies)
        with pytest.raises(KeyboardInterrupt):
            run(model, features, tmp_path / "killed")
    path = tmp_path / "killed" / "predictions.jsonl"
    if path.exists():  # what a kill in the middle of the next write leaves
        path.write_bytes(
            path.read_bytes() + (tmp_path / "whole/predictions.jsonl").read_bytes()[:70]
        )
    run(model, features, tmp_path / "killed")
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


@pytest.mark.parametrize(
    ("content", "kept", "left"),
    [
        (b"", 0, b""),
        (b"a\nb", 0, b""),
        (b"a\nb\n", 1, b"a\nb\n"),
        (b"a\nb\nc\nd", 1, b"a\nb\n"),
        (b"a\nb\nc\nd\ne\n", 3, b"a\nb\nc\nd\ne\n"),
    ],
)
def test_only_whole_batches_are_kept(tmp_path, content, kept, left):
    path = tmp_path / "predictions.jsonl"
    path.write_bytes(content)
    assert keep_whole_batches(path, [2, 2, 1]) == kept
    assert path.read_bytes() == left


def test_a_finished_run_is_read_back_without_a_model(model, features, tmp_path):
    assert finished_scores(tmp_path / "out", {"model": "a"}) is None
    scores = run(model, features, tmp_path / "out", plan={"model": "a"})
    assert finished_scores(tmp_path / "out", {"model": "a"}) == scores


@pytest.mark.parametrize("left", ["predictions.jsonl", "metrics.json"])
def test_results_without_a_plan_are_nobodys(model, features, tmp_path, left):
    run(model, features, tmp_path / "out")
    for file in (tmp_path / "out").iterdir():
        if file.name != left:
            file.unlink()
    with pytest.raises(ValueError, match=f"holds {left} but no plan.json"):
        finished_scores(tmp_path / "out", {"model": "a"})
    with pytest.raises(ValueError, match=f"holds {left} but no plan.json"):
        run(model, features, tmp_path / "out")


def test_another_plan_is_refused_by_name(model, features, tmp_path):
    run(model, features, tmp_path / "out")
    with pytest.raises(ValueError, match=r"another evaluation \(model: 'a' -> 'b'\)"):
        run(model, features, tmp_path / "out", plan={"model": "b", "limit": None})
    with pytest.raises(ValueError, match="another evaluation"):
        finished_scores(tmp_path / "out", {"model": "b"})


def test_zero_is_a_zero_feature_and_real_is_the_pictures_own(model, features, tmp_path):
    run(model, features, tmp_path / "out")
    heldout = open_heldout(features)
    questions = make_questions(heldout, "caption", question=SETTINGS.question)
    encode = model.turn_encoder()
    rows = {"real": heldout.rows(7)[None], "zero": torch.zeros(1, 1, 8)}
    for line in read_predictions(tmp_path / "out" / "predictions.jsonl"):
        if line["record_id"] == "7" and line["visual"] in rows:
            seen = rows[line["visual"]]
            sample = answer_sample(questions[7], line["reference"], encode, seen)
            [loss], [count] = model.score(collate([sample]))
            assert line["loss"] == pytest.approx(float(loss), rel=1e-5)
            assert line["num_targets"] == int(count)
            generated = model.generate([prompt_sample(questions[7], encode, seen)], 3)
            assert line["text"] == generated[0]
            rows.pop(line["visual"])
    assert not rows


def test_the_true_caption_is_the_first_choice_with_the_same_loss(model, features, tmp_path):
    run(model, features, tmp_path / "out")
    for line in read_predictions(tmp_path / "out" / "predictions.jsonl"):
        assert line["choices"][0] == line["reference"]
        assert line["choice_losses"][0] == line["loss"]
        assert len(set(line["choices"])) == 4


def test_the_image_matters_only_where_it_is_shown(model, features, tmp_path):
    run(model, features, tmp_path / "out")
    lines = read_predictions(tmp_path / "out" / "predictions.jsonl")
    losses = {
        visual: {x["record_id"]: x["loss"] for x in lines if x["visual"] == visual}
        for visual in ("real", "zero", "shuffled")
    }
    # records 0 and 6 have the same caption: blind, nothing tells them apart
    assert losses["zero"]["0"] == pytest.approx(losses["zero"]["6"], rel=1e-5)
    assert losses["real"]["0"] != pytest.approx(losses["real"]["6"], rel=1e-5)
    assert all(losses["real"][i] != losses["shuffled"][i] for i in losses["real"])


def test_conversations_are_asked_turn_by_turn(model, features, tmp_path):
    settings = Settings(task="conversation", batch_size=4, max_new_tokens=2, limit=3)
    scores = run(model, features, tmp_path / "out", settings)
    lines = read_predictions(tmp_path / "out" / "predictions.jsonl")
    real = [line for line in lines if line["visual"] == "real"]
    assert [line["question_id"] for line in real] == [
        f"{i}/{end}" for i in range(3) for end in (1, 3)
    ]
    assert [line["kind"] for line in real[:2]] == ["caption", "yes_no"]
    assert [line["prompt"] for line in real[:2]] == ["What is it?", "Is it red?"]
    assert scores["real"]["yes_no_accuracy"].num_samples == 3
    assert scores["chance"]["yes_no_accuracy"].value == pytest.approx(2 / 3)


def test_turn_losses_add_up_to_the_loss_of_the_conversation(model, features, tmp_path):
    run(model, features, tmp_path / "out", Settings(task="conversation", limit=1, max_new_tokens=0))
    lines = read_predictions(tmp_path / "out" / "predictions.jsonl")
    real = [line for line in lines if line["visual"] == "real"]
    heldout = open_heldout(features)
    encoded = model.turn_encoder()(heldout.records[0].conversations)
    whole = Sample("0", encoded.input_ids, encoded.labels, visual=heldout.rows(0)[None])
    [loss], [count] = model.score(collate([whole]))
    assert sum(line["num_targets"] for line in real) == int(count)
    assert sum(line["loss"] for line in real) == pytest.approx(float(loss), rel=1e-5)
    assert all(line["text"] is None for line in lines)


def test_a_batch_does_not_change_an_answer(model, features, tmp_path):
    run(model, features, tmp_path / "one", Settings(batch_size=1, max_new_tokens=4))
    run(model, features, tmp_path / "many", Settings(batch_size=10, max_new_tokens=4))
    lines = [read_predictions(tmp_path / name / "predictions.jsonl") for name in ("one", "many")]
    for single, batched in zip(*lines, strict=True):
        assert single["loss"] == pytest.approx(batched["loss"], rel=1e-4)
        assert {**single, "loss": 0, "choice_losses": 0} == {
            **batched,
            "loss": 0,
            "choice_losses": 0,
        }


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (Settings(visual=("real", "real")), "each once"),
        (Settings(visual=("imagined",)), r"visual is \['imagined'\]; name some of"),
        (Settings(visual=()), r"visual is \[\]; name some of"),
        (Settings(batch_size=0), "batch_size is 0, at least 1"),
        (Settings(task="poetry"), "task is 'poetry', choose one of"),
        (Settings(limit=0), "none of 10 records can be asked about"),
    ],
)
def test_settings_that_mean_nothing_are_refused(model, features, tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        run(model, features, tmp_path / "out", settings)
    assert not (tmp_path / "out").exists()


def test_features_of_another_width_are_refused(features, tmp_path):
    with pytest.raises(ValueError, match="width 8, the projector reads 4"):
        run(tiny_llava(dim=4), features, tmp_path / "out")


def test_metrics_are_json_that_names_the_counts(model, features, tmp_path):
    run(model, features, tmp_path / "out")
    summary = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert (summary["num_questions"], summary["num_rejected"]) == (10, 0)
