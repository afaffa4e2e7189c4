"""The record index: any record in one seek, rebuilt exactly when the input changes."""

import io
import json
import pickle

import pyarrow
import pytest
from PIL import Image
from pyarrow import parquet

from revision.data.index import RecordIndex, build_index


def accept(record):
    pass


def write(path, texts):
    records = [
        {"id": str(i), "conversations": [{"from": "human", "value": t}]}
        for i, t in enumerate(texts)
    ]
    path.write_text(json.dumps(records))
    return path


def build(tmp_path, path, check=accept):
    return build_index(path, tmp_path / "index", image_root=None, check=check)


def test_records_come_back_by_number(tmp_path):
    texts = ["one", "zwei ü", "three\nlines"]
    index = build(tmp_path, write(tmp_path / "data.json", texts))
    assert len(index) == 3
    for number in (2, 0, 1):
        assert index[number].conversations[0].text == texts[number]
    assert list(index) == [index[number] for number in range(3)]
    again = pickle.loads(pickle.dumps(index))
    assert again[1] == index[1]


def test_a_second_build_reads_nothing_and_a_changed_input_is_read_again(tmp_path):
    path = write(tmp_path / "data.json", ["a"])
    first = build(tmp_path, path)

    def refuse(record):
        raise AssertionError("read again")

    assert build(tmp_path, path, refuse).directory == first.directory
    assert len(build(tmp_path, write(path, ["a", "bb"]))) == 2


def test_an_interrupted_build_leaves_nothing(tmp_path):
    def interrupt(record):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(tmp_path, write(tmp_path / "data.json", ["a"]), interrupt)
    assert list((tmp_path / "index").iterdir()) == []


def test_an_input_without_a_usable_record_is_refused_with_the_first_reason(tmp_path):
    def refuse(record):
        raise ValueError("too dull")

    with pytest.raises(ValueError, match=r"none of its 2 records can be used; the first: .*dull"):
        build(tmp_path, write(tmp_path / "data.json", ["a", "b"]), refuse)


def test_another_process_may_finish_first(tmp_path):
    path = write(tmp_path / "data.json", ["a"])
    built = []

    def build_meanwhile(record):
        if not built:
            built.append(None)
            build(tmp_path, path)

    index = build(tmp_path, path, build_meanwhile)
    assert isinstance(index, RecordIndex)
    assert len(list((tmp_path / "index").iterdir())) == 1


def test_bytes_in_parquet_are_rejected_because_they_cannot_be_opened_again(tmp_path):
    buffer = io.BytesIO()
    Image.new("RGB", (4, 3)).save(buffer, "PNG")
    (tmp_path / "file.png").write_bytes(buffer.getvalue())
    table = {"id": ["bytes", "path"], "text": ["a", "b"]}
    images = [{"bytes": buffer.getvalue(), "path": None}, {"bytes": None, "path": "file.png"}]
    parquet.write_table(pyarrow.table(table | {"image": images}), tmp_path / "data.parquet")
    index = build_index(
        tmp_path / "data.parquet", tmp_path / "index", image_root=tmp_path, check=accept
    )
    assert [index[number].id for number in range(len(index))] == ["path"]
    (line,) = (index.directory / "quarantine.jsonl").read_text().splitlines()
    assert "cannot be opened again" in json.loads(line)["reason"]
    assert "embed.py" in json.loads(line)["reason"]


def test_what_a_killed_build_left_is_removed_and_what_another_one_writes_is_not(tmp_path):
    root = tmp_path / "index"
    (root / ".index-dead").mkdir(parents=True)
    (root / ".other-dead").mkdir()
    seen = []

    def build_meanwhile(record):
        if not seen:
            seen.extend(root.glob(".index-*"))
            build(tmp_path, write(tmp_path / "other.json", ["b"]))
            assert list(root.glob(".index-*")) == seen

    build(tmp_path, write(tmp_path / "data.json", ["a"]), build_meanwhile)
    assert len(seen) == 1
    assert {path.name for path in root.glob(".*")} == {".other-dead"}


def test_pictures_outside_the_image_root_are_quarantined(tmp_path):
    (tmp_path / "root").mkdir()
    sources = ["in.png", "../out.png", str(tmp_path / "out.png"), "../x.tar#0.png@0+9"]
    for name in ("root/in.png", "out.png"):
        Image.new("RGB", (2, 2)).save(tmp_path / name)
    path = tmp_path / "data.json"
    path.write_text(json.dumps([{"id": i, "image": s} for i, s in enumerate(sources)]))
    index = build_index(path, tmp_path / "index", image_root=tmp_path / "root", check=accept)
    assert [index[i].id for i in range(len(index))] == ["0"]
    lines = (index.directory / "quarantine.jsonl").read_text().splitlines()
    assert len(lines) == 3
    assert all("outside the image root" in json.loads(line)["reason"] for line in lines)
