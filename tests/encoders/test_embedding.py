"""Embedding: what stands in the shards, resuming, quarantine and refusals."""

import dataclasses
import io
import json
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image

from revision.encoders.embedding import embed_records
from revision.encoders.load import load_encoder
from revision.encoders.open_shard import OpenShard
from revision.encoders.plan import Plan, Source
from revision.encoders.work import Batch, EmbeddingDataset, encoder_call
from revision.records import load_image
from revision.shards import ShardReader, verify
from tests.tiny_encoders import WORDS, save_clip

NUM_IMAGES = 11
OPTIONS = {"batch_size": 2, "rows_per_shard": 4, "num_workers": 0, "accelerator": "cpu"}
OPTIONS |= {"devices": 1}


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return load_encoder(save_clip(tmp_path_factory.mktemp("clip")))


@pytest.fixture
def input(tmp_path):
    """Eleven pictures and eleven texts of unequal length, unpaired."""
    random = np.random.default_rng(0)
    (tmp_path / "pictures").mkdir()
    images, texts = [], []
    for i in range(NUM_IMAGES):
        pixels = random.integers(0, 256, (20, 16 + i, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "pictures" / f"{i}.png")
        images.append({"id": i, "image": f"{i}.png", "source": "test"})
        texts.append({"id": f"t{i}", "text": " ".join(random.choice(WORDS, 1 + 7 * i % 9))})
    path = tmp_path / "data.json"
    path.write_text(json.dumps({"images": images, "texts": texts}))
    return path


def embed(encoder, input, output_dir, **options):
    root = input.parent / "pictures"
    options = OPTIONS | options
    return embed_records(encoder, input=input, output_dir=output_dir, image_root=root, **options)


def rows_and_records(directory):
    reader = ShardReader(directory)
    blocks = range(len(reader.blocks))
    rows = np.concatenate([reader.features(b) for b in blocks])
    return rows, [record for b in blocks for record in reader.records(b)]


def contents(directory):
    return {path.name: path.read_bytes() for path in sorted(directory.iterdir())}


def test_every_row_is_the_encoders_and_stands_beside_its_record(encoder, input, tmp_path):
    sets = embed(encoder, input, tmp_path / "out")
    rows, records = rows_and_records(sets["text"])
    assert [r.id for r in records] == [f"t{i}" for i in range(NUM_IMAGES)]
    alone = [encoder.encode_texts(encoder.text_inputs([r.text]))[0] for r in records]
    np.testing.assert_allclose(rows, torch.stack(alone).numpy(), atol=1e-3)  # float16
    rows, records = rows_and_records(sets["image"])
    assert [r.id for r in records] == [str(i) for i in range(NUM_IMAGES)]
    assert records[3].metadata == {"source": "test"}
    for row, record in zip(rows, records, strict=True):
        image = load_image(record.images[0], image_root=input.parent / "pictures")
        expected = encoder.encode_images(encoder.image_inputs(image)[None])[0]
        np.testing.assert_allclose(row, expected.numpy(), atol=1e-3)


def test_header_says_what_the_set_is(encoder, input, tmp_path):
    sets = embed(encoder, input, tmp_path / "out")
    header = ShardReader(sets["image"]).header
    assert (header.kind, header.dim, header.dtype) == ("image", encoder.dim, "float16")
    assert header.unit_norm
    assert header.encoder == encoder.identity()
    assert [shard.num_records for shard in header.shards] == [4, 4, 3]
    assert header.source["input"] == str(input)
    assert len(header.source["input_sha256"]) == 64
    assert verify(sets["image"]) == verify(sets["text"]) == []


@pytest.mark.parametrize(("dtype", "bound"), [("float16", 5e-4), ("float32", 1e-7)])
def test_rows_have_unit_norm_in_the_stored_dtype(encoder, input, tmp_path, dtype, bound):
    sets = embed(encoder, input, tmp_path / "out", dtype=dtype)
    rows, _ = rows_and_records(sets["text"])
    assert rows.dtype == dtype
    np.testing.assert_allclose(np.linalg.norm(rows.astype(float), axis=1), 1, atol=bound)


def test_shards_do_not_depend_on_the_number_of_workers(encoder, input, tmp_path):
    reference = embed(encoder, input, tmp_path / "0", num_workers=0)
    several = embed(encoder, input, tmp_path / "2", num_workers=2)
    for side in ("image", "text"):
        assert contents(several[side]) == contents(reference[side])


def test_a_killed_run_resumes_to_the_same_bytes(encoder, input, tmp_path, monkeypatch):
    reference = embed(encoder, input, tmp_path / "undisturbed")
    finish, finished = OpenShard.finish, []

    def die_after_one(shard):
        if finished:
            raise RuntimeError("killed")
        finish(shard)
        finished.append(shard.address.name)

    monkeypatch.setattr(OpenShard, "finish", die_after_one)
    with pytest.raises(RuntimeError, match="killed"):
        embed(encoder, input, tmp_path / "killed")
    assert {p.name for p in (tmp_path / "killed" / "images").iterdir()} == {
        "00000.tar",
        "plan.json",
    }
    monkeypatch.setattr(
        OpenShard, "finish", lambda shard: (finished.append(shard.address.name), finish(shard))
    )
    resumed = embed(encoder, input, tmp_path / "killed")
    assert finished == [
        "00000.tar",
        "00001.tar",
        "00002.tar",
        "00000.tar",
        "00001.tar",
        "00002.tar",
    ]
    for side in ("image", "text"):
        assert contents(resumed[side]) == contents(reference[side])


def test_a_finished_set_is_left_alone(encoder, input, tmp_path, monkeypatch, capsys):
    embed(encoder, input, tmp_path / "out")
    monkeypatch.setattr("revision.encoders.embedding.L.Trainer", None)
    embed(encoder, input, tmp_path / "out")
    assert capsys.readouterr().out.count(f"{NUM_IMAGES} records; 0 rejected") == 4


def test_a_killed_run_that_only_lacks_its_header_gets_it(encoder, input, tmp_path):
    sets = embed(encoder, input, tmp_path / "out")
    before = contents(sets["text"])
    (sets["text"] / "header.json").unlink()
    embed(encoder, input, tmp_path / "out")
    assert contents(sets["text"]) == before


def test_a_directory_begun_differently_is_refused_naming_the_difference(encoder, input, tmp_path):
    out = tmp_path / "out"
    embed(encoder, input, out)
    with pytest.raises(ValueError, match="dtype was 'float16' and is now 'float32'"):
        embed(encoder, input, out, dtype="float32")
    with pytest.raises(ValueError, match="rows_per_shard was 4 and is now 5"):
        embed(encoder, input, out, rows_per_shard=5)
    other = load_encoder(save_clip(tmp_path / "clip"), dtype="bfloat16")
    with pytest.raises(ValueError, match=r"encoder was .*float32.* and is now .*bfloat16"):
        embed(other, input, out)
    input.write_text(input.read_text().replace('"source": "test"', '"source": "else"'))
    with pytest.raises(ValueError, match="input_sha256 was"):
        embed(encoder, input, out)


def test_bad_input_goes_to_quarantine_and_nothing_is_lost(encoder, input, tmp_path, capsys):
    fields = json.loads(input.read_text())
    (input.parent / "pictures" / "2.png").write_bytes(b"not a picture")
    (input.parent / "pictures" / "5.png").unlink()
    fields["images"][7]["id"] = None
    fields["texts"][4]["text"] = "  "
    fields["texts"][6]["id"] = "t0"
    input.write_text(json.dumps(fields))
    sets = embed(encoder, input, tmp_path / "out", num_workers=2)
    rows, records = rows_and_records(sets["image"])
    assert [r.id for r in records] == ["0", "1", "3", "4", "6", "8", "9", "10"]
    assert len(rows) == 8
    assert np.linalg.norm(rows.astype(float), axis=1).min() > 0.99
    rejected = [json.loads(x) for x in (sets["image"] / "quarantine.jsonl").open()]
    assert [(r["id"], r["reason"].split(": ")[1][:16]) for r in rejected[:2]] == [
        ("2", "unreadable image"[:16]),
        ("5", "missing image, n"),
    ]
    assert rejected[2]["reason"] == "missing id"
    rejected = [json.loads(x) for x in (sets["text"] / "quarantine.jsonl").open()]
    assert [r["reason"].split(":")[0] for r in rejected] == ["empty text", "duplicate id"]
    printed = capsys.readouterr().out
    assert "8 records; 3 rejected, see" in printed
    assert "9 records; 2 rejected, see" in printed


def test_a_shard_of_nothing_but_bad_entries_is_still_a_shard(encoder, input, tmp_path):
    for i in range(4, 8):
        (input.parent / "pictures" / f"{i}.png").unlink()
    sets = embed(encoder, input, tmp_path / "out", modality="image")
    assert [s.num_rows for s in ShardReader(sets["image"]).header.shards] == [4, 0, 3]


def test_unusable_features_are_rejected_not_stored(encoder, input, tmp_path, monkeypatch):
    def broken(self, batch, *_):
        rows = batch.encode(encoder_call(encoder, batch.side))
        rows[1] = 0 if batch.shard else float("nan")
        return rows

    monkeypatch.setattr("revision.encoders.embedding.EmbeddingModule.predict_step", broken)
    sets = embed(encoder, input, tmp_path / "out", modality="text")
    header = ShardReader(sets["text"]).header
    assert (header.num_records, header.num_rejected) == (NUM_IMAGES - 3, 3)
    reasons = [json.loads(x)["reason"] for x in (sets["text"] / "quarantine.jsonl").open()]
    assert reasons == ["the encoder's feature is " + r for r in ("not finite", "zero", "zero")]


def test_the_norm_is_set_once_more_before_the_rows_are_stored(
    encoder, input, tmp_path, monkeypatch
):
    """An encoder in low precision, or one of a user's own, may return rows that are not unit."""
    monkeypatch.setattr(
        "revision.encoders.embedding.EmbeddingModule.predict_step",
        lambda self, batch, *_: batch.encode(encoder_call(encoder, batch.side)) * 1.01,
    )
    sets = embed(encoder, input, tmp_path / "out", dtype="float32")
    rows, _ = rows_and_records(sets["image"])
    np.testing.assert_allclose(np.linalg.norm(rows.astype(float), axis=1), 1, atol=1e-7)


def test_several_pictures_and_none(encoder, input, tmp_path):
    def turns(marks):
        ask = {"from": "human", "value": "<image>" * marks + "what?"}
        return [ask, {"from": "gpt", "value": "a cat"}]

    records = [
        {"id": "two", "image": ["0.png", "1.png"], "conversations": turns(2)},
        {"id": "none", "conversations": turns(0)},
        {"id": "half", "image": ["2.png", "gone.png"], "conversations": turns(2)},
        {"id": "one", "image": "3.png", "conversations": turns(1)},
    ]
    path = tmp_path / "conversations.json"
    path.write_text(json.dumps(records))
    sets = embed(encoder, path, tmp_path / "out", modality="image")
    reader = ShardReader(sets["image"])
    kept = [r.id for b in range(len(reader.blocks)) for r in reader.records(b)]
    counts = np.concatenate([reader.row_counts(b) for b in range(len(reader.blocks))])
    assert dict(zip(kept, counts, strict=True)) == {"two": 2, "none": 0, "one": 1}
    rejected = json.loads((sets["image"] / "quarantine.jsonl").read_text())
    assert rejected["id"] == "half"
    assert rejected["address"] == "gone.png"


def test_pictures_inside_tars(encoder, input, tmp_path):
    tar_path = tmp_path / "pairs.tar"
    with tarfile.open(tar_path, "w") as tar:
        for i in range(3):
            png = (input.parent / "pictures" / f"{i}.png").read_bytes()
            for suffix, content in (("png", png), ("txt", b"a red cat")):
                member = tarfile.TarInfo(f"{i}.{suffix}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    sets = embed_records(encoder, input=tar_path, output_dir=tmp_path / "out", **OPTIONS)
    from_tar, records = rows_and_records(sets["image"])
    from_files, _ = rows_and_records(embed(encoder, input, tmp_path / "files")["image"])
    np.testing.assert_array_equal(from_tar, from_files[:3])
    assert all(isinstance(record.images[0], str) for record in records)
    again = load_image(records[1].images[0])
    assert again.tobytes() == load_image(str(input.parent / "pictures" / "1.png")).tobytes()


def test_refusals(encoder, input, tmp_path):
    with pytest.raises(ValueError, match="modality is one of both, image, text, got 'audio'"):
        embed(encoder, input, tmp_path / "out", modality="audio")
    with pytest.raises(ValueError, match="at least 1, got 0"):
        embed(encoder, input, tmp_path / "out", rows_per_shard=0)
    with pytest.raises(ValueError, match="one of float16, float32, float64, got 'int8'"):
        embed(encoder, input, tmp_path / "out", dtype="int8")
    with pytest.raises(ValueError, match="no such input file"):
        embed(encoder, tmp_path / "absent.json", tmp_path / "out")
    input.write_text(json.dumps({"images": [], "texts": []}))
    with pytest.raises(ValueError, match="no image entry to embed"):
        embed(encoder, input, tmp_path / "out")


def test_a_full_disk_is_one_clear_error_and_leaves_no_shard(encoder, input, tmp_path, monkeypatch):
    def full(_):
        raise OSError(28, "No space left on device")

    sets = embed(encoder, input, tmp_path / "out", modality="text")
    for path in sets["text"].iterdir():
        if path.name != "plan.json":
            path.unlink()
    monkeypatch.setattr("revision.files.os.fsync", full)
    with pytest.raises(ValueError, match="No space left"):
        embed(encoder, input, tmp_path / "out", modality="text")
    assert [p.name for p in sets["text"].iterdir()] == ["plan.json"]


def test_batches_cover_each_shard_once_in_order(encoder, input, tmp_path):
    source = Source(str(input), "image", input.parent / "pictures")
    plan = Plan.make(source, tmp_path, encoder={}, dtype="float16", rows_per_shard=4)
    batches = list(EmbeddingDataset(plan, encoder, [0, 2], batch_size=3, text_tokens=64))
    assert [(b.shard, b.is_last, len(b.records)) for b in batches] == [
        (0, False, 3),
        (0, True, 1),
        (2, True, 3),
    ]
    assert dataclasses.asdict(batches[2])["counts"] == [1, 1, 1]


def test_texts_that_were_cut_are_counted_and_said(encoder, input, tmp_path, capsys):
    fields = json.loads(input.read_text())
    fields["texts"][3]["text"] = fields["texts"][9]["text"] = "red " * 30
    input.write_text(json.dumps(fields))
    sets = embed(encoder, input, tmp_path / "out", num_workers=2)
    shards = ShardReader(sets["text"]).header.shards
    assert [shard.num_truncated for shard in shards] == [1, 0, 1]
    assert "0 rejected; 2 texts were longer than the encoder reads and were cut" in (
        capsys.readouterr().out
    )
    assert [s.num_truncated for s in ShardReader(sets["image"]).header.shards] == [None] * 3


def test_rows_of_texts_do_not_depend_on_the_budget(encoder, input, tmp_path):
    sets = [
        embed(encoder, input, tmp_path / str(n), modality="text", text_tokens=n, dtype="float32")
        for n in (1, 30, 10_000)
    ]
    rows = [rows_and_records(found["text"])[0] for found in sets]
    np.testing.assert_allclose(rows[1], rows[0], rtol=0, atol=2e-6)
    np.testing.assert_allclose(rows[2], rows[0], rtol=0, atol=2e-6)
    with pytest.raises(ValueError, match="text_tokens must be at least 1, got 0"):
        embed(encoder, input, tmp_path / "none", text_tokens=0)


def test_rows_of_the_batch_before_are_stored_while_the_next_is_encoded(
    encoder, input, tmp_path, monkeypatch
):
    events = []
    add, encode = OpenShard.add, Batch.encode
    monkeypatch.setattr(
        OpenShard, "add", lambda shard, batch, rows: (events.append("add"), add(shard, batch, rows))
    )
    monkeypatch.setattr(
        Batch, "encode", lambda batch, call: (events.append("encode"), encode(batch, call))[1]
    )
    embed(encoder, input, tmp_path / "out", modality="image", batch_size=4)
    assert events == ["encode", "encode", "add", "encode", "add", "add"]


def test_compile_compiles_both_towers(encoder, input, tmp_path, monkeypatch):
    """With the compiler replaced: it takes two minutes here, and gave the same rows to 1e-7."""
    compiled = []

    def compile(call):
        return lambda inputs: (compiled.append(type(inputs)), call(inputs))[1]

    monkeypatch.setattr("revision.encoders.embedding.torch.compile", compile)
    embed(encoder, input, tmp_path / "plain")
    assert compiled == []
    embed(encoder, input, tmp_path / "compiled", compile=True)
    assert set(compiled) == {torch.Tensor, dict}
