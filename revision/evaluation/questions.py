"""From held-out records to questions with a reference answer, and from those to samples.

`caption` asks one fixed question per captioned picture and offers a choice among k captions: the
true one and k - 1 captions of other records, drawn by the record's place and the seed, all of
different wording. `conversation` asks every question of a record's conversation, each after the
true answers to the ones before it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from torch import Tensor

from revision.data.samples import IGNORE, Sample
from revision.data.turn_encoder import TurnEncoder
from revision.evaluation.heldout import HeldOutSet
from revision.evaluation.metrics import words, yes_or_no
from revision.records import IMAGE_MARK, Record, Turn

Task = Literal["caption", "conversation"]
Kind = Literal["caption", "yes_no", "open"]
NUM_CHOICES = 4


@dataclass(frozen=True)
class Question:
    """`turns` ends with the user's question; `pictures` are what its `<image>` marks stand for."""

    id: str
    record_id: str
    kind: Kind
    turns: tuple[Turn, ...]
    reference: str
    pictures: tuple[int, ...]
    choices: tuple[str, ...] = ()

    @property
    def prompt(self) -> str:
        """The last user turn without its image marks."""
        return self.turns[-1].text.replace(IMAGE_MARK, "").strip()


def make_questions(
    heldout: HeldOutSet, task: str, *, question: str, limit: int | None = None, seed: int = 0
) -> list[Question]:
    """Questions about the first `limit` records, in order.

    Raises ValueError for an unknown task, and when no record can be asked about.
    """
    if task == "caption":
        questions = _caption_questions(heldout, question, limit, seed)
    elif task == "conversation":
        count = len(heldout.records) if limit is None else limit
        questions = [q for i in range(count)[: len(heldout.records)] for q in _turns(heldout, i)]
    else:
        raise ValueError(f"task is {task!r}, choose one of {list(get_args(Task))}")
    ids = {question.id for question in questions}
    if len(ids) < len(questions):
        raise ValueError(
            f"{len(questions)} questions have {len(ids)} different ids; two records of the set "
            "share an id, which would pair one's answers with the other's reference"
        )
    if not questions:
        raise ValueError(
            f"none of {len(heldout.records)} records can be asked about with task={task}; caption "
            "needs a text and an image, conversation needs conversations"
        )
    return questions


def caption_of(record: Record) -> str | None:
    """The record's text, or what its conversation answers first."""
    answers = [turn.text for turn in record.conversations if turn.role == "assistant"]
    text = record.text or next(iter(answers), None)
    return text.strip() if text and text.strip() else None


def _caption_questions(
    heldout: HeldOutSet, question: str, limit: int | None, seed: int
) -> list[Question]:
    captions = [caption_of(record) for record in heldout.records]
    askable = [
        index
        for index, caption in enumerate(captions)
        if caption and len(heldout.pictures[index]) == 1
    ]
    pool = [caption for caption in captions if caption]
    asked = Turn("user", f"{IMAGE_MARK}\n{question}")
    return [
        Question(
            id=f"{heldout.records[index].id}/0",
            record_id=heldout.records[index].id,
            kind="caption",
            turns=(asked,),
            reference=captions[index] or "",
            pictures=tuple(heldout.pictures[index]),
            choices=_choices(captions[index] or "", pool, index, seed),
        )
        for index in askable[:limit]
    ]


def _choices(truth: str, pool: Sequence[str], index: int, seed: int) -> tuple[str, ...]:
    """The truth first, then captions of other wording; empty where the pool has too few."""
    chosen, taken = [truth], {words(truth)}
    for place in np.random.default_rng((seed, index)).permutation(len(pool)):
        if words(pool[place]) not in taken:
            chosen.append(pool[place])
            taken.add(words(pool[place]))
        if len(chosen) == NUM_CHOICES:
            return tuple(chosen)
    return ()


def _turns(heldout: HeldOutSet, index: int) -> list[Question]:
    record, pictures = heldout.records[index], heldout.pictures[index]
    questions = []
    for end, turn in enumerate(record.conversations):
        history = record.conversations[:end]
        if turn.role != "assistant" or not any(t.role == "user" for t in history):
            continue
        marks = sum(t.text.count(IMAGE_MARK) for t in history)
        questions.append(
            Question(
                id=f"{record.id}/{end}",
                record_id=record.id,
                kind=_kind(turn.text, record),
                turns=tuple(history),
                reference=turn.text.strip(),
                pictures=tuple(pictures[:marks]),
            )
        )
    return questions


def _kind(answer: str, record: Record) -> Kind:
    if words(answer).split()[:1] in (["yes"], ["no"]) and yes_or_no(answer):
        return "yes_no"
    return "caption" if record.text and words(answer) == words(record.text) else "open"


def prompt_sample(question: Question, encode: TurnEncoder, visual: Tensor | None) -> Sample:
    """The question, open for an answer."""
    encoded = encode(question.turns)
    return Sample(question.id, encoded.input_ids, encoded.labels, visual=visual)


def answer_sample(
    question: Question, answer: str, encode: TurnEncoder, visual: Tensor | None
) -> Sample:
    """The question with `answer`, whose tokens alone are targets: earlier answers are given."""
    encoded = encode((*question.turns, Turn("assistant", answer)))
    labels = encoded.labels
    if earlier := _num_targets(question.turns[:-1], encode):
        positions = (labels != IGNORE).nonzero()[:, 0]
        labels = labels.index_fill(0, positions[:earlier], IGNORE)
    return Sample(question.id, encoded.input_ids, labels, visual=visual)


def _num_targets(history: Sequence[Turn], encode: TurnEncoder) -> int:
    """Target tokens of a history that ends with an answer."""
    if not any(turn.role == "assistant" for turn in history):
        return 0
    return int((encode(history).labels != IGNORE).sum())
