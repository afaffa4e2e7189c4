"""The token cache: the batches of a source that tokenises online, whoever built it and however."""

import json
import multiprocessing
import os
import pickle
import re
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from revision.alignment.noise import Disturbed, GaussianNoise
from revision.captions import Controls
from revision.data import tokens
from revision.data.samples import IMAGE_SLOT
from revision.data.shard_source import ShardSource
from revision.data.tokens import TokenCache, build_tokens
from revision.data.turn_encoder import TurnEncoder
from revision.records import Record, Turn
from revision.shards import ShardWriter, write_header
from tests.tiny_models import bpe_tokenizer

DIM = 4
NUM_RECORDS = 23


def records_with_counts():
    """Captions, talks with two pictures, talks without any, in between."""
    for i in range(NUM_RECORDS):
        if i % 5 == 3:
            yield talk(f"talk {i} é", 0, "None at all."), 0
        elif i % 5 == 4:
            yield talk(f"talk {i}", 2, f"{i} cats, <|im_end|> and 猫."), 2
        else:
            yield Record(id=f"caption {i}", text=f"A red cat on mat {i}. " * (1 + i % 3)), 1


def talk(id, num_images, answer):
    question = "<image>\n" * num_images + "What is in the image?"
    turns = (Turn("user", question), Turn("assistant", answer), Turn("user", "Sure?"))
    return Record(id=id, conversations=(*turns, Turn("assistant", "Yes.")))


def write(directory: Path, entries, rows_per_image=1, seed=0):
    """Blocks of 4 records, shards of 3 blocks."""
    rng = np.random.default_rng(seed)
    entries = list(entries)
    blocks = [entries[start : start + 4] for start in range(0, len(entries), 4)]
    shards = [blocks[start : start + 3] for start in range(0, len(blocks), 3)]
    for index, shard in enumerate(shards):
        with ShardWriter(directory, index, DIM, "float16") as writer:
            for block in shard:
                counts = [count * rows_per_image for _, count in block]
                rows = rng.standard_normal((sum(counts), DIM))
                writer.add_block(rows, [record for record, _ in block], counts)
    encoder = {"rows_per_image": rows_per_image} if rows_per_image > 1 else {}
    write_header(directory, kind="image", encoder=encoder, source={}, num_shards=len(shards))
    return directory


@pytest.fixture
def shards(tmp_path):
    return write(tmp_path / "set", records_with_counts())


@pytest.fixture
def small_parts(monkeypatch):
    monkeypatch.setattr(tokens, "PART_RECORDS", 5)


def turns(template="chat", **limits):
    return TurnEncoder(bpe_tokenizer(), template, **limits)


def assert_equal_batches(one, other):
    assert one.ids == other.ids and one.window_targets == other.window_targets
    for name in ("input_ids", "labels", "lengths", "visual"):
        mine, theirs = getattr(one, name), getattr(other, name)
        assert (mine is None) == (theirs is None)
        assert mine is None or (torch.equal(mine, theirs) and mine.dtype == theirs.dtype), name


@pytest.mark.parametrize("template", ["chat", "plain", "vicuna_v1"])
@pytest.mark.parametrize("visual", ["real", "zero", "shuffled"])
def test_cached_batches_are_the_online_ones(shards, tmp_path, small_parts, template, visual):
    texts = [(r, n) for r, n in records_with_counts() if template != "plain" or n < 2]
    directory = shards if template != "plain" else write(tmp_path / "plain", texts)
    online, cached = (
        ShardSource(directory, turns(template), visual=visual, token_root=root)
        for root in (None, tmp_path / "tokens")
    )
    rng = np.random.default_rng(0)
    for epoch in range(4):
        numbers = rng.choice(len(online), 9, replace=False).tolist()
        assert_equal_batches(cached.batch(numbers, epoch), online.batch(numbers, epoch))
    assert_equal_batches(cached.batch(range(4)), online.batch(range(4)))
    assert_equal_batches(cached.batch([]), online.batch([]))
    for number in range(len(online)):
        one, other = cached.sample(number), online.sample(number)
        assert one.id == other.id and torch.equal(one.labels, other.labels)


def test_lengths_are_those_of_the_spliced_records(shards, tmp_path):
    source = ShardSource(
        shards,
        turns(tokens_per_image=7),
        token_root=tmp_path / "tokens",
        captions=Controls(max_caption_words=3),
    )
    lengths = source.lengths()
    assert lengths.dtype == np.int32 and lengths.shape == (NUM_RECORDS,)
    for number, length in enumerate(lengths):
        sample = source.sample(number)
        assert length == len(sample.input_ids) + 6 * sample.num_images
    with pytest.raises(ValueError, match=r"use data\.tokens=cached"):
        ShardSource(shards, turns()).lengths()


def test_patches_are_several_rows_of_a_picture_that_keep_their_norms(tmp_path):
    directory = write(tmp_path / "set", records_with_counts(), rows_per_image=3)
    online = ShardSource(directory, turns(tokens_per_image=2))
    cached = ShardSource(directory, turns(tokens_per_image=2), token_root=tmp_path / "tokens")
    assert_equal_batches(cached.batch(range(NUM_RECORDS)), online.batch(range(NUM_RECORDS)))
    stored = np.concatenate(list(online.reader.iter_rows()))
    seen = online.batch(range(NUM_RECORDS)).visual
    assert seen.shape == (len(stored) // 3, 3, DIM)
    assert np.array_equal(seen.reshape(-1, DIM).numpy(), stored.astype(np.float32))
    sample = cached.sample(4)
    assert cached.lengths()[4] == len(sample.input_ids) + 2 * (2 * 3 - 1)
    noise = Disturbed(GaussianNoise(std=0.1))
    with pytest.raises(ValueError, match=r"3 rows per picture \(patches\).*pooled"):
        ShardSource(directory, turns(), alignment=noise)


def files(directory):
    return {p.name: p.read_bytes() for p in directory.iterdir() if p.suffix != ".json"}


def test_the_number_of_processes_and_of_parts_changes_no_byte(shards, tmp_path, monkeypatch):
    source = ShardSource(shards, turns())
    whole = build_tokens(source, tmp_path / "whole", num_workers=0)
    monkeypatch.setattr(tokens, "PART_RECORDS", 5)
    several = build_tokens(source, tmp_path / "several", num_workers=2)
    assert files(whole.directory) == files(several.directory)
    assert not (several.directory / "parts").exists()


def test_a_killed_build_goes_on_with_the_first_missing_part(shards, tmp_path, small_parts):
    source = ShardSource(shards, turns())
    expected = build_tokens(source, tmp_path / "expected", num_workers=0)

    class Dies(ShardSource):
        def encode(self, numbers):
            if numbers[0] >= 10:
                os.kill(os.getpid(), signal.SIGKILL)
            return super().encode(numbers)

    process = multiprocessing.get_context("fork").Process(
        target=build_tokens,
        args=(Dies(shards, turns()), tmp_path / "tokens"),
        kwargs={"num_workers": 0},
    )
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    (directory,) = (tmp_path / "tokens").iterdir()
    assert len(list((directory / "parts").glob("*.npz"))) == 2
    assert not (directory / "tokens.json").exists()

    asked = []

    class Tells(ShardSource):
        def encode(self, numbers):
            asked.extend(numbers)
            return super().encode(numbers)

    resumed = build_tokens(Tells(shards, turns()), tmp_path / "tokens", num_workers=0)
    assert asked == list(range(10, NUM_RECORDS))
    assert files(resumed.directory) == files(expected.directory)


class Slow(ShardSource):
    """Takes notes of what it is asked for, and its time."""

    notes: Path

    def encode(self, numbers):
        with self.notes.open("a") as file:
            file.write(f"{numbers[0]}\n")
        time.sleep(0.05)
        return super().encode(numbers)


def test_two_builds_at_once_do_the_work_once(shards, tmp_path, small_parts):
    source = Slow(shards, turns())
    source.notes = tmp_path / "notes"
    fork = multiprocessing.get_context("fork")
    builders = [
        fork.Process(
            target=build_tokens, args=(source, tmp_path / "tokens"), kwargs={"num_workers": 0}
        )
        for _ in range(3)
    ]
    for builder in builders:
        builder.start()
    for builder in builders:
        builder.join(60)
    assert [builder.exitcode for builder in builders] == [0, 0, 0]
    assert source.notes.read_text().split() == [str(first) for first in range(0, NUM_RECORDS, 5)]


def test_what_changes_the_tokens_gets_another_cache(shards, tmp_path):
    root = tmp_path / "tokens"

    def name(directory=shards, encoder=None, **options):
        source = ShardSource(directory, encoder or turns(), token_root=root, **options)
        return source.tokens.directory.name

    first = name()
    assert name() == first and name(visual="zero") == first and name(cache_blocks=1) == first
    other_chat = turns().tokenizer.chat_template.replace("\n", " ")
    others = {
        name(encoder=turns("vicuna_v1")),
        name(encoder=turns(max_length=500)),
        name(encoder=turns(tokens_per_image=2)),
        name(encoder=TurnEncoder(bpe_tokenizer(bos=True), "chat")),
        name(encoder=TurnEncoder(bpe_tokenizer(chat_template=other_chat), "chat")),
        name(captions=Controls(max_caption_words=2)),
        name(captions=Controls(max_caption_sentences=1)),
        name(caption_prompt="Say it."),
        name(write(tmp_path / "other", records_with_counts(), seed=1)),
    }
    assert name(captions=Controls(caption_length="long", num_samples=1)) == first
    assert len(others) == 9 and first not in others
    padded = turns().tokenizer
    padded.pad_token = "</s>"
    padded(["a", "a cat"], padding=True)  # leaves its padding in the tokenizer
    try:
        assert name() == first
    finally:
        padded.pad_token = None


def test_records_that_cannot_be_encoded_are_named_before_training(tmp_path, small_parts):
    entries = list(records_with_counts())
    entries[7] = (talk("one mark, two pictures", 1, "Hm."), 2)
    entries[12] = (Record(id="nothing", metadata={"a": 1}), 1)
    directory = write(tmp_path / "set", entries)
    limited = turns(max_length=60, tokens_per_image=40)
    with pytest.raises(ValueError, match=r"of 23 records cannot be encoded") as caught:
        ShardSource(directory, limited, token_root=tmp_path / "tokens")
    assert "record 'one mark, two pictures'" in str(caught.value)
    assert "room for 1 of its 2 pictures" in str(caught.value)
    (rejected,) = (tmp_path / "tokens").glob("*/rejected.jsonl")
    lines = [json.loads(line) for line in rejected.read_text().splitlines()]
    assert {line["id"] for line in lines} >= {"talk 4", "nothing", "one mark, two pictures"}
    assert str(caught.value).startswith(f"{len(lines)} of 23")
    online = ShardSource(directory, limited)
    for line in lines:
        named = re.escape(f"record {line['id']!r}: {line['reason']}")
        with pytest.raises(ValueError, match=f"^{named}$"):
            online.sample(line["number"])
    with pytest.raises(ValueError, match="cannot be encoded"):  # and again, from the same parts
        ShardSource(directory, limited, token_root=tmp_path / "tokens")


@pytest.mark.parametrize("name", ["tokens.i32", "starts.i64", "ids.bin", "lengths.i32"])
def test_a_file_that_was_copied_in_part_is_refused(shards, tmp_path, name):
    directory = build_tokens(ShardSource(shards, turns()), tmp_path, num_workers=0).directory
    path = directory / name
    os.truncate(path, path.stat().st_size - 1)
    with pytest.raises(ValueError, match=rf"{name}: \d+ bytes, \d+ were written; delete"):
        TokenCache(directory)
    path.unlink()
    with pytest.raises(ValueError, match=f"{name}: 0 bytes"):
        build_tokens(ShardSource(shards, turns()), tmp_path)


def test_tokens_behind_the_range_of_32_bits_are_found(tmp_path):
    """A sparse file of 2^31 + 8 tokens, of which the last record has three."""
    far = 2**31 + 5
    starts = np.array([[0, 0, 0], [far, 1, 0], [far + 3, 2, 0]], np.int64)
    (tmp_path / "starts.i64").write_bytes(starts.tobytes())
    (tmp_path / "lengths.i32").write_bytes(np.array([0, 3], np.int32).tobytes())
    (tmp_path / "ids.bin").write_bytes(b"ab\0")
    with (tmp_path / "tokens.i32").open("wb") as file:
        file.seek(4 * far)
        file.write(np.array([10, 13, 15], np.int32).tobytes())
    about = {"num_records": 2, "num_tokens": far + 3, "num_id_bytes": 2}
    (tmp_path / "tokens.json").write_text(json.dumps(about))
    batch = TokenCache(tmp_path).batch(np.array([1]))
    assert batch.ids == ["b"] and batch.input_ids.tolist() == [[5, 6, 7]]
    assert batch.labels.tolist() == [[-100, 6, 7]]


def test_a_cache_goes_to_workers_by_its_path(shards, tmp_path):
    source = ShardSource(shards, turns(), token_root=tmp_path / "tokens")
    copy = pickle.loads(pickle.dumps(source.tokens))
    assert_equal_batches(copy.batch(np.arange(5)), source.tokens.batch(np.arange(5)))
    assert len(pickle.dumps(source.tokens)) < 500
    assert isinstance(copy, TokenCache) and len(copy) == NUM_RECORDS
    moved = pickle.loads(pickle.dumps(source))
    assert_equal_batches(moved.batch([3, 4, 22]), source.batch([3, 4, 22]))


def test_slots_survive_the_packing_of_ids_and_targets(shards, tmp_path):
    source = ShardSource(shards, turns(), token_root=tmp_path / "tokens")
    ids = source.batch(range(NUM_RECORDS)).input_ids
    counts = [count for _, count in records_with_counts()]
    assert (ids == IMAGE_SLOT).sum(1).tolist() == counts
    assert source.tokens.num_pictures == sum(counts)
    assert source.tokens.num_images(np.arange(NUM_RECORDS)).tolist() == counts
