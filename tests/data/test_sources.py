"""Sources: the right row beside the right words, unit norm, and the two controls."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from revision.alignment.noise import Disturbed, GaussianNoise
from revision.captions import Controls
from revision.data.image_source import ImageSource
from revision.data.index import build_index
from revision.data.record_turns import check_record, record_turns
from revision.data.samples import IMAGE_SLOT, collate
from revision.data.shard_source import ShardSource
from revision.data.turn_encoder import TurnEncoder
from revision.records import Record, Turn
from revision.shards import ShardWriter, write_header
from tests.feature_sets import cloud, damage, write_set
from tests.tiny_encoders import tiny_composed
from tests.tiny_models import bpe_tokenizer

DIM = 5


class Negate:
    """An alignment that no keys matter to."""

    is_random, normalize = False, True

    def __call__(self, rows, keys):
        return -rows.float()


def talk(id, *answers, marks=1):
    first = "<image>\n" * marks + "What is it?"
    turns = [t for a in answers for t in (Turn("user", first), Turn("assistant", a))]
    return Record(id=id, conversations=tuple(turns[:2]))


RECORDS = [
    (Record(id="0", text="a red cat on a mat"), 1),
    (talk("1", "text only", marks=0), 0),
    (talk("2", "two of them", marks=2), 2),
    (talk("3", "a cat"), 1),
    (Record(id="4", text="a blue mat"), 1),
]


def rows_of(number, count):
    rows = np.zeros((count, DIM))
    rows[:, number] = 1 + np.arange(count)
    rows[:, (number + 1) % DIM] = 0.25
    return rows


@pytest.fixture
def shards(tmp_path):
    """Two shards, three blocks; row of record k points (mostly) along axis k."""
    blocks = [[RECORDS[:2], RECORDS[2:4]], [RECORDS[4:]]]
    number = 0
    for shard, shard_blocks in enumerate(blocks):
        with ShardWriter(tmp_path / "set", shard, DIM, "float16") as writer:
            for block in shard_blocks:
                rows = [rows_of(number + i, count) for i, (_, count) in enumerate(block)]
                number += len(block)
                records, counts = zip(*block, strict=True)
                writer.add_block(np.concatenate(rows), list(records), list(counts))
    write_header(tmp_path / "set", kind="image", encoder={}, source={}, num_shards=2)
    return tmp_path / "set"


def source(shards, template="chat", **options):
    return ShardSource(shards, TurnEncoder(bpe_tokenizer(), template), **options)


def test_each_record_gets_its_own_rows_as_unit_vectors(shards):
    data = source(shards)
    assert data.block_sizes == [2, 2, 1]
    for number, (record, count) in enumerate(RECORDS):
        sample = data.sample(number)
        assert sample.id == record.id
        assert sample.num_images == count == int((sample.input_ids == IMAGE_SLOT).sum())
        if count:
            assert sample.visual.dtype == torch.float32
            assert torch.allclose(sample.visual.norm(dim=-1), torch.ones(count, 1), atol=1e-6)
            assert (sample.visual[:, 0].argmax(-1) == number).all()
            expected = rows_of(number, count).astype(np.float16).astype(np.float64)
            expected /= np.linalg.norm(expected, axis=1, keepdims=True)
            assert np.allclose(sample.visual[:, 0], expected, atol=1e-7)


def test_an_alignment_is_applied_when_rows_are_read(shards):
    flipped = source(shards, alignment=Negate()).sample(2)
    assert torch.equal(flipped.visual, -source(shards).sample(2).visual)


def test_a_small_cache_changes_nothing(shards):
    small, large = source(shards, cache_blocks=1), source(shards)
    for number in [0, 4, 2, 1, 3, 0]:
        assert torch.equal(small.sample(number).input_ids, large.sample(number).input_ids)
    assert len(small._cache) == 1


def test_blind_and_shuffled_controls_change_only_what_is_seen(shards):
    real, blind, other = (source(shards, visual=v) for v in ("real", "zero", "shuffled"))
    for number, (_, count) in enumerate(RECORDS):
        samples = [data.sample(number) for data in (real, blind, other)]
        assert len({tuple(s.input_ids.tolist()) for s in samples}) == 1
        if count:
            assert samples[1].visual.shape == samples[2].visual.shape == samples[0].visual.shape
            assert samples[1].visual.count_nonzero() == 0
            assert (samples[2].visual[:, 0].argmax(-1) != number).all()
            assert torch.equal(samples[2].visual, other.sample(number).visual)


def text(data, sample):
    return data.turns.tokenizer.decode([i for i in sample.labels.tolist() if i >= 0])


def test_captions_are_cut_to_their_first_words(shards):
    captions = source(shards, "plain", captions=Controls(max_caption_words=3))
    assert text(captions, captions.sample(0)) == "a red cat\n"
    assert text(captions, captions.sample(4)) == "a blue mat\n"
    whole = source(shards, "plain")
    assert text(whole, whole.sample(0)) == "a red cat on a mat\n"


def test_a_caption_in_a_chat_is_asked_for(shards):
    data = source(shards, "chat", caption_prompt="Say what you see.")
    sample = data.sample(0)
    asked = data.turns.tokenizer.decode([i for i in sample.input_ids.tolist() if i >= 0])
    assert "Say what you see." in asked
    assert text(data, sample) == "a red cat on a mat<|im_end|>"


def test_plain_takes_the_text_else_the_first_answer():
    both = Record(id="a", text="caption", conversations=talk("a", "answer").conversations)
    assert record_turns(both, 1, plain=True)[1].text == "caption"
    assert record_turns(talk("a", "answer"), 1, plain=True)[1].text == "answer"
    assert record_turns(both, 1, plain=False) == both.conversations
    with pytest.raises(ValueError, match="'a' has neither a text nor a conversation"):
        record_turns(Record(id="a"), 1, plain=True)


def test_an_empty_batch_is_one_sample_without_targets(shards):
    batch = source(shards).batch([])
    assert len(batch) == 1
    assert batch.num_targets == 0
    assert batch.visual is None


def test_an_unknown_control_is_refused(shards):
    with pytest.raises(ValueError, match="unknown visual='blind'; choose from"):
        source(shards, visual="blind")


@pytest.fixture
def pictures(tmp_path):
    for name, colour in [("red", "red"), ("blue", "blue"), ("green", "green")]:
        Image.new("RGB", (12, 9), colour).save(tmp_path / f"{name}.png")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    entries = [
        entry("r", "red.png"),
        entry("text", None),
        entry("two", ["red.png", "blue.png"]),
        entry("gone", "gone.png"),
        entry("broken", "broken.png"),
        entry("silent", "green.png", answer=None),
        entry("g", "green.png"),
    ]
    (tmp_path / "data.json").write_text(json.dumps(entries))
    return tmp_path


def entry(id, image, answer="It is a picture."):
    marks = 0 if image is None else 1 if isinstance(image, str) else len(image)
    turns = [{"from": "human", "value": "<image>\n" * marks + "What is it?"}]
    turns += [{"from": "gpt", "value": answer}] if answer else []
    return {"id": id, "conversations": turns} | ({"image": image} if image else {})


def image_source(pictures, **options):
    index = build_index(
        pictures / "data.json", pictures / "index", image_root=pictures, check=check_record
    )
    encoder = tiny_composed()
    turns = TurnEncoder(bpe_tokenizer(), "chat")
    return ImageSource(index, turns, image_root=pictures, encoder=encoder, **options)


def test_pictures_on_the_fly(pictures):
    data = image_source(pictures)
    assert [data.record(n).id for n in range(len(data))] == ["r", "text", "two", "g"]
    two = data.sample(2)
    for row, colour in enumerate(["red", "blue"]):
        pixels = data.encoder.image_inputs(Image.new("RGB", (12, 9), colour))
        assert torch.equal(two.pixels[row], pixels)
    assert data.sample(1).pixels is None
    batch = data.batch([0, 1, 2])
    assert batch.pixels.shape[0] == 3
    assert image_source(pictures, visual="zero").sample(2).visual.shape == (2, 1, data.encoder.dim)
    other = image_source(pictures, visual="shuffled").sample(0)
    assert not torch.equal(other.pixels, data.sample(0).pixels)


@pytest.mark.parametrize("visual", ["real", "zero", "shuffled"])
def test_pictures_with_cached_tokens_are_those_with_online_ones(pictures, visual):
    online = image_source(pictures, visual=visual)
    cached = image_source(pictures, visual=visual, token_root=pictures / "tokens")
    one, other = online.batch([2, 1, 0, 3]), cached.batch([2, 1, 0, 3])
    assert one.ids == other.ids and torch.equal(one.labels, other.labels)
    assert torch.equal(one.input_ids, other.input_ids)
    seen = "visual" if visual == "zero" else "pixels"
    assert torch.equal(getattr(one, seen), getattr(other, seen))
    assert cached.lengths().tolist() == one.lengths[[2, 1, 0, 3]].tolist()


def test_a_batch_is_its_samples_side_by_side(shards):
    noise = Disturbed(GaussianNoise(std=0.3))
    for options in ({}, {"alignment": Negate()}, {"alignment": noise}, {"visual": "shuffled"}):
        data = source(shards, **options)
        numbers = [4, 2, 1, 2, 0, 3]
        whole = data.batch(numbers, epoch=1)
        alone = collate([data.sample(number, epoch=1) for number in numbers])
        assert whole.ids == alone.ids and whole.window_targets == alone.window_targets
        for name in ("input_ids", "labels", "lengths", "visual"):
            assert torch.equal(getattr(whole, name), getattr(alone, name)), name


def test_blocks_know_their_shards(shards, pictures):
    assert source(shards).block_shards == [0, 0, 1]
    assert image_source(pictures).block_shards == [0]


def test_unusable_records_are_in_quarantine_with_the_reason(pictures):
    data = image_source(pictures)
    lines = (data.index.directory / "quarantine.jsonl").read_text().splitlines()
    reasons = {entry["id"]: entry["reason"] for entry in map(json.loads, lines)}
    assert set(reasons) == {"gone", "broken", "silent"}
    assert "missing image" in reasons["gone"]
    assert "unreadable image" in reasons["broken"]
    assert "no answer" in reasons["silent"]
    assert data.index.num_rejected == 3


def test_a_picture_that_breaks_later_names_its_record(pictures):
    data = image_source(pictures)
    (pictures / "red.png").write_bytes(b"gone bad")
    with pytest.raises(ValueError, match=r"record 'r': .*red.png.*; repair or remove it"):
        data.sample(0)


def test_wrong_number_of_slots_names_the_record(shards):
    data = source(shards)
    data.num_images = lambda numbers: np.full(len(numbers), 2)
    with pytest.raises(ValueError, match="record '3': it has 1 <image> marks and 2 images"):
        data.sample(3)


def test_a_picture_behind_the_limit_is_refused_not_lost(shards):
    turns = TurnEncoder(bpe_tokenizer(), "chat", max_length=12, tokens_per_image=6)
    data = ShardSource(shards, turns)
    with pytest.raises(
        ValueError, match=r"record '2': stage.max_length=12 has room for 1 of its 2 pictures"
    ):
        data.sample(2)
    assert data.sample(3).num_images == 1


@pytest.mark.parametrize("value", [0.0, np.nan, np.inf])
def test_a_row_without_a_direction_is_refused_with_its_address(tmp_path, value):
    directory = write_set(tmp_path / "set", cloud(0, 30, DIM), "text", block_rows=7, shard_rows=20)
    damage(directory, 23, value)
    data = source(directory, "plain")
    assert data.sample(22).visual.isfinite().all()
    with pytest.raises(ValueError, match=r"00001.tar: row 0 of record '23' has no direction"):
        data.sample(23)
