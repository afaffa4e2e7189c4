"""Ask a model every question under each visual condition, resumably.

Predictions are appended to `predictions.jsonl` one batch at a time and fsynced; a run that was
killed keeps its whole batches, cuts off what follows them, and goes on. Batches are the same
questions whenever they are computed, and every score is computed from the file, so an interrupted
run and an undisturbed one end with the same bytes.

    real        the picture's own features
    zero        features set to zero: what the model says blind
    shuffled    the features of another picture of the set
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, get_args

from revision.data.samples import Sample, collate
from revision.data.turn_encoder import TurnEncoder
from revision.encoders.base import directory_digest
from revision.evaluation.heldout import HeldOutSet, Visual, partners, quarantine_lines, visual_rows
from revision.evaluation.journal import (
    Scores,
    append_lines,
    claim,
    keep_whole_batches,
    read_predictions,
    write_scores,
)
from revision.evaluation.metrics import Prediction, chance_scores, score_predictions
from revision.evaluation.questions import Question, answer_sample, make_questions
from revision.evaluation.questions import prompt_sample as open_sample
from revision.files import write_bytes
from revision.models.llava import LlavaModel
from revision.progress import track
from revision.records import Record

QUESTION = "What is in this picture?"


@dataclass(frozen=True)
class Settings:
    """What is asked and how: `task` is a `Task`, `visual` holds `Visual`s (checked when the
    evaluation starts). `max_new_tokens=0` scores by likelihood only, nothing is generated;
    `question` is what `task="caption"` asks (template `plain` drops it)."""

    task: str = "caption"
    visual: tuple[str, ...] = ("real", "zero", "shuffled")
    question: str = QUESTION
    max_new_tokens: int = 32
    batch_size: int = 16
    limit: int | None = None
    seed: int = 0


@dataclass(frozen=True)
class Portion:
    """Consecutive questions under one visual condition: the unit that is appended."""

    visual: str
    questions: Sequence[Question]


def evaluate(
    model: LlavaModel,
    heldout: HeldOutSet,
    output_dir: Path,
    settings: Settings,
    *,
    plan: Mapping[str, Any],
) -> Scores:
    """Predict what is missing in `output_dir`, then score all of it.

    `plan` says what model, data and settings these are; it is kept in `plan.json`.

    Returns the scores by visual condition, with what chance would score under `chance`.

    Raises ValueError when `output_dir` holds the predictions of another plan.
    """
    _check(settings)
    questions = make_questions(
        heldout, settings.task, question=settings.question, limit=settings.limit, seed=settings.seed
    )
    claim(output_dir, plan)
    write_bytes(output_dir / "quarantine.jsonl", quarantine_lines(heldout.rejected))
    portions = [
        Portion(visual, questions[start : start + settings.batch_size])
        for visual in settings.visual
        for start in range(0, len(questions), settings.batch_size)
    ]
    path = output_dir / "predictions.jsonl"
    done = keep_whole_batches(path, [len(portion.questions) for portion in portions])
    predictor = Predictor(model, heldout, settings)
    for portion in track(portions[done:], f"evaluate {output_dir.name}"):
        append_lines(path, predictor(portion))
    scores = score_all(read_predictions(path), settings)
    write_scores(
        output_dir, scores, num_questions=len(questions), num_rejected=len(heldout.rejected)
    )
    return scores


class Predictor:
    """Computes the predictions of one batch; holds nothing that depends on earlier batches."""

    def __init__(self, model: LlavaModel, heldout: HeldOutSet, settings: Settings) -> None:
        self.model, self.heldout, self.settings = model, heldout, settings
        self.encode: TurnEncoder = model.turn_encoder()
        num_pictures = sum(len(pictures) for pictures in heldout.pictures)
        shuffles = "shuffled" in settings.visual
        self.other = partners(num_pictures, seed=settings.seed) if shuffles else []
        self.records: dict[str, Record] = {record.id: record for record in heldout.records}

    def __call__(self, portion: Portion) -> list[dict[str, Any]]:
        seen = [
            visual_rows(self.heldout, question.pictures, portion.visual, self.other)
            for question in portion.questions
        ]
        asked = list(zip(portion.questions, seen, strict=True))
        scored = iter(
            self._score(
                [
                    answer_sample(question, answer, self.encode, rows)
                    for question, rows in asked
                    for answer in _answers(question)
                ]
            )
        )
        losses = [list(islice(scored, len(_answers(question)))) for question in portion.questions]
        texts = self._generate([open_sample(q, self.encode, rows) for q, rows in asked])
        return [
            self._line(question, portion.visual, found, text)
            for question, found, text in zip(portion.questions, losses, texts, strict=True)
        ]

    def _score(self, samples: Sequence[Sample]) -> Iterator[tuple[float, int]]:
        """(loss in nats, number of targets) of each sample, `batch_size` samples at a time."""
        for start in range(0, len(samples), self.settings.batch_size):
            part = collate(list(samples[start : start + self.settings.batch_size]))
            sums, counts = self.model.score(part.to(self.model.device))
            yield from zip(sums.tolist(), counts.tolist(), strict=True)

    def _generate(self, samples: Sequence[Sample]) -> list[str | None]:
        """Answers; prompts of the batch that are equal (all blind ones are) are answered once."""
        if not self.settings.max_new_tokens:
            return [None] * len(samples)
        distinct = {_content(sample): sample for sample in samples}
        texts = self.model.generate(list(distinct.values()), self.settings.max_new_tokens)
        answers = dict(zip(distinct, texts, strict=True))
        return [answers[_content(sample)] for sample in samples]

    def _line(
        self,
        question: Question,
        visual: str,
        losses: Sequence[tuple[float, int]],
        text: str | None,
    ) -> dict[str, Any]:
        options = losses if question.choices else ()
        return {
            "question_id": question.id,
            "record_id": question.record_id,
            "visual": visual,
            "kind": question.kind,
            "prompt": question.prompt,
            "text": text,
            "reference": question.reference,
            "loss": losses[0][0],
            "num_targets": losses[0][1],
            "choices": list(question.choices),
            "choice_losses": [loss for loss, _ in options],
            "choice_targets": [count for _, count in options],
            "images": self.records[question.record_id].to_json().get("images", []),
        }


def _answers(question: Question) -> tuple[str, ...]:
    """What is scored: the reference, and the other choices where there is a choice."""
    return (question.reference, *question.choices[1:])


def _content(sample: Sample) -> tuple[bytes, bytes]:
    visual = b"" if sample.visual is None else sample.visual.numpy().tobytes()
    return sample.input_ids.numpy().tobytes(), visual


def score_all(predictions: Sequence[Prediction], settings: Settings) -> Scores:
    """Scores of each visual condition and of chance."""
    by_visual: dict[str, list[Prediction]] = {
        visual: [item for item in predictions if item["visual"] == visual]
        for visual in settings.visual
    }
    blind = by_visual.get("zero", [])
    scores = {
        visual: score_predictions(items, blind if visual != "zero" else (), seed=settings.seed)
        for visual, items in by_visual.items()
    }
    first = by_visual[settings.visual[0]]
    return {**scores, "chance": chance_scores(first, seed=settings.seed)}


def _check(settings: Settings) -> None:
    """Before anything is written: a plan that cannot be carried out must not own a directory."""
    known, asked = get_args(Visual), settings.visual
    if not asked or set(asked) - set(known) or len(set(asked)) < len(asked):
        raise ValueError(f"visual is {list(asked)}; name some of {list(known)}, each once")
    if settings.batch_size < 1 or settings.max_new_tokens < 0:
        raise ValueError(
            f"batch_size is {settings.batch_size}, at least 1 is needed; max_new_tokens is "
            f"{settings.max_new_tokens}, 0 means likelihood only"
        )


def model_digest(model_dir: Path) -> str:
    """SHA-256 over the weights, configs and vocabularies of a model directory.

    Raises ValueError when it is none: the digest of nothing is a digest as well.
    """
    if not (Path(model_dir) / "config.json").is_file():
        raise ValueError(
            f"{model_dir} is not a model directory: it has no config.json; give the `model` folder "
            "of a finished run"
        )
    return directory_digest(Path(model_dir))
