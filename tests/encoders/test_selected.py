"""Embedding what caption controls select: pairs, records of what was done, and resuming."""

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from revision.captions import Controls
from revision.encoders.embedding import OpenShard, embed_records
from revision.encoders.load import load_encoder
from revision.encoders.plan import Selector, Source
from revision.shards import ShardReader
from tests.encoders.test_embedding import OPTIONS, contents, rows_and_records
from tests.tiny_encoders import WORDS, save_clip
from tests.web_server import serving

TEXTS = [
    "a red cat",  # without a picture
    "A  red cat",  # equal to the first
    "a dog on the car",
    "b",
    "c d e f red green blue",
    "a small picture of the cat",
    None,  # a picture alone
    "a b c d",
    "   ",
    "e f e f",
]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return load_encoder(save_clip(tmp_path_factory.mktemp("clip")))


@pytest.fixture
def pairs(tmp_path):
    """Pictures with captions; the first record has none, the file of record 7 is missing."""
    random = np.random.default_rng(0)
    lines = []
    for i, text in enumerate(TEXTS):
        pixels = random.integers(0, 256, (20, 16 + i, 3), dtype=np.uint8)
        if i != 7:
            Image.fromarray(pixels).save(tmp_path / f"{i}.png")
        image = {"image": f"{i}.png"} if i else {}
        lines.append({"id": f"r{i}"} | image | ({"caption": text} if text else {}))
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def embed(encoder, input, out, **options):
    return embed_records(
        encoder, input=input, output_dir=out, image_root=input.parent, **OPTIONS | options
    )


def ids(directory):
    return [record.id for record in rows_and_records(directory)[1]]


def test_pairs_stay_pairs(encoder, pairs, tmp_path):
    controls = Controls(dedup="exact", min_caption_words=2)
    sets = embed(encoder, pairs, tmp_path / "out", controls=controls)
    assert ids(sets["text"]) == ["r0", "r2", "r4", "r5", "r7", "r9"]
    assert ids(sets["image"]) == ["r2", "r4", "r5", "r6", "r8", "r9"]  # 7 has no file
    headers = [ShardReader(sets[side]).header for side in ("text", "image")]
    about = headers[0].source["selection"]
    assert headers[1].source["selection"] == about
    assert about["controls"] == {"dedup": "exact", "min_caption_words": 2}
    assert about["removed"] == {"dedup": 1, "min_caption_words": 1}
    assert (about["num_entries"], about["num_kept"], about["num_captions"]) == (10, 8, 8)
    removed = [json.loads(line) for line in (sets["image"] / "removed.jsonl").open()]
    assert [(line["id"], line["control"]) for line in removed] == [
        ("r1", "dedup"),
        ("r3", "min_caption_words"),
    ]


def test_the_rows_are_those_of_the_whole_set(encoder, pairs, tmp_path):
    rows, names = by_id(embed(encoder, pairs, tmp_path / "all")["text"])
    whole = dict(zip(names, rows, strict=True))
    chosen = embed(encoder, pairs, tmp_path / "some", controls=Controls(caption_length="long"))
    rows, names = by_id(chosen["text"])
    assert 0 < len(names) < len(whole)
    for row, name in zip(rows, names, strict=True):
        np.testing.assert_allclose(row, whole[name], atol=1e-3)


def by_id(directory):
    rows, records = rows_and_records(directory)
    return rows, [record.id for record in records]


def test_a_remote_input_comes_once_however_often_it_is_read(tmp_path, monkeypatch):
    monkeypatch.setenv("REVISION_CACHE_DIR", str(tmp_path / "cache"))
    lines = "".join(json.dumps({"id": str(i), "caption": f"a {i}"}) + "\n" for i in range(50))
    with serving({"a.jsonl": lines.encode()}) as server:
        source = Source(f"{server.url}/a.jsonl", "text")
        selector = Selector(Controls(num_samples=20))
        selected = replace(source, selection=selector(source))
        assert len(list(source.entries())) == 50
        assert list(selected.entries()) == list(selected.entries())
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_the_header_holds_no_signature_of_an_address(encoder, tmp_path, monkeypatch):
    monkeypatch.setenv("REVISION_CACHE_DIR", str(tmp_path / "cache"))
    with serving({"a.jsonl": b'{"id": "a", "caption": "a red cat"}'}) as server:
        given = f"{server.url}/a.jsonl?X-Signature=secret"
        options = OPTIONS | {"modality": "text"}
        embed_records(encoder, input=given, output_dir=tmp_path / "out", **options)
    written = b"".join(p.read_bytes() for p in (tmp_path / "out").rglob("*") if p.is_file())
    assert b"a red cat" in written
    assert b"secret" not in written


def test_what_is_cut_is_embedded_and_stored_cut(encoder, pairs, tmp_path):
    sets = embed(encoder, pairs, tmp_path / "out", controls=Controls(max_caption_words=2))
    rows, records = rows_and_records(sets["text"])
    texts = {record.id: record.text for record in records}
    assert texts["r2"] == "a dog" and texts["r3"] == "b"
    row = rows[list(texts).index("r2")]
    expected = encoder.encode_texts(encoder.text_inputs(["a dog"]))[0]
    np.testing.assert_allclose(row, expected.numpy(), atol=1e-3)
    assert ShardReader(sets["text"]).header.source["selection"]["num_cut"] == 7


def test_lists_of_their_own_are_chosen_alike_by_equal_ids(encoder, tmp_path):
    random = np.random.default_rng(0)
    Image.fromarray(random.integers(0, 256, (20, 20, 3), dtype=np.uint8)).save(tmp_path / "0.png")
    images = [{"id": i, "image": "0.png"} for i in range(20)]
    texts = [{"id": i, "text": " ".join(random.choice(WORDS, 5))} for i in reversed(range(20))]
    path = tmp_path / "lists.json"
    path.write_text(json.dumps({"images": images, "texts": texts}))
    sets = embed(encoder, path, tmp_path / "out", controls=Controls(num_samples=6))
    assert sorted(ids(sets["image"])) == sorted(ids(sets["text"]))
    assert len(ids(sets["text"])) == 6


def test_nothing_is_selected_or_written_without_controls(encoder, pairs, tmp_path):
    sets = embed(encoder, pairs, tmp_path / "out", controls=Controls())
    assert "selection" not in ShardReader(sets["text"]).header.source
    assert not list(sets["text"].glob("selection*"))
    assert "r8" not in ids(sets["text"]) and "r1" in ids(sets["text"])


def test_a_killed_run_resumes_to_the_same_bytes(encoder, pairs, tmp_path, monkeypatch):
    options = {"controls": Controls(dedup="exact", num_samples=6), "rows_per_shard": 2}
    reference = embed(encoder, pairs, tmp_path / "undisturbed", **options)
    finish, finished = OpenShard.finish, []

    def die_after_one(shard):
        if finished:
            raise RuntimeError("killed")
        finish(shard)
        finished.append(shard.address.name)

    monkeypatch.setattr(OpenShard, "finish", die_after_one)
    with pytest.raises(RuntimeError, match="killed"):
        embed(encoder, pairs, tmp_path / "killed", **options)
    monkeypatch.setattr(OpenShard, "finish", finish)
    monkeypatch.setattr("revision.encoders.plan.select", None)  # it reads what it wrote
    resumed = embed(encoder, pairs, tmp_path / "killed", num_workers=2, **options)
    for side in ("image", "text"):
        assert contents(resumed[side]) == contents(reference[side])


def test_other_controls_are_refused_naming_them(encoder, pairs, tmp_path):
    embed(encoder, pairs, tmp_path / "out", controls=Controls(num_samples=6))
    for other in (Controls(num_samples=5), Controls(), None):
        with pytest.raises(ValueError, match=r"selection was \{'num_samples': 6\} and is now"):
            embed(encoder, pairs, tmp_path / "out", controls=other)
