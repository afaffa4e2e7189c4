"""Every format reads the same from a path, a URL and a command, and no fault ends in silence."""

import gzip
import io
import json
import tarfile
import threading
from pathlib import Path

import fsspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pyarrow import Table, parquet

from revision.records import (
    Record,
    Rejection,
    detect_format,
    input_files,
    input_text,
    inputs,
    load_image,
    read_records,
)
from revision.records.formats import described_input
from revision.records.inputs import expand_braces
from revision.remote import RemoteError, Retry, is_pipe
from revision.remote import stream as stream_module
from tests.web_server import serving

HF = Path(__file__).parent / "hf_datasets"


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    retry = Retry(attempts=4, first_delay_s=0.001, max_delay_s=0.01, timeout_s=0.5)
    monkeypatch.setattr(stream_module, "RETRY", retry)


@pytest.fixture
def server():
    with serving({}) as found:
        yield found


def png(color: int = 7) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 3), (color, 0, 0)).save(buffer, "png")
    return buffer.getvalue()


def tar_bytes(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def parquet_bytes(rows: list[dict]) -> bytes:
    buffer = io.BytesIO()
    parquet.write_table(Table.from_pylist(rows), buffer)
    return buffer.getvalue()


def chat(id: object, text: str = "<image> What?", **fields: object) -> dict:
    turns = [{"from": "human", "value": text}, {"from": "gpt", "value": "A cat."}]
    return {"id": id, "image": "a.png", "conversations": turns} | fields


ROWS = [{"id": f"r{i}", "text": f"text {i} é"} for i in range(700)]
LINES = "\n".join(json.dumps(row) for row in ROWS).encode()
FILES = {
    "a.json": json.dumps({"texts": ROWS}).encode(),
    "array.json": json.dumps(ROWS).encode(),
    "a.jsonl": LINES,
    "a.jsonl.gz": gzip.compress(LINES),
    "a.csv": b"id,text\n" + b"".join(f"{r['id']},{r['text']}\n".encode() for r in ROWS),
    "a.tar": tar_bytes({f"{i:03d}.txt": row["text"].encode() for i, row in enumerate(ROWS)}),
    "a.parquet": parquet_bytes(ROWS),
    "a.arrow": (HF / "pairs" / "data-00000-of-00002.arrow").read_bytes(),
}


def places(name: str, content: bytes, directory: Path, url: str) -> list[str]:
    (directory / name).write_bytes(content)
    fsspec.filesystem("memory").pipe_file(f"/{name}", content)
    return [str(directory / name), f"{url}/{name}?signature=x", f"memory://{name}"] + (
        [] if name.endswith(".parquet") else [f"pipe:cat {directory / name}"]
    )


@pytest.mark.parametrize("name", FILES)
def test_a_format_is_the_same_wherever_it_lies(server, tmp_path, name):
    server.files = {name: FILES[name]}
    local, *others = places(name, FILES[name], tmp_path, server.url)
    format = detect_format(local)
    expected = list(read_records(local, side="text"))
    assert len(expected) in (3, 700)
    assert all(isinstance(entry, Record) for entry in expected)
    for place in others:
        server.cuts = [len(FILES[name]) // 3, len(FILES[name]) // 2]
        if is_pipe(place) and name in ("a.csv", "a.arrow"):
            found = list(read_records(place, side="text", format=format))
        else:
            assert detect_format(place) == format
            found = list(read_records(place, side="text"))
        assert [(r.id.split("/")[-1], r.text) for r in found] == [
            (r.id.split("/")[-1], r.text) for r in expected
        ]


@pytest.mark.parametrize(
    ("name", "format"),
    [
        *(("a.json", "revision"), ("array.json", "conversations"), ("a.jsonl", "conversations")),
        *(("a.jsonl.gz", "conversations"), ("a.tar", "webdataset"), ("a.arrow", "datasets")),
        ("large.tar", "webdataset"),
    ],
)
def test_what_is_read_in_order_takes_one_connection_and_runs_a_command_once(
    server, tmp_path, name, format
):
    large = {f"{i}.bin": bytes(3 * 2**20 + 512 * i) for i in range(3)} | {"a.txt": b"text"}
    content = FILES[name] if name in FILES else tar_bytes(large)
    server.files, server.pause_s = {name: content}, 0.001
    list(read_records(f"{server.url}/{name}", side="text", format=format))
    assert server.requests == [(name, None)]
    (tmp_path / name).write_bytes(content)
    command = f"pipe:echo x >> {tmp_path}/runs; cat {tmp_path}/{name}"
    list(read_records(command, side="text", format=format))
    assert (tmp_path / "runs").read_text() == "x\n"


def test_pictures_of_a_remote_tar_are_found_again_below_its_root(server):
    server.files = {"x/0.tar": tar_bytes({"0.txt": b"t", "0.png": png(9)})}
    root = f"{server.url}/x"
    (record,) = read_records(f"{root}/0.tar", side="image", image_root=root)
    address = record.to_json()["images"][0]
    assert address.startswith("0.tar#0.png@")
    assert load_image(address, image_root=root).getpixel((0, 0)) == (9, 0, 0)
    assert load_image(f"{root}/{address}", image_root=Path(root)).size == (4, 3)
    with pytest.raises(ValueError, match="opened only below an image_root"):
        load_image(f"{root}/{address}")


def test_pictures_named_by_json_are_read_below_a_remote_root(server):
    server.files = {"images/a%20b.png": png(3)}
    root = f"{server.url}/images"
    assert load_image("a b.png", image_root=root).getpixel((0, 0)) == (3, 0, 0)
    with pytest.raises(ValueError, match="missing image"):
        load_image("gone.png", image_root=root)
    server.statuses = [503] * 9
    with pytest.raises(RemoteError, match="after 4 attempts"):  # no fault of the picture
        load_image("a b.png", image_root=root)


@pytest.mark.parametrize(
    "source",
    [
        "../secret.png",
        "/secret.png",
        "a/../../secret.png",
        "{root}/../secret.png",
        "{root}/%2e%2e/secret.png",
        "{root}/a/%2E./../secret.png",
        "{root}x/secret.png",
        "http://127.0.0.1:1/secret.png",
        "pipe:cat /etc/passwd",
        "file:///etc/passwd/../x",
        "../x.tar#secret.png@0+9",
        "memory://secret.png",
    ],
)
def test_nothing_outside_a_remote_root_is_asked_for(server, source):
    server.files = {"secret.png": png(), "rootx/secret.png": png()}
    root = f"{server.url}/root"
    with pytest.raises(ValueError, match=r"outside|opened only below|missing image"):
        load_image(source.format(root=root), image_root=root)
    assert not {name for name, _ in server.requests} & set(server.files)


@pytest.mark.parametrize("root", [None, "local"])
@pytest.mark.parametrize(
    "source",
    ["{url}/a.png", "pipe:touch {flag}", "memory://a.png", "pipe:touch {flag}; x.tar#a@0+1"],
)
def test_data_cannot_send_requests_or_run_commands(server, tmp_path, root, source):
    server.files = {"a.png": png()}
    flag = tmp_path / "flag"
    with pytest.raises(ValueError, match="opened only below an image_root"):
        load_image(source.format(url=server.url, flag=flag), image_root=tmp_path if root else None)
    assert not flag.exists()
    assert not server.requests


def test_a_truncated_tar_is_refused_wherever_it_lies(server, tmp_path):
    content = tar_bytes({"0.txt": b"a" * 300, "1.txt": b"b" * 300})
    for keep in (600, 1024, 1024 + 512, 1024 + 700, 2048):
        server.files = {"x.tar": content[:keep]}
        for place in places("x.tar", content[:keep], tmp_path, server.url):
            with pytest.raises(ValueError, match="truncated tar"):
                list(read_records(place, side="text", format="webdataset"))


def test_a_command_that_fails_behind_a_whole_tar_is_an_error(tmp_path):
    (tmp_path / "x.tar").write_bytes(tar_bytes({"0.txt": b"text"}))
    with pytest.raises(ValueError, match=r"after 4 attempts; the last error: .*status 3"):
        list(read_records(f"pipe:cat {tmp_path}/x.tar; exit 3", side="text", format="webdataset"))


@pytest.mark.parametrize("name", ["a.jsonl", "a.tar", "a.parquet", "a.csv", "array.json"])
def test_a_file_that_is_gone_or_keeps_failing_is_named(server, name):
    with pytest.raises(ValueError, match=rf"{name}.*no such file"):
        list(read_records(f"{server.url}/{name}", side="text"))
    server.files = {name: FILES[name]}
    server.statuses = [503] * 99
    with pytest.raises(ValueError, match=rf"{name}.*after 4 attempts"):
        list(read_records(f"{server.url}/{name}", side="text"))


def test_a_shard_that_vanishes_between_two_is_named(server):
    server.files = {f"{i}.tar": tar_bytes({f"{i}.txt": b"text"}) for i in range(3)}
    entries = read_records(f"{server.url}/{{0..2}}.tar", side="text")
    assert next(entries).id == "0"
    del server.files["1.tar"]
    with pytest.raises(ValueError, match=r"1\.tar: cannot be read at byte 0 after 1 attempt"):
        list(entries)


def test_gzip_that_is_cut_is_refused(tmp_path):
    (tmp_path / "a.jsonl.gz").write_bytes(FILES["a.jsonl.gz"][:-20])
    with pytest.raises(ValueError, match=r"a\.jsonl\.gz: cannot be read .*end-of-stream"):
        list(read_records(tmp_path / "a.jsonl.gz", side="text"))
    (tmp_path / "a.jsonl.zst").write_bytes(b"\x28\xb5\x2f\xfd" + bytes(30))
    with pytest.raises(ValueError, match="pipe:zstd -dc"):
        list(read_records(tmp_path / "a.jsonl.zst", side="text"))


# ---- lists, braces, directories


def test_lists_and_braces_name_files_in_order(tmp_path):
    for i in range(3):
        (tmp_path / f"{i}.jsonl").write_text(json.dumps({"id": f"{i}", "text": "t"}))
    given = [tmp_path / "2.jsonl", f"{tmp_path}/{{0..1}}.jsonl"]
    for each in (given, input_text(given), f"{tmp_path}/2.jsonl::{tmp_path}/[01]*.jsonl"):
        assert [r.id for r in read_records(each, side="text")] == ["2", "0", "1"]
    assert described_input(given, "auto").endswith("read as conversations (detected), 3 files")
    assert described_input(tmp_path / "0.jsonl", "conversations").endswith("(as asked)")


def test_braces_are_those_of_a_shell():
    assert expand_braces("{a,b}{0..1}") == ["a0", "a1", "b0", "b1"]
    assert expand_braces("{08..10}") == ["08", "09", "10"]


@pytest.mark.parametrize("program", ["awk '{print $1,$2}'", "jq -c '{id, text}'", "cat {a,b}"])
def test_braces_of_a_command_are_its_own_but_for_numbers(program):
    assert expand_braces(f"pipe:{program}") == [f"pipe:{program}"]
    both = [f"pipe:curl https://h/{i}.jsonl | {program}" for i in range(2)]
    assert expand_braces(f"pipe:curl https://h/{{0..1}}.jsonl | {program}") == both


def test_servers_are_asked_about_many_files_at_a_time(monkeypatch):
    together = threading.Barrier(8, timeout=30)  # opens when eight questions have been asked
    monkeypatch.setattr(inputs, "is_directory", lambda url: together.wait() < 0)
    files = input_files("memory://{0..7}.tar")
    assert [file.name for file in files] == [f"{i}.tar" for i in range(8)]


def test_a_remote_directory_is_listed_where_the_server_does(tmp_path):
    memory = fsspec.filesystem("memory")
    for i in range(2):
        memory.pipe_file(f"/shards/{i}.tar", tar_bytes({f"{i}.txt": b"text"}))
    for place in ("memory://shards", "memory://shards/*.tar", Path("memory://shards")):
        assert [r.id for r in read_records(place, side="text")] == ["0", "1"]
    with pytest.raises(ValueError, match="a web server does not list"):
        input_files("https://127.0.0.1/x/*.tar")


def test_a_signature_is_not_printed(server):
    with pytest.raises(ValueError, match="no such file") as raised:
        list(read_records(f"{server.url}/a.tar?X-Signature=secret", side="text"))
    assert "secret" not in str(raised.value)
    assert "secret" not in described_input(f"{server.url}/a.tar?X-Signature=secret", "webdataset")


def test_digests_follow_the_version_of_a_remote_file(server, tmp_path):
    server.files = {"a.jsonl": LINES}
    (file,) = input_files(f"{server.url}/a.jsonl")
    first = file.digest(), file.stamp()
    server.files = {"a.jsonl": LINES[:-1]}
    assert (file.digest() != first[0]) and (file.stamp() != first[1])


# ---- ids that come again


def test_conversations_about_one_picture_are_all_kept(tmp_path):
    entries = [chat("p", "<image> 1"), chat("p", "<image> 2"), chat("q"), chat("p#2"), chat("p")]
    path = tmp_path / "chat.json"
    path.write_text(json.dumps(entries))
    records = list(read_records(path, side="both"))
    assert [r.id for r in records] == ["p", "p#2", "q", "p#2#2", "p#3"]
    assert [r.metadata.get("original_id") for r in records] == [None, "p", None, "p#2", "p"]


def test_the_number_of_an_id_is_the_same_on_both_sides(tmp_path):
    entries = [
        chat("p", "text alone", image=None, caption="no picture"),
        chat("p", caption="a picture"),
        chat("p", caption=""),
        chat("p", caption="another"),
    ]
    path = tmp_path / "chat.json"
    path.write_text(json.dumps(entries))
    sides = {
        side: {r.id: r for r in read_records(path, side=side) if isinstance(r, Record)}
        for side in ("image", "text")
    }
    assert list(sides["text"]) == ["p", "p#2", "p#4"]
    assert sides["image"]["p#4"].text == sides["text"]["p#4"].text == "another"


def test_where_ids_pair_or_name_rows_the_later_one_is_refused(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("id,text\na,one\na,two\n")
    _, rejection = read_records(path, side="text")
    assert "duplicate id" in rejection.reason


def test_an_id_whose_first_entry_is_refused_does_not_pair_with_its_second(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("id,text,image\na,one,\na,,two.png\n")
    kept = [
        entry.id
        for side in ("image", "text")
        for entry in read_records(path, side=side)
        if isinstance(entry, Record)
    ]
    assert kept == ["a"]  # and not the text of the one with the picture of the other


# ---- anything at all, in pieces


FUZZ = settings(max_examples=60, deadline=None, derandomize=True, database=None)


@FUZZ
@given(
    content=st.one_of(
        st.binary(max_size=300),
        st.sampled_from(list(FILES.values())).flatmap(
            lambda c: st.integers(0, len(c)).map(lambda n: c[:n])
        ),
    ),
    suffix=st.sampled_from(["json", "tar", "parquet", "csv", "arrow", "jsonl.gz"]),
)
def test_any_bytes_are_read_or_refused_as_from_a_file(tmp_path_factory, content, suffix):
    path = tmp_path_factory.getbasetemp() / f"piece.{suffix}"
    path.write_bytes(content)
    fsspec.filesystem("memory").pipe_file(f"/piece.{suffix}", content)

    def outcome(place):
        found: list[object] = []
        try:
            for entry in read_records(place, side="both"):
                found.append((entry.id, isinstance(entry, Rejection)))
        except ValueError as error:
            found.append(f"refused, {path.name if path.name in str(error) else error}")
        return found

    assert outcome(path) == outcome(f"memory://piece.{suffix}")
