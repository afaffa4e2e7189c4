"""Whatever is changed in a feature set is found and named."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from revision.records import Record, Rejection
from revision.shards import ShardReader, ShardWriter, read_header, verify, write_header
from revision.shards.verify import find_damage, missing_ids
from tests.feature_sets import ENCODER, cloud, damage, write_set

FUZZ = settings(max_examples=150, deadline=None, derandomize=True, database=None)


@pytest.fixture
def whole(tmp_path):
    return write_set(tmp_path / "set", cloud(0, 130, dim=6), "text", block_rows=30)


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory):
    directory = tmp_path_factory.mktemp("fuzz") / "set"
    with ShardWriter(directory, 0, 4, "float16") as writer:
        writer.add_block(cloud(0, 5, dim=4), [Record(f"r{i}", text="t") for i in range(5)])
        writer.reject(Rejection("bad", "empty text", "x:0"))
    write_header(directory, kind="text", encoder=ENCODER, source={}, num_shards=1)
    return directory


@FUZZ
@given(position=st.integers(0, 10**6), flip=st.integers(1, 255))
def test_any_changed_byte_of_a_shard_is_found(fuzzed, position, flip):
    path = fuzzed / "00000.tar"
    good = path.read_bytes()
    content = bytearray(good)
    content[position % len(content)] ^= flip
    path.write_bytes(content)
    try:
        assert list(find_damage(fuzzed).shards) == ["00000.tar"]
    finally:
        path.write_bytes(good)
    assert verify(fuzzed) == []


@FUZZ
@given(length=st.integers(0, 10**6))
def test_any_shard_that_is_cut_is_found(fuzzed, length):
    path = fuzzed / "00000.tar"
    good = path.read_bytes()
    path.write_bytes(good[: length % len(good)])
    try:
        assert list(find_damage(fuzzed).shards) == ["00000.tar"]
    finally:
        path.write_bytes(good)


def test_every_broken_shard_is_named_not_only_the_first(whole):
    damage(whole, 60, np.nan)
    (whole / "00000.tar").unlink()
    content = (whole / "00002.tar").read_bytes()
    (whole / "00002.tar").write_bytes(content[:700])
    found = find_damage(whole)
    assert list(found.shards) == ["00000.tar", "00001.tar", "00002.tar"]
    lines = "\n".join(found.lines())
    assert "00000.tar: missing shard" in lines
    assert "00001.tar block 0: 1 of 30 rows are zero or not finite" in lines
    assert "00002.tar: truncated" in lines


def test_an_id_that_occurs_twice_is_named(tmp_path):
    for shard, ids in enumerate((["a", "b"], ["c", "a"])):
        with ShardWriter(tmp_path, shard, 4, "float32") as writer:
            writer.add_block(cloud(shard, 2, dim=4), [Record(id, text="t") for id in ids])
    write_header(tmp_path, kind="text", encoder=ENCODER, source={}, num_shards=2)
    [line] = verify(tmp_path)
    assert line.endswith("1 records have an id that another has: 'a'")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda fields: fields | {"num_rows": 131}, "num_rows 131, its shards give 130"),
        (lambda fields: fields | {"dtype": "float16"}, "rows of 6 float16, its shards hold"),
        (
            lambda fields: fields | {"shards": fields["shards"][:2]},
            "00002.tar: not a shard of this set",
        ),
    ],
)
def test_a_header_that_does_not_add_up_is_found(whole, change, message):
    path = whole / "header.json"
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    assert any(message in line for line in find_damage(whole).header)


def test_a_quarantine_that_was_changed_or_lost_is_found(whole):
    path = whole / "quarantine.jsonl"
    path.write_text("{}\n")
    [line] = verify(whole)
    assert "quarantine.jsonl: not the rejections that the shards hold" in line
    path.unlink()
    assert verify(whole) == [line]


def test_ids_of_the_input_that_are_nowhere_are_named(whole):
    header, ids = read_header(whole), [str(i) for i in range(130)]
    assert missing_ids(whole, header, iter(ids), 50) == []
    other = [*ids[:3], "new", *ids[4:], "more"]
    lines = missing_ids(whole, header, iter(other), 50)
    assert [line.replace(str(whole), "") for line in lines] == [
        "1 ids are missing from /00000.tar: 'new'",
        "1 ids are only in /00000.tar: '3'",
        "1 ids are missing from /00002.tar: 'more'",
    ]
    assert missing_ids(whole, header, iter([*ids, *["x"] * 30]), 50)[-1].endswith(
        "the input goes on with 10 entries behind its last shard"
    )


def test_a_reader_of_a_verified_set_may_still_meet_a_shard_that_vanished(whole):
    reader = ShardReader(whole)
    (whole / "00001.tar").unlink()
    with pytest.raises(ValueError, match=r"00001\.tar: missing shard; run the command that wrote"):
        reader.features(3)
    assert Path(reader.features(0).filename).name == "00000.tar"
