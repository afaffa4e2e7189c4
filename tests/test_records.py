"""Laws and refusals of `revision.records`."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from revision.records import (
    Record,
    Rejection,
    Turn,
    detect_format,
    load_image,
    read_records,
)
from revision.records import json_stream as json_stream_module
from revision.records import read as read_module
from revision.records.json_stream import JsonStream


def picture(color: object = (200, 10, 10), mode: str = "RGB", suffix: str = "png") -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, (6, 4), color).save(buffer, suffix)
    return buffer.getvalue()


def write_json(path: Path, content: object) -> Path:
    path.write_text(json.dumps(content))
    return path


def write_tar(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def split(entries):
    entries = list(entries)
    records = [e for e in entries if isinstance(e, Record)]
    return records, [e for e in entries if isinstance(e, Rejection)]


def chat(text: str = "<image>\nWhat?", **fields):
    turns = [{"from": "human", "value": text}, {"from": "gpt", "value": "A cat."}]
    return {"id": "a", "image": "a.png", "conversations": turns} | fields


# ---- formats


def test_revision_json_gives_both_lists(tmp_path):
    path = write_json(
        tmp_path / "index.json",
        {
            "info": {"version": [1, 2]},
            "images": [{"id": 0, "image": "a/0.jpg", "license": 3}],
            "texts": [{"id": 0, "text": "A cat."}, {"id": "t", "text": "A dog."}],
        },
    )
    assert detect_format(path) == "revision"
    images, _ = split(read_records(path, side="image"))
    texts, rejected = split(read_records(path, side="text"))
    assert images == [Record("0", images=("a/0.jpg",), metadata={"license": 3})]
    assert [(t.id, t.text) for t in texts] == [("0", "A cat."), ("t", "A dog.")]
    assert not rejected
    assert len(list(read_records(path, side="both"))) == 3


@pytest.mark.parametrize("layout", ["array", "lines"])
def test_conversations_as_array_and_as_lines_are_the_same(tmp_path, layout):
    items = [chat(caption="Tea", source="x"), chat("Hi", id=7, image=None, caption=None)]
    path = tmp_path / "chat.json"
    if layout == "array":
        write_json(path, items)
    else:
        path.write_text("\n\n".join(json.dumps(item) for item in items))
    assert detect_format(path) == "conversations"
    records, rejected = split(read_records(path, side="image"))
    assert not rejected
    assert records[0] == Record(
        "a",
        text="Tea",
        images=("a.png",),
        conversations=(Turn("user", "<image>\nWhat?"), Turn("assistant", "A cat.")),
        metadata={"source": "x"},
    )
    assert (records[1].id, records[1].images) == ("7", ())  # text-only: no row, but kept


def test_an_object_on_one_line_is_jsonl_only_if_it_is_a_record(tmp_path):
    one = write_json(tmp_path / "one.jsonl", chat(images=["a.png"], image=None))
    assert detect_format(one) == "conversations"
    assert len(split(read_records(one, side="image"))[0]) == 1
    long = [{"id": i, "text": "x" * 100} for i in range(2000)]
    assert detect_format(write_json(tmp_path / "long.json", {"texts": long})) == "revision"


def test_caption_of_a_pseudo_image_record_fills_its_slot(tmp_path):
    path = write_json(tmp_path / "text_only.json", [chat(image=None, caption="A red cat.")])
    assert split(read_records(path, side="text"))[0][0].text == "A red cat."
    assert "1 <image> marks" in split(read_records(path, side="image"))[1][0].reason


def test_webdataset_members_with_a_common_stem_are_one_record(tmp_path):
    image = picture()
    members = {
        "d/000.jpg": image,
        "d/000.json": b'{"caption": "from json", "width": 6}',
        "d/000.txt": "from txt ä".encode(),
        "d/001.0.webp": image,
        "d/001.1.png": image,
        "d/001.json": b'{"title": "two", "text": "from text", "caption": "other"}',
    }
    path = write_tar(tmp_path / "00000.tar", members)
    assert detect_format(tmp_path) == "webdataset"
    first, second = split(read_records(tmp_path, side="both"))[0]
    assert (first.id, first.text, first.images) == ("d/000", "from txt ä", (image,))
    assert first.metadata["width"] == 6
    assert (len(second.images), second.text) == (2, "from text")
    assert second.metadata["caption"] == "other"  # nothing is dropped
    assert list(read_records(path, side="both")) == list(read_records(tmp_path, side="both"))


def test_the_tar_itself_wins_over_its_json_whatever_the_order(tmp_path):
    content = json.dumps({"text": "from json", "images": ["elsewhere.png"], "__key__": "x"})
    members = {"0.png": picture(), "0.txt": b"from txt", "0.json": content.encode()}
    (record,) = read_records(write_tar(tmp_path / "x.tar", members), side="both")
    assert (record.text, record.images) == ("from txt", (members["0.png"],))
    assert record.metadata["__key__"] == "0"


def test_braces_name_a_range_of_tars(tmp_path):
    for k in range(3):
        write_tar(tmp_path / f"{k:02d}.tar", {f"{k}.txt": b"text"})
    records, _ = split(read_records(f"{tmp_path}/{{00..01}}.tar", side="text"))
    assert [r.id for r in records] == ["0", "1"]


def test_image_bytes_become_an_address_that_loads(tmp_path):
    path = write_tar(tmp_path / "x.tar", {"0.json": b"{}", "0.png": picture((1, 2, 3))})
    for root, prefix in ((None, f"{path}#"), (tmp_path, "x.tar#")):
        (record,) = read_records(path, side="image", image_root=root)
        stored = Record.from_json(json.loads(json.dumps(record.to_json())))
        assert stored.images[0].startswith(prefix)
        assert load_image(stored.images[0], image_root=root).getpixel((0, 0)) == (1, 2, 3)


def test_parquet_as_datasets_writes_it(tmp_path):
    arrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    rows = [
        {"id": 0, "caption": "one", "image": {"bytes": picture(), "path": None}, "n": 3},
        {"id": 1, "caption": "", "image": {"bytes": None, "path": "b.png"}, "n": 4},
    ]
    parquet.write_table(arrow.Table.from_pylist(rows), tmp_path / "part.parquet")
    images, _ = split(read_records(tmp_path, side="image"))
    assert [type(r.images[0]) for r in images] == [bytes, str]
    assert images[0].metadata["n"] == 3
    assert images[0].to_json()["images"] == ["part.parquet:row 0"]
    texts, rejected = split(read_records(tmp_path, side="text"))
    assert [t.id for t in texts] == ["0"]
    assert rejected[0].address == "part.parquet:row 1"
    parquet.write_table(arrow.Table.from_pylist([{"text": "x"}]), tmp_path / "part.parquet")
    assert [r.id for r in read_records(tmp_path, side="text")] == ["part/0"]


def test_to_json_and_from_json_are_inverse():
    turns = (Turn("system", "s"), Turn("user", "<image>"), Turn("assistant", "x"))
    record = Record("ü", "text", ("a.png", "b.png"), turns, {"k": [1, None]})
    assert Record.from_json(json.loads(json.dumps(record.to_json()))) == record
    assert Record.from_json(Record("0").to_json()) == Record("0")


def test_image_bytes_from_nowhere_are_not_written():
    with pytest.raises(ValueError, match="record 'a': image bytes without"):
        Record("a", images=(b"\x00",)).to_json()


# ---- streaming


@pytest.mark.parametrize("piece", [1, 2, 3, 7, 64])
def test_json_is_read_the_same_in_pieces_of_any_size(piece):
    values = [{"a": [1, {"b": "]},{"}], "é\n": '\\"'}, [], {}, -12.5e3, 120, True, None, "x"]
    for indent in (None, 2):
        text = "\ufeff " + json.dumps(values, indent=indent) + " \n"
        stream = JsonStream(io.StringIO(text), "x.json", piece)
        assert list(stream.elements()) == values
        stream.finish()


@pytest.mark.parametrize("text", ['[{"id": 1}', '[{"id": 1}, {"id": ', '[{"id": 1}]]', "[1 2]"])
def test_damaged_json_is_refused_by_name(tmp_path, text):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(ValueError, match=r"x\.json: not valid JSON"):
        list(read_records(tmp_path / "x.json", side="text"))


def test_a_syntax_error_does_not_pull_the_file_into_memory(monkeypatch):
    monkeypatch.setattr(json_stream_module, "MAX_ENTRY_CHARACTERS", 1000)
    file = io.StringIO("[{id: 1}" + ", {}" * 100_000 + "]")
    with pytest.raises(ValueError, match="not valid JSON"):
        list(JsonStream(file, "x.json", 64).elements())
    assert file.tell() < 5000


def test_duplicates_are_found_whatever_the_runs(tmp_path, monkeypatch):
    monkeypatch.setattr(read_module, "_RECENT_IDS", 4)
    ids = [*range(50), 0, 17, 49, "0"]
    path = write_json(tmp_path / "x.json", {"texts": [{"id": i, "text": "t"} for i in ids]})
    records, rejected = split(read_records(path, side="text"))
    assert [r.id for r in records] == [str(i) for i in range(50)]
    assert [r.id for r in rejected] == ["0", "17", "49", "0"]


def test_ids_met_so_far_stay_in_few_sorted_runs(monkeypatch):
    monkeypatch.setattr(read_module, "_RECENT_IDS", 4)
    seen = read_module.SeenIds()
    assert all(seen.add(str(i)) for i in range(1000))
    assert sum(map(len, seen._runs)) == 1000
    assert len(seen._runs) <= 8  # one per power of two, not 250


# ---- refusals

BAD_TEXTS = [
    ({"text": "no id"}, "missing id"),
    ({"id": "", "text": "x"}, "missing id"),
    ({"id": None, "text": "x"}, "missing id"),
    ({"id": [1], "text": "x"}, "id is a list"),
    ({"id": "x", "text": " \n"}, "empty text"),
    ({"id": "x"}, "empty text"),
    ({"id": "x", "text": 3}, "text is a int"),
    ("just text", "a str, expected an object"),
    ({"id": "good", "text": "again"}, "duplicate id"),
]


def test_bad_texts_are_rejected_with_reason_and_address_and_nothing_is_lost(tmp_path):
    items = [{"id": "good", "text": "fine"}, *(fields for fields, _ in BAD_TEXTS)]
    path = write_json(tmp_path / "x.json", {"texts": items})
    records, rejected = split(read_records(path, side="text"))
    assert [r.id for r in records] == ["good"]
    for i, (rejection, (_, reason)) in enumerate(zip(rejected, BAD_TEXTS, strict=True), start=1):
        assert reason in rejection.reason
        assert rejection.address == f"x.json:texts entry {i}"


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"text": "<image><image>"}, "2 <image> marks in the conversation but 1 images"),
        ({"text": "no mark"}, "0 <image> marks in the conversation but 1 images"),
        ({"image": ["a.png", "b.png"]}, "1 <image> marks in the conversation but 2 images"),
        ({"image": None}, "1 <image> marks in the conversation but 0 images"),
        ({"image": 5}, "image is 5"),
        ({"conversations": "hello"}, "conversations is a str"),
        ({"conversations": ["hello"]}, "a turn is a str"),
        ({"conversations": [{"from": "bob", "value": "x"}]}, "a turn comes from 'bob'"),
        ({"conversations": [{"from": "human"}]}, "the turn of 'human' has no text"),
    ],
)
@pytest.mark.parametrize("side", ["image", "both"])
def test_bad_conversations_are_rejected(tmp_path, fields, reason, side):
    path = write_json(tmp_path / "x.json", [chat(**fields)])
    ((rejection,)) = read_records(path, side=side)
    assert (rejection.id, rejection.address) == ("a", "x.json:entry 0")
    assert reason in rejection.reason


def test_an_image_entry_without_image_is_rejected(tmp_path):
    path = write_json(tmp_path / "x.json", {"images": [{"id": 1}, {"id": 2, "image": ""}]})
    assert [r.reason for r in read_records(path, side="image")] == ["no image", "no image"]


def test_a_bad_line_costs_one_line(tmp_path):
    (tmp_path / "x.jsonl").write_text(f"{json.dumps(chat())}\n{{broken\n{json.dumps(chat(id=2))}")
    records, rejected = split(read_records(tmp_path / "x.jsonl", side="both"))
    assert [r.id for r in records] == ["a", "2"]
    assert rejected[0].address == "x.jsonl:line 2"


def test_a_bad_json_member_costs_one_sample(tmp_path):
    write_tar(tmp_path / "x.tar", {"0.json": b"{", "0.txt": b"t", "1.json": b"[]", "2.txt": b"t"})
    records, rejected = split(read_records(tmp_path, side="text"))
    assert [r.id for r in records] == ["2"]
    assert [r.address for r in rejected] == ["x.tar/0", "x.tar/1"]


@pytest.mark.parametrize("keep", [600, 1024, 1024 + 512, 1024 + 700])
def test_a_truncated_tar_is_refused(tmp_path, keep):
    path = write_tar(tmp_path / "x.tar", {"0.txt": b"a" * 300, "1.txt": b"b" * 300})
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"x\.tar: truncated tar"):
        list(read_records(path, side="text"))


def test_unknown_inputs_are_refused(tmp_path):
    (tmp_path / "x.md").write_text("id,text")
    for path, message in ((tmp_path / "no.json", "no such input"), (tmp_path, "holds neither")):
        with pytest.raises(ValueError, match=message):
            list(read_records(path, side="text"))
    with pytest.raises(ValueError, match="neither JSON"):
        detect_format(tmp_path / "x.md")
    (tmp_path / "empty.json").write_text("\n")
    with pytest.raises(ValueError, match=r"empty\.json: it is empty"):
        detect_format(tmp_path / "empty.json")
    with pytest.raises(ValueError, match="format must be"):
        list(read_records(tmp_path / "x.md", side="text", format="xml"))


# ---- images


def test_transparency_becomes_white(tmp_path):
    transparent = Image.open(io.BytesIO(picture((255, 0, 0, 0), "RGBA")))
    palette = io.BytesIO()
    transparent.quantize(4).save(palette, "png")
    for content in (
        picture((255, 0, 0, 0), "RGBA"),
        picture((0, 0), "LA"),
        palette.getvalue(),
    ):
        image = load_image(content)
        assert (image.mode, image.getpixel((0, 0))) == ("RGB", (255, 255, 255))
    half = load_image(picture((0, 0, 0, 128), "RGBA")).getpixel((0, 0))
    assert half == (127, 127, 127)


@pytest.mark.parametrize(
    ("mode", "color", "expected"),
    [("L", 9, (9, 9, 9)), ("1", 1, (255, 255, 255)), ("I;16", 256 * 9, (9, 9, 9))],
)
def test_grey_images_keep_their_values(mode, color, expected):
    if mode == "I;16":
        buffer = io.BytesIO()
        Image.fromarray(np.full((4, 6), color, np.uint16)).save(buffer, "png")
        content = buffer.getvalue()
    else:
        content = picture(color, mode)
    assert load_image(content).getpixel((0, 0)) == expected


def test_a_path_is_taken_from_the_root_and_an_absolute_path_may_lie_inside(tmp_path):
    (tmp_path / "a.png").write_bytes(picture())
    assert load_image("a.png", image_root=tmp_path).size == (6, 4)
    assert load_image(str(tmp_path / "a.png"), image_root=tmp_path).size == (6, 4)


def test_missing_and_unreadable_images_are_refused_by_address(tmp_path, monkeypatch):
    (tmp_path / "text.png").write_text("not an image")
    (tmp_path / "cut.png").write_bytes(picture()[:-30])
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "dir.png").mkdir()
    with pytest.raises(ValueError, match=r"gone\.png: missing image"):
        load_image("gone.png", image_root=tmp_path)
    for name in ("text.png", "cut.png", "empty.png", "dir.png"):
        with pytest.raises(ValueError, match=rf"{name}: unreadable image"):
            load_image(name, image_root=tmp_path)
    with pytest.raises(ValueError, match=r"x\.tar#0\.png@0\+10: missing image"):
        load_image("x.tar#0.png@0+10", image_root=tmp_path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 5)
    with pytest.raises(ValueError, match="DecompressionBomb"):
        load_image(picture())
