"""Directories of images: order, ids, sidecars, and nothing from outside."""

import json
import os
from pathlib import Path

import pytest
from PIL import Image

from revision.encoders.plan import Source
from revision.records import (
    Record,
    Rejection,
    Turn,
    detect_format,
    input_files,
    load_image,
    read_records,
)


def split(entries):
    entries = list(entries)
    rejected = [e for e in entries if isinstance(e, Rejection)]
    return [e for e in entries if isinstance(e, Record)], rejected


@pytest.fixture
def folder(tmp_path) -> Path:
    directory = tmp_path / "pictures"
    for name in ("b.png", "a.b.JPG", "sub/a.webp"):
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 3)).save(directory / name)
    (directory / "b.txt").write_text("A cat.\n")
    (directory / "sub" / "a.json").write_text(json.dumps({"caption": "A dog.", "n": 3}))
    return directory


def test_pictures_come_in_sorted_order_with_their_texts(folder):
    assert detect_format(folder) == "folder"
    records, rejected = split(read_records(folder, side="both"))
    assert [(r.id, r.text) for r in records] == [
        ("a.b", None),
        ("b", "A cat."),
        ("sub/a", "A dog."),
    ]
    assert records[2].metadata == {"n": 3}
    assert not rejected
    assert [r.id for r in split(read_records(folder, side="text"))[1]] == ["a.b"]


@pytest.mark.parametrize("root", [None, "pictures", "."])
def test_a_picture_loads_from_any_root(folder, root, monkeypatch):
    monkeypatch.chdir(folder.parent)
    image_root = None if root is None else folder.parent / root
    for given in (folder, Path("pictures")):
        for record in read_records(given, side="image", image_root=image_root):
            assert load_image(record.images[0], image_root=image_root).size == (4, 3)
            assert Record.from_json(record.to_json()).images == record.images
    with pytest.raises(ValueError, match="lies outside image_root="):
        list(read_records(folder, side="image", image_root=folder.parent / "elsewhere"))


def test_a_json_sidecar_adds_but_does_not_redirect(folder):
    turns = [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": "Yes."}]
    fields = {"id": "x", "text": "no", "images": ["/etc/passwd"], "__members__": ["/etc/passwd"]}
    (folder / "b.json").write_text(json.dumps(fields | {"conversations": turns}))
    record = split(read_records(folder, side="both", image_root=folder))[0][1]
    assert record == Record(
        "b", "A cat.", ("b.png",), (Turn("user", "<image>"), Turn("assistant", "Yes."))
    )


def test_bad_files_are_rejected_by_address_and_nothing_is_lost(folder):
    (folder / "b.txt").write_bytes(b"caf\xe9")
    (folder / "sub" / "a.json").write_text("[1]")
    (folder / "alone.txt").write_text("no picture")
    (folder / "clip.mp4").write_bytes(b"")
    (folder / ".hidden").write_bytes(b"")
    (folder / "a.b.png").write_bytes((folder / "b.png").read_bytes())
    records, rejected = split(read_records(folder, side="both"))
    assert [r.id for r in records] == ["a.b"]
    found = {os.path.relpath(r.address, folder): r.reason for r in rejected}
    assert set(found) == {"a.b.png", "alone.txt", "b.png", "clip.mp4", "sub/a.webp"}
    assert "duplicate id" in found["a.b.png"]
    assert found["b.png"] == "b.txt: not valid UTF-8"
    assert "holds a list" in found["sub/a.webp"]
    assert "without a picture" in found["alone.txt"]
    assert "not a picture" in found["clip.mp4"]


def test_nothing_outside_the_folder_is_read(folder, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    Image.new("RGB", (4, 3)).save(outside / "o.png")
    (outside / "o.txt").write_text("secret")
    (folder / "c.png").symlink_to(outside / "o.png")
    (folder / "d").symlink_to(outside)
    (folder / "e").symlink_to(folder)  # a loop
    (folder / "f.png").symlink_to("b.png")  # stays inside
    (folder / "g.png").symlink_to("gone.png")
    (folder / "a.b.txt").symlink_to(outside / "o.txt")
    records, rejected = split(read_records(folder, side="both"))
    assert [r.id for r in records] == ["b", "f", "sub/a"]
    found = {Path(r.address).name: r.reason for r in rejected}
    assert set(found) == {"a.b.JPG", "c.png", "d", "e", "g.png"}
    assert found["c.png"] == "a link that leaves the directory, which is not followed"
    assert found["a.b.JPG"].startswith("a.b.txt: a link that leaves")
    assert "not a file" in found["g.png"]
    assert not {p.name for p in input_files(folder)} & {"c.png", "a.b.txt", "o.png"}


def test_the_digest_of_a_folder_covers_names_texts_and_pictures(folder):
    source = Source(str(folder), "image")
    digests = [source.digest(), source.digest()]
    assert digests[0] == digests[1]
    (folder / "b.txt").write_text("A bird.")
    digests.append(source.digest())
    for suffix in (".png", ".txt"):  # another id, the same contents in the same order
        (folder / f"b{suffix}").rename(folder / f"bb{suffix}")
    digests.append(source.digest())
    assert len(set(digests)) == 3


def test_an_archive_in_the_folder_hides_it_unless_the_format_is_named(folder):
    (folder / "part.parquet").write_bytes(b"")
    assert detect_format(folder) == "parquet"
    assert len(split(read_records(folder, side="image", format="folder"))[0]) == 3
    assert len(input_files(folder, "folder")) == 5
    with pytest.raises(ValueError, match="format=folder reads one directory"):
        list(read_records(folder / "b.png", side="image", format="folder"))
