"""Scores of an evaluated model: from predictions to numbers with 95 % intervals.

Every score here is a function f of sums over samples, so one routine gives the value and its
interval: a sample i contributes a row s_i of sufficient statistics,

    value    = f( sum_i s_i )
    resample = f( sum_i w_i s_i ),   w ~ Multinomial(n; 1/n, ..., 1/n)

and the interval is the 2.5 % to 97.5 % range of the resamples (percentile bootstrap, Efron and
Tibshirani 1993, ch. 13). A sample is one record: the turns of one conversation are resampled
together, because they share their picture. The answer-token loss is sum(loss) / sum(targets) and
never a mean of means; BLEU is the corpus score, resampled through its n-gram counts.

Letters: n samples, s statistics, w how often a resample draws each sample.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torchmetrics.functional.text import chrf_score, rouge_score
from torchmetrics.text import BLEUScore

Array = NDArray[np.float64]
Formula = Callable[[Array], Array]
Prediction = Mapping[str, Any]
Number = float | int

BLEU_ORDER = 4
NUM_RESAMPLES = 1000


@dataclass(frozen=True)
class Score:
    """A value, its 95 % interval, and the number of records that it rests on."""

    value: float
    low: float
    high: float
    num_samples: int


def ratio(sums: Array) -> Array:
    """First column over second: every mean is a sum over a count."""
    quotient: Array = sums[:, 0] / np.maximum(sums[:, 1], np.finfo(np.float64).tiny)
    return quotient


def perplexity(sums: Array) -> Array:
    """exp of nats per token."""
    return np.exp(ratio(sums))


def bleu(sums: Array, order: int = BLEU_ORDER) -> Array:
    """Corpus BLEU (Papineni et al. 2002) of each row of summed `bleu_statistics`."""
    matches, totals = sums[:, :order], sums[:, BLEU_ORDER : BLEU_ORDER + order]
    length, reference_length = sums[:, -2], sums[:, -1]
    with np.errstate(divide="ignore", invalid="ignore"):
        precision = np.exp(np.log(matches / totals).mean(axis=1))
        brevity = np.exp(np.minimum(0.0, 1.0 - reference_length / length))
    return np.where(matches.min(axis=1) > 0, precision * brevity, 0.0)


def bleu_1(sums: Array) -> Array:
    """BLEU with single words only: the one that short captions can score on."""
    return bleu(sums, order=1)


def bootstrap(
    statistics: Array, formula: Formula, *, seed: int = 0, num_resamples: int = NUM_RESAMPLES
) -> Score:
    """Value and percentile interval of `formula` over the rows of `statistics`.

    Raises ValueError on an empty table, whose score would be 0 / 0.
    """
    num_samples = len(statistics)
    if num_samples == 0:
        raise ValueError("0 samples to score, at least 1 is needed; check `limit` and the split")
    generator = np.random.default_rng(seed)
    even = np.full(num_samples, 1.0 / num_samples)
    resampled = [
        formula((generator.multinomial(num_samples, even) @ statistics)[None])[0]
        for _ in range(num_resamples)
    ]
    low, high = np.percentile(resampled, [2.5, 97.5])
    value = formula(statistics.sum(axis=0, keepdims=True))[0]
    return Score(float(value), float(low), float(high), num_samples)


def words(text: str) -> str:
    """Lower case, punctuation as space: what ROUGE does by itself, done for BLEU as well."""
    return re.sub(r"[\W_]+", " ", text.lower()).strip()


def bleu_statistics(text: str, reference: str) -> list[float]:
    """Matched and total n-grams of order 1 to 4, then both lengths: they add over samples."""
    metric = BLEUScore(n_gram=BLEU_ORDER)
    metric.update([words(text)], [[words(reference)]])
    counts = [metric.numerator, metric.denominator]
    lengths = [float(metric.preds_len), float(metric.target_len)]
    return [float(value) for count in counts for value in count] + lengths


def rouge_l(text: str, reference: str) -> float:
    """F1 of the longest common subsequence of words, 0 to 1."""
    return float(rouge_score(text, reference, rouge_keys="rougeL")["rougeL_fmeasure"])


def chrf(text: str, reference: str) -> float:
    """Character n-gram F2 (chrF++) of one sentence without regard to case, 0 to 1."""
    score = chrf_score([text], [[reference]], lowercase=True)
    assert not isinstance(score, tuple)  # a pair only with return_sentence_level_score
    return float(score)


def yes_or_no(text: str) -> str | None:
    """The answer that a text gives: "yes" or "no" when exactly one of the words occurs in it."""
    found = {"yes", "no"} & set(words(text).split())
    return found.pop() if len(found) == 1 else None


def choice_credit(losses: Sequence[Number]) -> float:
    """1 when option 0, the true one, has the strictly lowest loss; k options that tie share it.

    A model that cannot tell the options apart then scores chance instead of 1.
    """
    best = min(losses)
    return (losses[0] == best) / sum(loss == best for loss in losses)


def per_record(predictions: Sequence[Prediction], rows: Sequence[Sequence[Number]]) -> Array:
    """Sum the statistics of the predictions that belong to one record, records in order."""
    sums: dict[str, Array] = {}
    for prediction, row in zip(predictions, rows, strict=True):
        key = prediction["record_id"]
        sums[key] = sums.get(key, np.zeros(len(row))) + np.asarray(row, dtype=np.float64)
    return np.stack(list(sums.values()))


def caption_scores(pairs: Sequence[tuple[Prediction, str]], *, seed: int = 0) -> dict[str, Score]:
    """ROUGE-L, chrF and BLEU of each text against the reference of the prediction beside it."""
    if not pairs:
        return {}
    owners = [prediction for prediction, _ in pairs]
    texts = [(text, prediction["reference"]) for prediction, text in pairs]
    counts = per_record(owners, [bleu_statistics(*pair) for pair in texts])
    tables: dict[str, tuple[Array, Formula]] = {
        "rouge_l": (per_record(owners, [(rouge_l(*pair), 1) for pair in texts]), ratio),
        "chrf": (per_record(owners, [(chrf(*pair), 1) for pair in texts]), ratio),
        "bleu_1": (counts, bleu_1),
        "bleu": (counts, bleu),
    }
    return {name: bootstrap(*table, seed=seed) for name, table in tables.items()}


def loss_scores(predictions: Sequence[Prediction], *, seed: int = 0) -> dict[str, Score]:
    """Answer-token loss in nats per token, and perplexity."""
    rows = [(item["loss"], item["num_targets"]) for item in predictions]
    if not rows:
        return {}
    table = per_record(predictions, rows)
    return {
        "token_loss": bootstrap(table, ratio, seed=seed),
        "perplexity": bootstrap(table, perplexity, seed=seed),
    }


def _choice_losses(prediction: Prediction) -> list[float]:
    pairs = zip(prediction["choice_losses"], prediction["choice_targets"], strict=True)
    return [loss / max(targets, 1) for loss, targets in pairs]


def choice_scores(
    predictions: Sequence[Prediction], blind: Sequence[Prediction] = (), *, seed: int = 0
) -> dict[str, Score]:
    """How often the true caption is the most likely option.

    `choice_accuracy` compares nats per token. `choice_accuracy_over_blind` first subtracts what
    the same model gives each option without an image (`blind`), that is, it compares the
    pointwise mutual information of image and caption: a caption that is likely under any image
    gains nothing.
    """
    asked = [item for item in predictions if item.get("choice_losses")]
    if not asked:
        return {}
    losses = [_choice_losses(item) for item in asked]
    table = per_record(asked, [(choice_credit(options), 1) for options in losses])
    scores = {"choice_accuracy": bootstrap(table, ratio, seed=seed)}
    without = {item["question_id"]: _choice_losses(item) for item in blind if item["choice_losses"]}
    if all(item["question_id"] in without for item in asked):
        gains = [
            [
                seen - unseen
                for seen, unseen in zip(options, without[item["question_id"]], strict=True)
            ]
            for item, options in zip(asked, losses, strict=True)
        ]
        table = per_record(asked, [(choice_credit(options), 1) for options in gains])
        scores["choice_accuracy_over_blind"] = bootstrap(table, ratio, seed=seed)
    return scores


def yes_no_scores(predictions: Sequence[Prediction], *, seed: int = 0) -> dict[str, Score]:
    """Accuracy over presence questions; an answer that is neither yes nor no counts as wrong."""
    asked = [item for item in predictions if item["kind"] == "yes_no"]
    if not asked:
        return {}
    answers = [(yes_or_no(item["text"]), yes_or_no(item["reference"])) for item in asked]
    right = per_record(asked, [(answer == truth, 1) for answer, truth in answers])
    unparsed = per_record(asked, [(answer is None, 1) for answer, _ in answers])
    return {
        "yes_no_accuracy": bootstrap(right, ratio, seed=seed),
        "yes_no_unparsed": bootstrap(unparsed, ratio, seed=seed),
    }


def score_predictions(
    predictions: Sequence[Prediction], blind: Sequence[Prediction] = (), *, seed: int = 0
) -> dict[str, Score]:
    """Every score that these predictions of one visual condition allow."""
    captions = [(item, item["text"]) for item in predictions if item["kind"] == "caption"]
    answered = [pair for pair in captions if pair[1] is not None]
    return {
        **loss_scores(predictions, seed=seed),
        **choice_scores(predictions, blind, seed=seed),
        **caption_scores(answered, seed=seed),
        **yes_no_scores([item for item in predictions if item["text"] is not None], seed=seed),
    }


def chance_scores(predictions: Sequence[Prediction], *, seed: int = 0) -> dict[str, Score]:
    """What no model at all would score on the same questions.

    A caption of another picture against the reference, 1/k for a choice among k, and for yes/no
    the share of the commoner answer.
    """
    asked = [item for item in predictions if item.get("choices")]
    pairs = [(item, other) for item in asked for other in item["choices"][1:]]
    scores = caption_scores(pairs, seed=seed)
    if asked:
        share = per_record(asked, [(1 / len(item["choices"]), 1) for item in asked])
        scores["choice_accuracy"] = bootstrap(share, ratio, seed=seed)
    truths = [item for item in predictions if item["kind"] == "yes_no"]
    if truths:
        share = per_record(truths, [(yes_or_no(t["reference"]) == "yes", 1) for t in truths])
        scores["yes_no_accuracy"] = bootstrap(share, _commoner, seed=seed)
    return scores


def _commoner(sums: Array) -> Array:
    return np.maximum(ratio(sums), 1.0 - ratio(sums))
