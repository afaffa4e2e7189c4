"""Choices and partners are drawn once and fairly; what cannot be asked is refused."""

from collections import Counter

import pytest

from revision.evaluation.heldout import HeldOutSet, open_heldout, partners
from revision.evaluation.metrics import words
from revision.evaluation.questions import make_questions
from revision.records import Record
from tests.evaluation.conftest import CAPTIONS


class Bare(HeldOutSet):
    """Held-out records, one picture each, without any feature."""

    def rows(self, picture):
        raise AssertionError("questions are made without looking")


def bare(records):
    pictures = [range(i, i + 1) for i in range(len(records))]
    return Bare(records=records, pictures=pictures, rejected=())


def captioned(*captions):
    records = [Record(str(i), caption, (f"{i}.png",)) for i, caption in enumerate(captions)]
    return make_questions(bare(records), "caption", question="What is it?")


def test_choices_differ_in_wording_and_not_only_in_punctuation():
    for question in captioned("A car.", "a car", "two dogs", "Two dogs!", "house", "tree"):
        assert question.choices[0] == question.reference
        assert len({words(choice) for choice in question.choices}) == 4


def test_choices_are_the_same_every_time_and_depend_on_the_seed(features):
    heldout = open_heldout(features)
    first, again, other = (
        make_questions(heldout, "caption", question="?", seed=seed) for seed in (0, 0, 1)
    )
    assert first == again
    assert [q.choices for q in first] != [q.choices for q in other]


def test_a_limit_keeps_the_first_questions_as_they_were(features):
    heldout = open_heldout(features)
    whole = make_questions(heldout, "caption", question="?")
    assert make_questions(heldout, "caption", question="?", limit=3) == whole[:3]


def test_every_caption_is_a_distractor_about_equally_often():
    captions = [f"caption number {i}" for i in range(40)]
    questions = captioned(*captions)
    counts = Counter(choice for question in questions for choice in question.choices[1:])
    assert sum(counts.values()) == 3 * 40
    assert max(counts.values()) <= 12


def test_too_few_captions_leave_no_choice():
    assert [question.choices for question in captioned("a", "b", "A")] == [(), (), ()]


def test_records_that_share_an_id_are_refused():
    records = [Record("x", caption, ("a.png",)) for caption in CAPTIONS]
    with pytest.raises(ValueError, match="6 questions have 1 different ids"):
        make_questions(bare(records), "caption", question="?")


def test_no_picture_keeps_its_own_feature_and_each_is_used_once():
    for seed in range(20):
        other = partners(7, seed=seed)
        assert sorted(other) == list(range(7))
        assert all(partner != picture for picture, partner in enumerate(other))


def test_one_picture_has_no_partner():
    with pytest.raises(ValueError, match="at least 2 pictures, the set has 1"):
        partners(1, seed=0)
