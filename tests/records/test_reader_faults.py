"""Damaged inputs cost what is damaged: the entry, with its address, and never the rest."""

import io
import json
import re
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from revision.records import Record, Rejection, json_files, load_image, read_records

FUZZ = settings(max_examples=100, deadline=None, derandomize=True, database=None)


def png() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (2, 2)).save(buffer, "png")
    return buffer.getvalue()


def member(name: str, content: bytes = b"", **fields: object) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for key, value in fields.items():
        setattr(info, key, value)
    return info, content


def write_tar(path: Path, *members: tuple[tarfile.TarInfo, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for info, content in members:
            tar.addfile(info, io.BytesIO(content))
    return path


def split(entries):
    entries = list(entries)
    return [e for e in entries if isinstance(e, Record)], [
        e for e in entries if isinstance(e, Rejection)
    ]


# ---- bytes that are not UTF-8


@pytest.mark.parametrize("layout", ["array", "lines", "revision"])
@pytest.mark.parametrize("bad", [b"caf\xe9", b"\xff\xfe", b"\xed\xa0\x80", b"\\ud800"])
@pytest.mark.parametrize("field", ["text", "id", "source"])
def test_a_text_that_is_not_utf8_costs_its_entry(tmp_path, layout, bad, field):
    entries = [b'{"id": "%d", "text": "caf\xc3\xa9"}' % i for i in range(3)]
    entries[1] = json.dumps({"id": "1", "text": "t"} | {field: "BAD"}).encode().replace(b"BAD", bad)
    content = {
        "array": b"[" + b",\n".join(entries) + b"]",
        "lines": b"\n".join(entries),
        "revision": b'{"texts": [' + b",".join(entries) + b"]}",
    }[layout]
    (tmp_path / "x.json").write_bytes(content)
    records, (rejection,) = split(read_records(tmp_path / "x.json", side="text"))
    assert [(r.id, r.text) for r in records] == [("0", "café"), ("2", "café")]
    assert "not valid Unicode (UTF-8) at character" in rejection.reason
    assert rejection.address.endswith("line 2" if layout == "lines" else "entry 1")


def test_members_that_are_not_utf8_cost_their_sample(tmp_path):
    path = write_tar(
        tmp_path / "x.tar",
        member("0.txt", b"fine"),
        member("1.txt", b"caf\xe9"),
        member("2.json", b'{"text": "caf\xe9"}'),
        member("3.json", b"[" * 100_000),
        member("\udcff.txt", b"its name"),
        member("5.txt", b"fine"),
    )
    records, rejected = split(read_records(path, side="text"))
    assert [r.id for r in records] == ["0", "5"]
    reasons = [r.reason for r in rejected]
    for found, expected in zip(
        reasons, ("txt member is not valid UTF-8", "not valid JSON"), strict=False
    ):
        assert expected in found
    assert [r.address[:7] for r in rejected[:3]] == ["x.tar/1", "x.tar/2", "x.tar/3"]
    assert "not valid Unicode" in reasons[3]


def test_a_damaged_page_of_parquet_is_named(tmp_path):
    arrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    path = tmp_path / "x.parquet"
    parquet.write_table(arrow.table({"text": [f"text {i}" for i in range(2000)]}), path)
    content = bytearray(path.read_bytes())
    content[4:40] = bytes(36)
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"x\.parquet: not a readable parquet file"):
        list(read_records(path, side="text"))


@pytest.mark.parametrize("place", ["first", "later"])
def test_a_line_without_an_end_is_refused(tmp_path, monkeypatch, place):
    monkeypatch.setattr(json_files, "MAX_ENTRY_CHARACTERS", 2000)
    before = '{"id": "a", "text": "b"}\n' if place == "later" else ""
    (tmp_path / "x.jsonl").write_text(f'{before}{{"id": "{"x" * 2500}"}}\n')
    with pytest.raises(ValueError, match=r"x\.jsonl: a line of 2000 characters or more"):
        list(read_records(tmp_path / "x.jsonl", side="text"))


def test_a_compressed_tar_says_how_to_read_it(tmp_path):
    with tarfile.open(tmp_path / "x.tar.gz", "w:gz") as tar:
        tar.addfile(tarfile.TarInfo("a.txt"))
    with pytest.raises(ValueError, match=r"x\.tar\.gz: a compressed tar.*'pipe:gzip -dc <file>'"):
        list(read_records(tmp_path / "x.tar.gz", side="text"))


def test_a_bad_value_in_parquet_costs_its_row(tmp_path):
    arrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    binary = arrow.array([b"fine", b"caf\xe9", b"fine too"])
    text = arrow.StringArray.from_buffers(3, *binary.buffers()[1:], binary.buffers()[0])
    parquet.write_table(arrow.table({"text": text}), tmp_path / "x.parquet")
    records, (rejection,) = split(read_records(tmp_path / "x.parquet", side="text"))
    assert [(r.id, r.text) for r in records] == [("x/0", "fine"), ("x/2", "fine too")]
    assert rejection.address == "x.parquet:row 1"
    assert "cannot be read" in rejection.reason


# ---- sizes and names


@pytest.mark.parametrize("layout", ["array", "lines", "tar"])
def test_a_caption_of_ten_megabytes_is_read_whole(tmp_path, layout):
    caption = "ä red cat " * 1_000_000
    path = tmp_path / "x.json"
    if layout == "tar":
        path = write_tar(tmp_path / "x.tar", member("0.txt", caption.encode()))
    else:
        line = json.dumps({"id": "0", "text": caption}, ensure_ascii=False)
        path.write_text(f"[{line}]" if layout == "array" else line)
    (record,) = read_records(path, side="text")
    assert record.text == caption


def test_a_path_of_megabytes_is_refused_in_a_short_sentence(tmp_path):
    path = tmp_path / "x.jsonl"
    values = ["a" * 10**6, [{"a": "b" * 10**6}]]
    path.write_text("\n".join(json.dumps({"id": i, "image": v}) for i, v in enumerate(values)))
    rejected = split(read_records(path, side="image"))[1]
    assert len(rejected) == 2
    assert all(len(r.reason) < 300 for r in rejected)


@pytest.mark.parametrize(
    "id", ["a/b", "../../x", " ", "a b", "日本", "a\nb", "\0", "a\tb", "😀", '"']
)
def test_any_text_may_be_an_id(tmp_path, id):
    path = tmp_path / "x.jsonl"
    path.write_text(json.dumps({"id": id, "text": "t"}))
    (record,) = read_records(path, side="text")
    assert Record.from_json(json.loads(json.dumps(record.to_json()))).id == id


@pytest.mark.parametrize("deep", ["[" * 200_000, '{"a":' * 200_000, "[" + "9" * 5000 + "]"])
def test_nesting_and_numbers_without_an_end_cost_a_line(tmp_path, deep):
    (tmp_path / "x.jsonl").write_text(f'{{"id": 0, "text": "t"}}\n{deep}\n{{"id": 2, "text": "t"}}')
    records, (rejection,) = split(read_records(tmp_path / "x.jsonl", side="text"))
    assert [r.id for r in records] == ["0", "2"]
    assert rejection.address == "x.jsonl:line 2"
    (tmp_path / "x.json").write_text(f'[{{"id": 0, "text": "t"}}, {deep}')
    with pytest.raises(ValueError, match=r"x\.json: not (valid|readable) JSON"):
        list(read_records(tmp_path / "x.json", side="text"))


# ---- tars


def test_links_in_a_tar_are_not_followed(tmp_path):
    path = write_tar(
        tmp_path / "x.tar",
        member("0.txt", b"text"),
        member("0.png", type=tarfile.SYMTYPE, linkname="/etc/passwd"),
        member("1.txt", type=tarfile.LNKTYPE, linkname="0.txt"),
        member("2.txt", b"text"),
    )
    records, rejected = split(read_records(path, side="both"))
    assert [r.id for r in records] == ["2"]
    assert [r.address for r in rejected] == ["x.tar/0", "x.tar/1"]
    assert all("is a link or a device, which is not followed" in r.reason for r in rejected)


def test_a_path_in_a_json_member_is_kept_and_confined(tmp_path):
    entry = json.dumps({"image": "../secret.png"}).encode()
    (record,) = read_records(write_tar(tmp_path / "x.tar", member("0.json", entry)), side="image")
    assert record.to_json()["images"] == ["../secret.png"]
    with pytest.raises(ValueError, match="outside the image root"):
        load_image(record.images[0], image_root=tmp_path)


@pytest.mark.parametrize("members", [["/etc/x.tar#0@0+9"], 5, ["a.png", "b.png"]])
def test_data_cannot_say_where_images_came_from(tmp_path, members):
    path = tmp_path / "x.jsonl"
    path.write_text(json.dumps({"id": 0, "image": "a.png", "__members__": members}))
    assert "'__members__'" in split(read_records(path, side="image"))[1][0].reason


@pytest.mark.parametrize("content", [b"", b"not a tar", b"\xff" * 600, png()])
def test_what_is_no_tar_is_refused_by_name(tmp_path, content):
    (tmp_path / "x.tar").write_bytes(content)
    with pytest.raises(ValueError, match=r"x\.tar: (not a tar|truncated tar)"):
        list(read_records(tmp_path / "x.tar", side="both"))


def test_a_shard_that_vanishes_is_named(tmp_path):
    for k in range(2):
        write_tar(tmp_path / f"{k}.tar", *(member(f"{k}{i}.txt", b"text") for i in range(3)))
    entries = read_records(tmp_path, side="text")
    assert next(entries).id == "00"
    (tmp_path / "0.tar").unlink()  # it is open and stays whole
    (tmp_path / "1.tar").unlink()
    assert [next(entries).id for _ in range(2)] == ["01", "02"]
    with pytest.raises(ValueError, match=r"1\.tar: cannot be read to its end .*restore it"):
        list(entries)


# ---- anything at all

KEYS = st.sampled_from(
    ["id", "text", "caption", "image", "images", "conversations", "from", "role"]
)
TEXTS = st.text(st.characters(), max_size=8)  # with lone surrogates
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXTS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            KEYS | st.sampled_from(["value", "__members__"]) | TEXTS, inner, max_size=5
        )
    ),
    max_leaves=12,
)
LIKELY = st.fixed_dictionaries(
    {"id": st.integers(0, 5)},
    optional={
        "text": TEXTS,
        "image": st.sampled_from(["a.png", "", ["a.png", "b.png"], [None]]),
        "conversations": st.lists(
            st.fixed_dictionaries(
                {"from": st.sampled_from(["human", "gpt", "system", ["human"], None])},
                optional={"value": st.sampled_from(["<image>", "hi"]) | JSON},
            ),
            max_size=3,
        ),
        "__members__": JSON,
    },
)


@FUZZ
@given(entries=st.lists(JSON | LIKELY, max_size=6), side=st.sampled_from(["image", "text", "both"]))
def test_every_entry_comes_back_accepted_or_refused(tmp_path_factory, entries, side):
    directory = tmp_path_factory.getbasetemp()
    path = directory / "fuzz.json"
    lines = [json.dumps(entry) for entry in entries]
    contents = {
        "conversations": ["[" + ",".join(lines) + "]", "\n".join(lines)],
        "revision": ['{"images": [' + ",".join(lines) + '], "texts": []}'],
    }
    for format, texts in contents.items():
        for text in texts:
            if text.startswith("[") and len(lines) != 1 and text is not texts[0]:
                continue  # lines of which the first is an array are an array with a tail
            path.write_text(text)
            try:
                found = list(read_records(path, side=side, format=format, image_root=directory))
            except ValueError:
                assert text is not texts[0]  # an array of good JSON is read to its end
                continue
            if text is texts[0] and not (format == "revision" and side == "text"):
                assert len(found) == len(entries)
            for record in found:
                if isinstance(record, Record):
                    again = Record.from_json(json.loads(json.dumps(record.to_json())))
                    assert (again.id, again.images) == (record.id, record.images)


def complaint(read: Callable[[], object]) -> str:
    """What the ValueError names: the file, or that an image is unreadable; empty without one."""
    try:
        read()
    except ValueError as error:
        named = re.search(r"(fuzz|flip)\.\w+|unreadable image", str(error))
        return named.group() if named else f"nothing: {error}"
    return ""


@FUZZ
@given(content=st.binary(max_size=200), suffix=st.sampled_from(["json", "tar", "parquet", "csv"]))
def test_any_bytes_are_read_or_refused(tmp_path_factory, content, suffix):
    path = tmp_path_factory.getbasetemp() / f"fuzz.{suffix}"
    path.write_bytes(content)
    assert complaint(lambda: list(read_records(path, side="both"))) in ("", path.name)


@FUZZ
@given(
    position=st.integers(0, 2**16), flip=st.integers(1, 255), kind=st.sampled_from(["tar", "json"])
)
def test_a_flipped_byte_raises_nothing_but_value_errors(tmp_path_factory, position, flip, kind):
    path = tmp_path_factory.getbasetemp() / f"flip.{kind}"
    if kind == "tar":
        write_tar(path, member("0.png", png()), member("0.txt", b"text"), member("1.json", b"{}"))
    else:
        path.write_text(json.dumps([{"id": i, "text": "t"} for i in range(5)]))
    content = np.frombuffer(path.read_bytes(), np.uint8).copy()
    end = 3 * 1024 if kind == "tar" else len(content)
    content[position % end] ^= flip
    path.write_bytes(content.tobytes())
    assert complaint(lambda: list(read_records(path, side="both"))) in ("", path.name)


@FUZZ
@given(
    content=st.binary(max_size=100),
    head=st.sampled_from(
        [b"", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"II*\0", b"RIFF0000WEBP", b"\xff\xd8\xff", b"BM"]
    ),
)
def test_any_bytes_are_an_image_or_a_value_error(content, head):
    assert complaint(lambda: load_image(head + content)) in ("", "unreadable image")
