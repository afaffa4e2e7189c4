"""LLM2CLIP's stored text vectors: the adapter's rows, their captions, and what is refused."""

import io
import json
import tarfile

import numpy as np
import pytest
import torch

from revision.conversion import import_llm2clip_tars
from revision.encoders.llm2clip import load_llm2clip
from revision.shards import ShardReader, verify
from tests.tiny_llm2clip import DIM, save_parts

WIDTH = 24
FIELD = "shortSV_captions"


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    return save_parts(tmp_path_factory.mktemp("parts"))


@pytest.fixture(scope="module")
def encoder(parts):
    return load_llm2clip(**parts, with_text=False)


def write_tar(path, members):
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def vector(i):
    return np.random.default_rng([abs(i), i < 0]).normal(size=WIDTH).astype(np.float32) * 30


def write_pair(directory, name, numbers, captions=None, contents=None):
    """Pictures with captions, and the vectors of both fields beside them."""
    directory.mkdir(exist_ok=True)
    pictures, vectors = [], []
    for i in numbers:
        caption = (captions or {}).get(i, f"caption {i}")
        fields = {FIELD: caption, "longSV_captions": [f"a long caption {i}"]}
        pictures += [(f"{i:04}.jpg", b"jpg"), (f"{i:04}.json", json.dumps(fields).encode())]
        content = (contents or {}).get(i, vector(i).tobytes())
        vectors += [(f"{i:04}.longSV_captions", vector(-i).tobytes()) if i else ("x.txt", b"")]
        vectors += [(f"{i:04}.{FIELD}", content)]
    write_tar(directory / f"{name}.tar", pictures)
    write_tar(directory / f"{name}_text_embeddings.tar", vectors)


def stored(directory):
    reader = ShardReader(directory)
    records = [record for block in range(len(reader.blocks)) for record in reader.records(block)]
    return np.concatenate(list(reader.iter_rows())), records


def run(directory, encoder, out="out", **options):
    return import_llm2clip_tars(directory, directory.parent / out, encoder=encoder, **options)


def test_rows_are_the_adapted_vectors_with_their_captions(tmp_path, encoder):
    write_pair(tmp_path / "in", "00000", range(5))
    write_pair(tmp_path / "in", "00001", range(5, 8))
    header = run(tmp_path / "in", encoder, rows_per_shard=3)
    assert (header.num_rows, header.dim, header.dtype, len(header.shards)) == (8, DIM, "float16", 3)
    assert header.encoder == encoder.identity()
    rows, records = stored(tmp_path / "out")
    pooled = torch.from_numpy(np.stack([vector(i) for i in range(8)]))
    np.testing.assert_allclose(rows, encoder.adapted(pooled).numpy(), atol=5e-4)
    assert [(r.id, r.text) for r in records] == [(f"{i:04}", f"caption {i}") for i in range(8)]
    verify(tmp_path / "out")


def test_the_other_field_has_its_own_vectors_and_captions(tmp_path, encoder):
    write_pair(tmp_path / "in", "00000", range(1, 4))
    run(tmp_path / "in", encoder, field="longSV_captions")
    rows, records = stored(tmp_path / "out")
    pooled = torch.from_numpy(np.stack([vector(-i) for i in range(1, 4)]))
    np.testing.assert_allclose(rows, encoder.adapted(pooled).numpy(), atol=5e-4)
    assert records[0].text == "a long caption 1"


def test_what_cannot_be_used_is_listed_with_its_reason(tmp_path, encoder):
    captions = {1: "", 7: ["one", "two"], 3: ["one"]}
    contents = {
        4: b"1234",
        2: vector(2).tobytes() * 9,
        5: np.full(WIDTH, np.nan, np.float32).tobytes(),
    }
    write_pair(tmp_path / "in", "00000", range(8), captions, contents)
    write_pair(tmp_path / "in", "00001", [6])
    header = run(tmp_path / "in", encoder)
    assert (header.num_rows, header.num_rejected) == (3, 6)
    lines = (tmp_path / "out" / "quarantine.jsonl").read_text().splitlines()
    reasons = {(line["id"], line["reason"].split(",")[0]) for line in map(json.loads, lines)}
    assert reasons == {
        ("0001", f"empty caption '{FIELD}'"),
        ("0002", "97 bytes or more"),
        ("0007", f"2 captions in '{FIELD}'"),
        ("0004", "4 bytes"),
        ("0005", "vector is zero or not finite"),
        ("0006", "duplicate id: an earlier vector has it"),
    }
    assert [record.text for record in stored(tmp_path / "out")[1]] == [
        "caption 0",
        "one",
        "caption 6",
    ]


def test_a_killed_import_goes_on_at_the_missing_shard(tmp_path, encoder):
    write_pair(tmp_path / "in", "00000", range(9), {4: ""})
    run(tmp_path / "in", encoder, rows_per_shard=4)
    expected = {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()}
    (tmp_path / "out" / "header.json").unlink()
    (tmp_path / "out" / "00001.tar").unlink()
    run(tmp_path / "in", encoder, rows_per_shard=4)
    assert {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()} == expected


def test_refusals(tmp_path, encoder, parts):
    with pytest.raises(ValueError, match=r"no \*_text_embeddings\.tar"):
        run(tmp_path, encoder)
    write_pair(tmp_path / "in", "00000", range(3))
    with pytest.raises(ValueError, match="field is one of shortSV_captions, longSV_captions"):
        run(tmp_path / "in", encoder, field="raw")
    other = load_llm2clip(**parts, with_text=False, template="none")
    with pytest.raises(ValueError, match="template=llama3_user, the encoder has template=none"):
        run(tmp_path / "in", other)
    run(tmp_path / "in", encoder)
    with pytest.raises(ValueError, match="field"):
        run(tmp_path / "in", encoder, field="longSV_captions")
    path = tmp_path / "in" / "00000_text_embeddings.tar"
    path.write_bytes(path.read_bytes()[:1500])
    with pytest.raises(ValueError, match=r"00000_text_embeddings\.tar: truncated tar"):
        run(tmp_path / "in", encoder, out="cut")
    (tmp_path / "in" / "00000.tar").unlink()
    with pytest.raises(ValueError, match=r"00000\.tar is not there: it holds the captions"):
        run(tmp_path / "in", encoder, out="alone")
