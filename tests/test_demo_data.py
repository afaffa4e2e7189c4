import json
import re
import shutil
from collections import Counter
from pathlib import Path

import pytest

from revision.demo_data import CAPTION_QUESTION, Picture, conversations, prepare
from revision.records import Record, load_image, read_records

DATA_DIR = Path(__file__).parents[1] / "data" / "openclipart"
SPLITS = ("pretrain", "tune", "val", "test")
YES_NO = re.compile(r'(Is this (?P<phrase>.+)|Could "(?P<title>.+)" be its title)\? Answer')


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("prepared")
    prepare(DATA_DIR, directory)
    return directory


def read(directory: Path, split: str) -> list[dict]:
    return json.loads((directory / f"{split}.json").read_text())


def questions(entries: list[dict]):
    for entry in entries:
        turns = [turn["value"].replace("<image>\n", "") for turn in entry["conversations"]]
        for place in range(0, len(turns), 2):
            yield entry, place // 2, turns[place], turns[place + 1]


def pictures(count: int) -> list[Picture]:
    things = ["cat, an animal", "pear, some food", "drill, a tool", "oak, a tree"]
    kinds = ["animals", "food", "tools", "plants"]
    return [Picture(f"p{i}", things[i % 4], kinds[i % 4], "webp", b"") for i in range(count)]


@pytest.mark.parametrize("split", SPLITS)
def test_our_own_reader_takes_every_conversation(prepared, split):
    path = prepared / f"{split}.json"
    read_back = list(read_records(path, side="both", image_root=prepared / "images"))
    assert all(isinstance(record, Record) for record in read_back)
    assert len(read_back) == len(read(prepared, split))


def test_every_picture_decodes_to_the_same_square(prepared):
    for entry in read(prepared, "val"):
        image = load_image(entry["image"], image_root=prepared / "images")
        assert (image.mode, image.size) == ("RGB", (160, 160))


def test_unpaired_pictures_and_texts_share_nothing(prepared):
    unpaired = read(prepared, "unpaired")
    tune = {entry["id"]: entry for entry in read(prepared, "tune")}
    assert {image["id"] for image in unpaired["images"]} == set(tune)
    captions = {entry["caption"] for entry in tune.values()}
    assert not captions & {text["text"] for text in unpaired["texts"]}
    assert len(unpaired["texts"]) == len(read(prepared, "pretrain"))


@pytest.mark.parametrize("split", ["tune", "val", "test"])
def test_as_many_yes_as_no(prepared, split):
    answers = Counter(a for _, _, _, a in questions(read(prepared, split)) if a in ("yes", "no"))
    assert abs(answers["yes"] - answers["no"]) <= 1
    assert sum(answers.values()) > 90


@pytest.mark.parametrize("split", ["tune", "val", "test"])
def test_yes_is_said_by_the_caption_and_no_is_not(prepared, split):
    for entry, _, question, answer in questions(read(prepared, split)):
        if match := YES_NO.match(question):
            claim = (match["phrase"] or match["title"]).split()
            said = entry["caption"].replace(",", "").split()
            shared = (set(claim) & set(said)) - {"a", "an", "some"}
            assert (set(claim) <= set(said)) if answer == "yes" else not shared, entry["id"]


def test_nothing_that_was_said_before_answers_a_question(prepared):
    """The caption, which answers them all, is the last turn; pictures of stage 1 have no other."""
    for split in SPLITS:
        for entry, place, question, _ in questions(read(prepared, split)):
            is_last = place == len(entry["conversations"]) // 2 - 1
            assert (question == CAPTION_QUESTION) == is_last
            assert split != "pretrain" or is_last


def test_the_question_alone_is_a_poor_guide(prepared):
    """Even with the best answer to each wording, chosen with the answers at hand."""
    tally: dict[str, Counter] = {}
    for _, _, question, answer in questions(read(prepared, "test")):
        if match := YES_NO.match(question):
            tally.setdefault(match["phrase"] or "title", Counter())[answer] += 1
    best = sum(max(count.values()) for count in tally.values())
    assert best / sum(sum(count.values()) for count in tally.values()) < 0.7


def test_a_choice_offers_four_categories_and_the_right_one(prepared):
    places = Counter()
    for _, _, question, answer in questions(read(prepared, "test")):
        if question.startswith("Which word fits it best: "):
            offered = re.split(", | or ", question.partition(": ")[2].rstrip("?"))
            assert len(set(offered)) == 4
            places[offered.index(answer)] += 1
    assert min(places[place] for place in range(4)) > 10


def test_the_same_conversations_in_every_run():
    first, second = (list(conversations("test", pictures(12))) for _ in range(2))
    assert first == second


def test_half_of_the_tuning_pictures_are_asked_for_their_caption_alone():
    lengths = Counter(len(entry["conversations"]) for entry in conversations("tune", pictures(40)))
    assert lengths[2] == 20


def test_a_no_that_cannot_be_asked_is_not_asked():
    """All captions say the same: nothing is wrong of any picture."""
    same = [Picture(f"p{i}", "cat, an animal", "animals", "webp", b"") for i in range(4)]
    asked = [answer for _, _, _, answer in questions(list(conversations("test", same)))]
    assert "no" not in asked
    assert asked.count("yes") == 1


def test_refusals(tmp_path):
    shutil.copy(DATA_DIR / "pretrain-000.tar", tmp_path)
    with pytest.raises(ValueError, match=r"tune-000\.tar is missing"):
        prepare(tmp_path, tmp_path / "out")
