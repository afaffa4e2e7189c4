"""Caption controls of training: the rule of embed.py, judged once; nothing is read without them."""

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest

from revision.captions import Controls, select
from revision.captions.selection import SELECTION_NAME
from revision.data.record_turns import record_turns
from revision.data.schedule import Schedule
from revision.data.selected import select_records
from revision.data.shard_source import ShardSource
from revision.data.turn_encoder import TurnEncoder
from revision.data.visual_datamodule import VisualDataModule
from revision.records import Record, Turn
from revision.shards import ShardWriter, write_header
from tests.data.test_datamodule import scheduled
from tests.encoders.test_selected import embed, encoder, ids, pairs
from tests.feature_sets import ENCODER
from tests.tiny_models import bpe_tokenizer

__all__ = ["encoder", "pairs"]  # fixtures

WORDS = "a red blue cat dog mat runs sits on under tree".split()
COUNT = 90
TURNS = TurnEncoder(bpe_tokenizer(), "plain")
EVERY = [
    Controls(caption_length="short"),
    Controls(caption_length="medium", dedup="exact"),
    Controls(caption_length=[2, 3], caption_characters=[None, 12]),
    Controls(min_caption_words=3, num_samples=5, max_caption_words=2),
]


def records(seed=0, count=COUNT):
    rng = np.random.default_rng(seed)
    texts = [" ".join(rng.choice(WORDS, rng.integers(1, 8))) for _ in range(count)]
    return [Record(f"{seed}-{i}", text if i % 9 else None) for i, text in enumerate(texts)]


def with_turns(record):
    """What has no caption has a conversation."""
    turns = (Turn("user", "Is it?"), Turn("assistant", "It is."))
    return record if record.text else replace(record, conversations=turns)


def write(directory, entries):
    rows = np.random.default_rng(0).standard_normal((len(entries), 4)).astype(np.float32)
    for shard, start in enumerate(range(0, len(entries), 40)):
        with ShardWriter(directory, shard, 4, "float32") as writer:
            stop = min(start + 40, len(entries))
            for first in range(start, stop, 7):
                last = min(first + 7, stop)
                block = [with_turns(record) for record in entries[first:last]]
                writer.add_block(rows[first:last], block)
    write_header(
        directory, kind="text", encoder=ENCODER, source={"input": "x"}, num_shards=shard + 1
    )
    return directory


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    root = tmp_path_factory.mktemp("selected")
    write(root / "one", records())
    write(root / "two", records(1, 33))
    return root


def data(shards, index_root, **options):
    sources = {} if "mixture" in options else {"shards": shards / "one"}
    options = {"batch_size": 4, "shuffle_blocks": 2, "index_root": index_root} | options
    return VisualDataModule(turns=TURNS, **sources, **scheduled(options))


def numbers(module, epoch=0):
    return module.order.records(epoch, 0, module.order.length(epoch)).tolist()


def seen(module, steps, world_size=1, **plan):
    """The ids of each step, of all processes."""
    source = module.sources[0]
    found = []
    for step in steps:
        windows = [module.plan(rank, world_size).window(step) for rank in range(world_size)]
        batches = [source.batch(batch) for window in windows for batch in window]
        found.append(sorted(id for batch in batches for id in batch.ids if id))
    return found


@pytest.mark.parametrize("controls", EVERY)
def test_a_run_takes_what_the_filters_of_embed_keep(shards, tmp_path, controls):
    filters = replace(controls, num_samples=None)
    kept = select(iter(records()), filters).kept
    assert 0 < kept.sum() < COUNT
    module = data(shards, tmp_path, captions=replace(controls, num_samples=None))
    assert sorted(numbers(module)) == np.flatnonzero(kept).tolist()
    module = data(shards, tmp_path, captions=controls)
    assert set(numbers(module)) <= set(np.flatnonzero(kept).tolist())
    assert module.order.length(0) == (controls.num_samples or kept.sum())


@pytest.mark.parametrize(
    "controls", [Controls(caption_length="long"), Controls(dedup="exact", min_caption_words=2)]
)
def test_it_is_what_embed_would_have_embedded(encoder, pairs, tmp_path, controls):
    whole = embed(encoder, pairs, tmp_path / "all")
    some = embed(encoder, pairs, tmp_path / "some", controls=controls)
    module = VisualDataModule(
        turns=TURNS,
        shards=whole["text"],
        captions=controls,
        index_root=tmp_path,
        schedule=Schedule(batch_size=1),
    )
    names = ids(whole["text"])
    assert sorted(names[number] for number in numbers(module)) == sorted(ids(some["text"]))


class Refusing:
    """A source that must not be read."""

    def __len__(self):
        raise AssertionError

    records = data_identity = __len__


@pytest.mark.parametrize("controls", [Controls(), Controls(num_samples=3, max_caption_words=2)])
def test_nothing_is_read_or_written_without_a_filter(tmp_path, controls):
    assert select_records(Refusing(), controls, tmp_path) is None
    assert not list(tmp_path.iterdir())


def test_without_filters_the_order_is_as_it_was(shards, tmp_path):
    plain = data(shards, tmp_path)
    assert plain.order.kept is None
    assert numbers(data(shards, tmp_path, captions=Controls(max_caption_words=2))) == numbers(plain)
    assert sorted(numbers(plain)) == list(range(COUNT))


class Counted:
    """Counts how often a record is read."""

    def __init__(self, name="x"):
        self.name, self.reads = name, 0

    def __len__(self):
        return COUNT

    def records(self):
        for number in range(COUNT):
            self.reads += 1
            yield Record(str(number), "a cat " * (number % 4 + 1))

    def data_identity(self):
        return {"name": self.name}


def test_it_is_made_once_whoever_asks_and_for_every_cut_and_subset(tmp_path):
    source = Counted()
    with ThreadPoolExecutor(3) as pool:
        asked = [
            pool.submit(select_records, source, Controls(caption_length="long", **more), tmp_path)
            for more in ({}, {"num_samples": 2}, {"max_caption_sentences": 1})
        ]
    found = [each.result() for each in asked]
    assert source.reads == COUNT
    assert all((each.kept == found[0].kept).all() for each in found)
    select_records(source, Controls(caption_length="short"), tmp_path)
    select_records(Counted("y"), Controls(caption_length="long"), tmp_path)
    assert len(list(tmp_path.iterdir())) == 3 and source.reads == 2 * COUNT


def test_one_that_was_killed_is_made_again(tmp_path):
    source, controls = Counted(), Controls(caption_length="long")
    kept = select_records(source, controls, tmp_path).kept
    (directory,) = tmp_path.iterdir()
    (directory / SELECTION_NAME).unlink()
    (directory / "selection.npy").write_bytes(b"half of")
    again = select_records(source, controls, tmp_path)
    assert (again.kept == kept).all()
    assert isinstance(again.bits.base, np.memmap)  # no process holds a copy


@pytest.mark.parametrize("kind", ["plain", "packed", "mixture"])
def test_a_run_with_a_filter_resumes_and_steps_alike_for_two_processes(shards, tmp_path, kind):
    options = {"captions": Controls(caption_length=[2, 5], dedup="exact"), "epochs": 2}
    if kind == "packed":
        options |= {"tokens": "cached", "token_root": tmp_path / "tokens", "pack_tokens": 40}
    if kind == "mixture":
        parts = [{"shards": shards / "one", "num_samples": 20}, {"shards": shards / "two"}]
        options["mixture"] = parts
    whole = data(shards, tmp_path, accumulate=2, **options)
    steps = range(whole.num_steps())
    expected = seen(whole, steps)
    accumulate = {"accumulate": 1} if kind == "packed" else {"accumulate": 2, "batch_size": 2}
    assert seen(data(shards, tmp_path, **options | accumulate), steps, world_size=2) == expected
    middle = len(steps) // 3
    rest = data(shards, tmp_path, accumulate=2, **options)
    rest.start = whole.plan(0, 1).place(middle)
    assert seen(rest, steps[middle:]) == expected[middle:]
    if kind == "mixture":
        taken = {id for step in expected for id in step}
        one = set(np.flatnonzero(select(iter(records()), options["captions"]).kept).tolist())
        two = np.flatnonzero(select(iter(records(1, 33)), options["captions"]).kept).tolist()
        assert {id for id in taken if id[0] == "1"} == {f"1-{n}" for n in two}
        first = {int(id[2:]) for id in taken if id[0] == "0"}
        assert first <= one and len(first) == 20


def test_held_out_data_is_never_filtered(shards, tmp_path, capsys):
    module = data(
        shards, tmp_path, captions=Controls(caption_length="long"), val_shards=shards / "two"
    )
    assert module.num_steps() < COUNT // 4
    assert sum(len(batch.ids) for batch in module.held_out_batches()) == 33
    told = capsys.readouterr().out.splitlines()
    assert told[0].startswith("data.shards: ")
    assert told[0].endswith("by caption_length") and "of 90 records kept (80 have a cap" in told[0]
    assert len(told) == 1


def test_captions_are_cut_to_sentences_also_where_they_are_turns():
    text = "A dog runs. It is brown. It barks."
    cut = Controls(max_caption_sentences=2, max_caption_words=4)
    for plain in (True, False):
        turns = record_turns(Record("a", text), 0, plain=plain, captions=cut)
        assert turns[1].text == "A dog runs."
    answered = Record("a", text, (), (Turn("user", "Say."), Turn("assistant", text)))
    assert record_turns(answered, 0, plain=False, captions=cut)[1].text == "A dog runs."
    other = replace(answered, text="Another text. And more.")
    assert record_turns(other, 0, plain=False, captions=cut)[1].text == text


def test_what_was_removed_is_listed(shards, tmp_path):
    source = ShardSource(shards / "one", TURNS)
    assert list(source.records()) == [source.record(number) for number in range(COUNT)]
    select_records(source, Controls(min_caption_words=3), tmp_path)
    (directory,) = tmp_path.iterdir()
    lines = [json.loads(line) for line in (directory / "removed.jsonl").open()]
    short = [record.id for record in records() if record.text and len(record.text.split()) < 3]
    assert [line["id"] for line in lines] == short
