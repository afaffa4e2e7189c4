"""Selections: what is kept, in which order the controls apply, and what is written down."""

import json
import random
from collections.abc import Iterable

import numpy as np
import pytest

from revision.captions import Controls, Selection, columns, count_words, select
from revision.captions.selection import Entry
from revision.records import Record, Rejection, Turn


def records(count: int, seed: int = 0) -> list[Entry]:
    """Records of 1 to 12 words; every seventh was refused, every eleventh has a picture alone."""
    draw = random.Random(seed)
    found: list[Entry] = []
    for i in range(count):
        text = " ".join(f"w{draw.randrange(500)}" for _ in range(draw.randint(1, 12)))
        if i % 7 == 6:
            found.append(Rejection(str(i), "broken", f"line {i}"))
        elif i % 11 == 10:
            found.append(Record(str(i), images=("a.png",)))
        else:
            found.append(Record(str(i), text, ("b.png",)))
    return found


def kept(entries: list[Entry], **options: object) -> list[Record]:
    selection = select(entries, Controls(**options))
    passing = list(selection.apply(entries))
    chosen = [entry for entry in passing if isinstance(entry, Record)]
    refused = [entry for entry in passing if isinstance(entry, Rejection)]
    assert refused == [entry for entry in entries if isinstance(entry, Rejection)]
    assert len(passing) == selection.num_passing == int(selection.kept.sum())
    about = selection.about
    assert about["num_kept"] == len(chosen)
    assert about["num_kept"] + about["num_refused"] + sum(about["removed"].values()) == len(entries)
    return chosen


def ids(chosen: Iterable[Record]) -> set[str]:
    return {record.id for record in chosen}


def with_text(chosen: Iterable[Record]) -> list[Record]:
    return [record for record in chosen if record.text]


def test_subsets_are_nested_whatever_the_order_and_the_chunks(monkeypatch) -> None:
    entries = records(300)
    drawn = {n: ids(kept(entries, num_samples=n)) for n in (1, 10, 100, 200)}
    assert [len(drawn[n]) for n in (1, 10, 100, 200)] == [1, 10, 100, 200]
    assert drawn[1] < drawn[10] < drawn[100] < drawn[200]
    shuffled = random.Random(1).sample(entries, len(entries))
    assert ids(kept(shuffled, num_samples=100)) == drawn[100]
    monkeypatch.setattr(columns, "_CHUNK", 16)
    assert ids(kept(entries, num_samples=100)) == drawn[100]


def test_the_classes_of_length_part_the_captions() -> None:
    entries = records(300)
    classes = {name: kept(entries, caption_length=name) for name in ("short", "medium", "long")}
    everything = with_text(kept(entries, num_samples=None, max_caption_words=99))
    assert sum(len(with_text(part)) for part in classes.values()) == len(everything)
    longest = [
        max(count_words(record.text or "") for record in with_text(part))
        for part in classes.values()
    ]
    shortest = [
        min(count_words(record.text or "") for record in with_text(part))
        for part in classes.values()
    ]
    assert longest[0] < shortest[1] <= longest[1] < shortest[2]
    bounds = select(entries, Controls(caption_length="medium")).about["terciles"]
    assert (longest[0], longest[1]) == tuple(bounds)
    between = kept(entries, caption_length=[longest[0] + 1, longest[1]])
    assert ids(between) == ids(classes["medium"])


def test_a_record_without_a_caption_is_touched_by_the_number_alone() -> None:
    entries = records(300)
    bare = {e.id for e in entries if isinstance(e, Record) and not e.text}
    assert bare <= ids(kept(entries, caption_length="long", dedup="exact", min_caption_words=3))
    assert not bare <= ids(kept(entries, num_samples=20))


def test_the_order_of_the_controls() -> None:
    entries: list[Entry] = [
        Record("a", "one"),
        Record("b", "one two three"),
        Record("c", "One two  three"),
        Record("d", "one two three four"),
        Record("e", "one two three five"),
        Record("f", "one two three four five six"),
    ]
    selection = select(
        entries, Controls(min_caption_words=2, dedup="exact", caption_length="long", num_samples=1)
    )
    assert selection.about["removed"] == {"min_caption_words": 1, "dedup": 1, "caption_length": 3}
    assert selection.about["terciles"] == (4, 4)  # of b, d, e and f
    assert selection.removed is not None
    cut = select(entries, Controls(dedup="exact", max_caption_words=3))
    assert cut.about["removed"] == {"dedup": 1}  # d, e and f are alike only when they are cut
    assert [e.text for e in cut.apply(entries) if isinstance(e, Record)][2:] == [
        "one two three"
    ] * 3
    assert cut.about["num_cut"] == 3


def test_bounds_of_words_and_characters() -> None:
    entries: list[Entry] = [Record(str(n), " ".join(["ab"] * n)) for n in range(1, 8)]
    assert ids(kept(entries, min_caption_words=5)) == {"5", "6", "7"}
    assert ids(kept(entries, caption_length=[None, 2])) == {"1", "2"}
    assert ids(kept(entries, caption_characters=[8, 11])) == {"3", "4"}


def test_nothing_left_is_refused_with_the_counts() -> None:
    entries: list[Entry] = [Record(str(n), f"same length {n}") for n in range(5)]
    with pytest.raises(ValueError, match=r"none of 5 records; removed by \{'caption_length': 5\}"):
        select(entries, Controls(caption_length="long"))
    with pytest.raises(ValueError, match="num_samples=6, but 5 records are left"):
        select(entries, Controls(num_samples=6))


def test_what_is_written_is_read_again_and_removals_are_listed(tmp_path) -> None:
    entries = [*records(40), Record("x", "seven"), Record("y", "Seven")]
    controls = Controls(dedup="exact", min_caption_words=1, num_samples=20, max_caption_words=2)
    made = select(entries, controls)
    made.write(tmp_path)
    read = Selection.read(tmp_path)
    assert read.controls == controls
    assert list(read.apply(entries)) == list(made.apply(entries))
    np.testing.assert_array_equal(read.kept, made.kept)
    listed = [json.loads(line) for line in (tmp_path / "removed.jsonl").open()]
    assert listed[-1] == {"id": "y", "control": "dedup", "reason": "the same as an earlier caption"}
    assert len(listed) == made.about["removed"]["dedup"]
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    read.write(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_record_that_was_never_judged_is_refused() -> None:
    judged: list[Entry] = [Record("a", images=("a.png",)), Rejection("a", "duplicate id", "2")]
    selection = select(judged, Controls(dedup="exact"))
    with pytest.raises(ValueError, match="record 'a': an earlier entry of the input has the same"):
        list(selection.apply([Rejection("a", "empty text", "1"), Record("a", "a text")]))


def test_a_turn_that_is_the_caption_is_cut_with_it() -> None:
    turns = (Turn("user", "<image>\nWhat?"), Turn("assistant", "a red cat"), Turn("user", "a red"))
    selection = select([Record("a", "a red cat", (), turns)], Controls(max_caption_words=1))
    record = selection.edit(Record("a", "a red cat", (), turns))
    assert record.text == "a"
    assert [turn.text for turn in record.conversations] == ["<image>\nWhat?", "a", "a red"]
