"""clip-retrieval's parts: every row kept with its record, pairs kept, refusals with both counts."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from revision.conversion import clip_retrieval, import_clip_retrieval
from revision.shards import ShardReader, verify

DIM = 4
COLUMNS = {"image": "image_path", "text": "caption"}


def rows(kind: str, first: int, count: int) -> np.ndarray:
    generator = np.random.default_rng([first, kind == "text"])
    matrix = generator.normal(size=(count, DIM))
    return (matrix / np.linalg.norm(matrix, axis=1, keepdims=True)).astype(np.float16)


def line(i: int, **fields) -> dict:
    return {
        "image_path": f"{i:04d}",
        "caption": f"caption {i}",
        "key": f"k{i}",
        "url": "u",
    } | fields


def write_part(directory: Path, k: str, lines: list[dict], kinds=("image", "text"), **matrices):
    """One part as clip-retrieval writes it; `image=` and `text=` replace the rows."""
    number = int(lines[0]["key"][1:]) if lines and lines[0].get("key") else 0
    for kind in kinds:
        folder = {"image": "img_emb", "text": "text_emb"}[kind]
        (directory / folder).mkdir(parents=True, exist_ok=True)
        matrix = matrices.get(kind, rows(kind, number, len(lines)))
        np.save(directory / folder / f"{folder}_{k}.npy", matrix)
    (directory / "metadata").mkdir(parents=True, exist_ok=True)
    table = pa.Table.from_pylist(lines)
    parquet.write_table(table, directory / "metadata" / f"metadata_{k}.parquet", row_group_size=3)


def stored(directory: Path) -> tuple[np.ndarray, list]:
    reader = ShardReader(directory)
    records = [record for block in range(len(reader.blocks)) for record in reader.records(block)]
    return np.concatenate(list(reader.iter_rows())), records


def test_parts_become_two_sets_of_the_same_records_in_numeric_order(tmp_path):
    sizes = {"0": 7, "2": 3, "10": 5}  # written out of order; 10 comes after 2
    firsts = {"0": 0, "2": 7, "10": 10}
    for k in ("10", "2", "0"):
        write_part(tmp_path / "in", k, [line(firsts[k] + i) for i in range(sizes[k])])
    headers = import_clip_retrieval(
        tmp_path / "in", tmp_path / "out", encoder="clip", rows_per_shard=4
    )
    assert [(h.kind, h.num_rows, h.dim, h.dtype, len(h.shards)) for h in headers] == [
        ("image", 15, DIM, "float16", 2 + 1 + 2),
        ("text", 15, DIM, "float16", 2 + 1 + 2),
    ]
    assert headers[0].encoder == headers[1].encoder == {"name": "clip", "format": "clip_retrieval"}
    for kind, name in (("image", "images"), ("text", "texts")):
        assert verify(tmp_path / "out" / name) == []
        found, records = stored(tmp_path / "out" / name)
        expected = np.concatenate([rows(kind, firsts[k], sizes[k]) for k in ("0", "2", "10")])
        np.testing.assert_array_equal(found, expected)
        assert [r.id for r in records] == [f"k{i}" for i in range(15)]
        assert (records[3].text, records[3].images) == ("caption 3", ("0003",))
        assert records[3].metadata == {"url": "u"}


def test_lines_that_cannot_be_used_are_quarantined_on_both_sides_and_pairs_stay_pairs(tmp_path):
    lines = [line(i) for i in range(8)]
    lines[1]["caption"] = " "
    lines[2]["key"] = None
    lines[3]["key"] = "k0"
    lines[4]["image_path"] = None
    image, text = rows("image", 0, 8), rows("text", 0, 8)
    image[5] = 0
    text[5:7] = np.nan
    write_part(tmp_path / "in", "0", lines, image=image, text=text)
    import_clip_retrieval(tmp_path / "in", tmp_path / "out")
    for name, matrix in (("images", image), ("texts", text)):
        found, records = stored(tmp_path / "out" / name)
        assert [r.id for r in records] == ["k0", "k7"]
        np.testing.assert_array_equal(found, matrix[[0, 7]])
        listed = (tmp_path / "out" / name / "quarantine.jsonl").read_text().splitlines()
        assert [json.loads(entry) for entry in listed] == [
            {"id": id, "reason": reason, "address": f"metadata_0.parquet:row {i}"}
            for i, (id, reason) in enumerate(
                [
                    ("k1", "empty caption"),
                    ("", "missing id"),
                    ("k0", "duplicate id: an earlier line has it"),
                    ("k4", "empty image_path"),
                    ("k5", "feature row of img_emb and text_emb is zero or not finite"),
                    ("k6", "feature row of text_emb is zero or not finite"),
                ],
                start=1,
            )
        ]


def test_one_modality_alone_is_enough(tmp_path):
    lines = [{"caption": f"c{i}", "NSFW": float("nan")} for i in range(3)]
    write_part(tmp_path / "in", "00", lines, kinds=("text",))
    (header,) = import_clip_retrieval(tmp_path / "in", tmp_path / "out")
    assert (header.kind, header.num_rows) == ("text", 3)
    assert not (tmp_path / "out" / "images").exists()
    _, records = stored(tmp_path / "out" / "texts")
    assert records[1].id == "metadata_00/1"
    assert records[1].metadata == {}


def test_an_import_resumes_at_the_first_missing_shard_with_the_same_bytes(tmp_path, monkeypatch):
    lines = [line(i) for i in range(10)]
    lines[9]["key"] = "k1"  # its first owner is in a shard that stays, with a row that is bad
    image = rows("image", 0, 10)
    image[1] = 0
    write_part(tmp_path / "in", "0", lines, image=image)
    for name in ("whole", "resumed"):
        import_clip_retrieval(tmp_path / "in", tmp_path / name, rows_per_shard=4)
    for kind in ("images", "texts"):
        (tmp_path / "resumed" / kind / "header.json").unlink()
    (tmp_path / "resumed" / "images" / "00002.tar").unlink()
    written = []
    original = clip_retrieval._write_shard
    monkeypatch.setattr(
        clip_retrieval, "_write_shard", lambda *a: (written.append(a[1]), original(*a))
    )
    import_clip_retrieval(tmp_path / "in", tmp_path / "resumed", rows_per_shard=4)
    assert written == [2]
    files = [p.relative_to(tmp_path / "whole") for p in (tmp_path / "whole").rglob("*.*")]
    assert len(files) == 11
    for file in files:
        assert (tmp_path / "whole" / file).read_bytes() == (
            tmp_path / "resumed" / file
        ).read_bytes()


def test_rows_are_mapped_and_lines_streamed(tmp_path, monkeypatch):
    write_part(tmp_path / "in", "0", [line(i) for i in range(5)])
    modes = []
    original = np.load
    monkeypatch.setattr(np, "load", lambda *a, **k: (modes.append(k), original(*a, **k))[1])
    import_clip_retrieval(tmp_path / "in", tmp_path / "out")
    assert {tuple(sorted(k.items())) for k in modes} == {
        (("allow_pickle", False), ("mmap_mode", "r"))
    }


def test_parts_that_do_not_fit_together_are_refused_before_anything_is_written(tmp_path):
    def refused(match: str, **options) -> None:
        with pytest.raises(ValueError, match=match):
            import_clip_retrieval(tmp_path / "in", tmp_path / "out", **options)
        assert not (tmp_path / "out").exists()

    refused("no metadata/metadata_<number>.parquet")
    lines = [line(i) for i in range(3)]
    write_part(tmp_path / "in", "0", lines, kinds=())
    refused("neither img_emb/ nor text_emb/")
    write_part(tmp_path / "in", "0", lines, text=rows("text", 0, 5))
    refused(r"text_emb_0\.npy has 5 rows and metadata_0\.parquet 3 lines")
    write_part(tmp_path / "in", "0", lines)
    write_part(tmp_path / "in", "1", [line(9)], image=np.ones((1, DIM + 1), np.float16))
    refused(r"img_emb_1\.npy: rows of 5 float16 numbers, the first part has 4 of float16")
    (tmp_path / "in" / "img_emb" / "img_emb_1.npy").unlink()
    refused(r"1 parts in img_emb and 2 in metadata; numbers \[1\] are in one of them only")
    write_part(tmp_path / "in", "1", [line(9)], image=np.ones((1, DIM, 1), np.float16))
    refused(r"img_emb_1\.npy: an array of shape \(1, 4, 1\)")
    objects = np.array([[print, None]], dtype=object)
    np.save(tmp_path / "in" / "img_emb" / "img_emb_1.npy", objects, allow_pickle=True)
    refused(r"img_emb_1\.npy: not a plain npy array")
    write_part(tmp_path / "in", "01", [line(9)])
    refused("the same part 1")


def test_a_folder_without_the_column_that_names_its_rows_is_refused(tmp_path):
    write_part(tmp_path / "in", "0", [{"image_path": "a"}])
    with pytest.raises(ValueError, match="no column 'caption' among"):
        import_clip_retrieval(tmp_path / "in", tmp_path / "out")


def test_other_parts_into_the_same_directory_are_refused(tmp_path):
    write_part(tmp_path / "in", "0", [line(0), line(1)])
    import_clip_retrieval(tmp_path / "in", tmp_path / "out")
    write_part(tmp_path / "in", "1", [line(2)])
    with pytest.raises(ValueError, match="begun with other files"):
        import_clip_retrieval(tmp_path / "in", tmp_path / "out")
