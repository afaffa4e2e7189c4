"""Laws of the scores: pooled sums, intervals, ties, and agreement with torchmetrics."""

import math

import numpy as np
import pytest
from torchmetrics.functional.text import bleu_score, chrf_score, rouge_score

from revision.evaluation.metrics import (
    bleu,
    bleu_statistics,
    bootstrap,
    caption_scores,
    chance_scores,
    choice_credit,
    choice_scores,
    ratio,
    score_predictions,
    words,
    yes_or_no,
)

TEXTS = ["a red car on the road", "two dogs run in the park", "blue house", "a tree"]
REFERENCES = ["A red car, on a road", "Two dogs run in a big park!", "green house", "the moon"]


def prediction(number: int, **changes):
    fields = {
        "record_id": str(number),
        "question_id": f"{number}/1",
        "kind": "caption",
        "text": TEXTS[number % 4],
        "reference": REFERENCES[number % 4],
        "loss": 2.0,
        "num_targets": 1,
        "choices": None,
        "choice_losses": None,
        "choice_targets": None,
    }
    return {**fields, **changes}


def test_loss_is_pooled_over_tokens_not_a_mean_of_means():
    items = [prediction(0, loss=1.0, num_targets=1), prediction(1, loss=30.0, num_targets=10)]
    scores = score_predictions(items)
    assert scores["token_loss"].value == pytest.approx(31 / 11)
    assert scores["perplexity"].value == pytest.approx(math.exp(31 / 11))


def test_summed_bleu_statistics_give_the_corpus_score_of_torchmetrics():
    sums = np.sum([bleu_statistics(*pair) for pair in zip(TEXTS, REFERENCES, strict=True)], axis=0)
    oracle = bleu_score([words(t) for t in TEXTS], [[words(r)] for r in REFERENCES])
    assert 0 < float(oracle) < 1
    assert bleu(sums[None])[0] == pytest.approx(float(oracle), abs=1e-6)
    one = bleu_score([words(t) for t in TEXTS], [[words(r)] for r in REFERENCES], n_gram=1)
    assert bleu(sums[None], order=1)[0] == pytest.approx(float(one), abs=1e-6)


def test_brevity_is_penalised_as_torchmetrics_does():
    pair = ("two dogs run in the", "two dogs run in the park")
    statistics = np.array([bleu_statistics(*pair)])
    assert bleu(statistics)[0] == pytest.approx(float(bleu_score([pair[0]], [[pair[1]]])), abs=1e-6)


def test_caption_scores_are_means_over_records_of_the_sentence_scores():
    items = [prediction(i) for i in range(4)]
    scores = caption_scores([(item, item["text"]) for item in items])
    rouge = [
        float(rouge_score(t, r, rouge_keys="rougeL")["rougeL_fmeasure"])
        for t, r in zip(TEXTS, REFERENCES, strict=True)
    ]
    characters = [
        float(chrf_score([t], [[r]], lowercase=True))
        for t, r in zip(TEXTS, REFERENCES, strict=True)
    ]
    assert scores["rouge_l"].value == pytest.approx(np.mean(rouge))
    assert scores["chrf"].value == pytest.approx(np.mean(characters))


def test_a_perfect_and_an_empty_answer_bound_every_caption_score():
    items = [prediction(i, text=REFERENCES[i]) for i in range(2)]
    perfect = caption_scores([(item, item["reference"]) for item in items])
    empty = caption_scores([(item, "") for item in items])
    assert all(score.value == pytest.approx(1.0) for score in perfect.values())
    assert all(score.value == 0.0 for score in empty.values())


def test_interval_covers_a_known_mean_about_95_times_in_100():
    generator = np.random.default_rng(0)
    covered = 0
    for trial in range(100):
        values = generator.normal(1.0, 1.0, size=60)
        table = np.stack([values, np.ones(60)], axis=1)
        score = bootstrap(table, ratio, seed=trial, num_resamples=200)
        covered += score.low <= 1.0 <= score.high
    assert 88 <= covered <= 99


def test_interval_is_the_same_for_the_same_seed():
    table = np.stack([np.arange(20.0), np.ones(20)], axis=1)
    assert bootstrap(table, ratio, seed=3) == bootstrap(table, ratio, seed=3)
    assert bootstrap(table, ratio, seed=3) != bootstrap(table, ratio, seed=4)


def test_turns_of_one_record_are_resampled_together():
    alone = [prediction(i, record_id=str(i), loss=float(i)) for i in range(8)]
    shared = [prediction(i, record_id=str(i // 2), loss=float(i)) for i in range(8)]
    scores = [score_predictions(items)["token_loss"] for items in (alone, shared)]
    assert scores[0].value == scores[1].value
    assert [score.num_samples for score in scores] == [8, 4]
    assert scores[1].high - scores[1].low > scores[0].high - scores[0].low


def test_no_samples_is_refused():
    with pytest.raises(ValueError, match="0 samples to score, at least 1"):
        bootstrap(np.zeros((0, 2)), ratio)


@pytest.mark.parametrize(
    ("losses", "credit"),
    [([1, 2, 3, 4], 1), ([2, 1, 3, 4], 0), ([1, 1, 1, 1], 0.25), ([1, 1, 2, 3], 0.5)],
)
def test_tied_options_share_the_credit(losses, credit):
    assert choice_credit(losses) == credit


def test_choice_is_by_nats_per_token_and_over_blind_by_information():
    longer = prediction(0, choice_losses=[6.0, 5.0], choice_targets=[3, 2])
    assert choice_scores([longer])["choice_accuracy"].value == 1.0
    seen = prediction(0, choice_losses=[6.0, 2.0], choice_targets=[3, 2])
    unseen = prediction(0, choice_losses=[12.0, 2.0], choice_targets=[3, 2])
    assert choice_scores([seen])["choice_accuracy"].value == 0.0
    assert "choice_accuracy_over_blind" not in choice_scores([seen])
    assert choice_scores([seen], [unseen])["choice_accuracy_over_blind"].value == 1.0
    assert choice_scores([unseen], [unseen])["choice_accuracy_over_blind"].value == 0.5


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("Yes.", "yes"),
        ("no, there is none", "no"),
        ("NO", "no"),
        ("Nope", None),
        ("yes and no", None),
        ("", None),
        ("I know it", None),
    ],
)
def test_yes_or_no(text, answer):
    assert yes_or_no(text) == answer


def test_unparsed_yes_no_answers_are_wrong_and_counted():
    texts = ["Yes.", "Perhaps", "No", "No"]
    items = [
        prediction(i, kind="yes_no", text=text, reference="No" if i == 3 else "Yes")
        for i, text in enumerate(texts)
    ]
    scores = score_predictions(items)
    assert scores["yes_no_accuracy"].value == 0.5
    assert scores["yes_no_unparsed"].value == 0.25
    assert chance_scores(items)["yes_no_accuracy"].value == 0.75


def test_chance_is_one_of_k_and_the_caption_of_another_picture():
    choices = [["blue house", "red house"], ["red house", "blue house"]]
    items = [prediction(i, choices=c, reference=c[0]) for i, c in enumerate(choices)]
    scores = chance_scores(items)
    assert scores["choice_accuracy"].value == 0.5
    assert scores["rouge_l"].value == pytest.approx(0.5)


def test_answers_that_were_not_generated_give_no_caption_score():
    assert set(score_predictions([prediction(0, text=None)])) == {"token_loss", "perplexity"}
