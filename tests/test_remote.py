"""Remote files arrive whole and in order over whatever connections, or end with what was tried."""

import errno
import fcntl
import io
import multiprocessing
import os
import random
import re
import shutil
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import fsspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from revision.remote import (
    RemoteError,
    Retry,
    connection,
    fingerprint,
    is_url,
    join,
    local_copy,
    open_shared,
    open_stream,
    shown,
    url_text,
)
from revision.remote import stream as stream_module
from revision.remote.cache import make_room
from tests.web_server import serving

CONTENT = random.Random(0).randbytes(700_000)
QUICK = Retry(attempts=4, first_delay_s=0.001, max_delay_s=0.01, timeout_s=0.5)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(stream_module, "RETRY", QUICK)


@pytest.fixture
def server():
    with serving({"a.bin": CONTENT}) as found:
        yield found


def read(url: str, retry: Retry = QUICK) -> bytes:
    with open_stream(url, retry) as file:
        return file.read()


# ---- streams


@pytest.mark.parametrize("knows_ranges", [True, False])
@pytest.mark.parametrize("has_versions", [True, False])
@pytest.mark.parametrize("tells_size", [True, False])
def test_cuts_and_failures_lose_no_byte(server, knows_ranges, has_versions, tells_size):
    server.knows_ranges, server.has_versions = knows_ranges, has_versions
    server.tells_size = tells_size
    server.statuses = [503, 429]
    if tells_size:  # without a size a cut looks like the end
        server.cuts = [100_000, 0, 300_000 if knows_ranges else 500_000, 600_000]
    assert read(f"{server.url}/a.bin", replace(QUICK, attempts=8)) == CONTENT


def test_reading_goes_on_at_the_byte_that_it_stopped_at(server):
    server.cuts = [200_000, 200_000]
    assert read(f"{server.url}/a.bin") == CONTENT
    spans = [span for _, span in server.requests]
    assert spans[0] is None
    assert all(re.fullmatch(r"bytes=\d+-", span) for span in spans[1:])
    assert len(spans) == 3


def test_progress_between_failures_starts_the_count_again(server):
    server.cuts = [70_000] * 9  # more than the attempts allowed
    assert read(f"{server.url}/a.bin") == CONTENT


@pytest.mark.parametrize("status", [500, 502, 503, 429, 408])
def test_failures_end_after_the_attempts_and_say_so(server, status):
    server.statuses = [status] * 9
    with pytest.raises(RemoteError, match=rf"a\.bin: cannot be read at byte 0 after 4.*{status}"):
        read(f"{server.url}/a.bin")
    assert len(server.requests) == 4


@pytest.mark.parametrize(("status", "words"), [(404, "no such file"), (403, "403"), (401, "401")])
def test_what_will_not_change_is_asked_once(server, status, words):
    server.statuses = [status]
    with pytest.raises(RemoteError, match=rf"after 1 attempt; the last error: .*{words}"):
        read(f"{server.url}/a.bin")
    assert len(server.requests) == 1


def test_a_server_that_is_down_is_named():
    with serving({}) as server:
        url = f"{server.url}/a.bin"
    with pytest.raises(RemoteError, match=r"a\.bin: cannot be read .* after 4 attempts"):
        read(url)


def test_a_server_that_stalls_is_asked_again(server):
    server.stalls = 1
    started = time.monotonic()
    assert read(f"{server.url}/a.bin", Retry(timeout_s=0.2, first_delay_s=0.01)) == CONTENT
    assert time.monotonic() - started < 4


def test_a_slow_server_is_waited_for(server):
    server.pause_s = 0.05
    assert read(f"{server.url}/a.bin", Retry(timeout_s=0.4)) == CONTENT


def test_a_server_that_always_stalls_comes_to_an_end(server):
    server.stalls = 99
    with pytest.raises(RemoteError, match="after 2 attempts"):
        read(f"{server.url}/a.bin", Retry(attempts=2, timeout_s=0.1, first_delay_s=0.01))


@pytest.mark.parametrize("knows_ranges", [True, False])
@pytest.mark.parametrize("has_versions", [True, False])
@pytest.mark.parametrize("other", [CONTENT[::-1], CONTENT[:-1]])
def test_a_file_that_changes_under_the_reader_is_refused(server, knows_ranges, has_versions, other):
    if knows_ranges and not has_versions and len(other) == len(CONTENT):
        pytest.skip("nobody can tell: no version, and no byte is read twice")
    server.knows_ranges, server.has_versions = knows_ranges, has_versions
    server.cuts = [300_000]
    server.after_request = [lambda: server.files.update({"a.bin": other})]
    with pytest.raises(RemoteError, match=r"a\.bin: changed while it was read"):
        read(f"{server.url}/a.bin")


def test_compression_on_the_way_would_move_bytes(server):
    with open_stream(f"{server.url}/a.bin") as file:
        file.seek(-10, io.SEEK_END)
        assert file.read() == CONTENT[-10:]
        file.seek(1000)
        assert file.read(5) == CONTENT[1000:1005]


@pytest.mark.parametrize("text", ["nonsense", "bytes */{size}", "bytes -5/10", ""])
def test_a_part_without_its_place_is_not_taken(server, text):
    server.cuts, server.range_text = [200_000], text
    with pytest.raises(RemoteError, match=r"after 4 attempts.*a part without its place"):
        read(f"{server.url}/a.bin")


def test_a_server_without_ranges_cannot_be_sought_in(server):
    server.knows_ranges, server.files = False, {"a.bin": bytes(3 * 2**20)}
    with open_stream(f"{server.url}/a.bin") as file:
        file.seek(-10, io.SEEK_END)
        with pytest.raises(RemoteError, match="knows no ranges; download it"):
            file.read(1)


def test_a_step_back_by_a_header_takes_no_new_connection(monkeypatch):
    content, opened = CONTENT * 4, []
    fsspec.filesystem("memory").pipe_file("/step.bin", content)
    connect = stream_module.connect
    monkeypatch.setattr(stream_module, "connect", lambda *a: opened.append(a) or connect(*a))
    with open_stream("memory://step.bin") as file:
        for _ in range(2):
            file.read(2**20)  # as large as the buffer, which is then empty
            position = file.tell()
            file.seek(position - 512)
            assert file.read(512) == content[position - 512 : position]
    assert len(opened) == 1


class Short:
    """A connection that ends too early without a word, as some drivers' do."""

    start, size, version = 0, 10, ""

    def read(self, num_bytes: int) -> bytes:
        return b""

    def close(self) -> None:
        pass


def test_an_end_before_the_size_is_an_error(monkeypatch):
    monkeypatch.setattr(stream_module, "connect", lambda *_: Short())
    with pytest.raises(RemoteError, match=r"byte 0 of 10 after 4 .*closed too early"):
        read("memory://short")


FUZZ = settings(max_examples=60, deadline=None, derandomize=True, database=None)


@FUZZ
@given(
    moves=st.lists(
        st.tuples(st.sampled_from(["read", "seek"]), st.integers(0, 3_000_000)), max_size=12
    ),
    place=st.sampled_from(["memory", "pipe"]),
)
def test_a_stream_reads_like_the_file(tmp_path_factory, moves, place):
    content = CONTENT * 4
    if place == "memory":
        fsspec.filesystem("memory").pipe_file("/fuzz.bin", content)
        url = "memory://fuzz.bin"
    else:
        path = tmp_path_factory.getbasetemp() / "fuzz.bin"
        if not path.exists():
            path.write_bytes(content)
        url = f"pipe:cat {path}"
    expected = io.BytesIO(content)
    with open_stream(url) as file:
        for name, count in moves:
            if name == "read":
                assert file.read(count) == expected.read(count)
            elif place == "memory" or count >= expected.tell():  # a command is read forwards
                file.seek(count)
                expected.seek(count)
        assert file.read(10) == expected.read(10)


# ---- commands


def test_what_a_command_prints_is_read():
    assert read("pipe:printf abc; printf def") == b"abcdef"


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("printf abc; echo oh no >&2; exit 3", "status 3: oh no"),
        ("false | cat", "status 1"),  # a shell looks at the last part alone
        ("kill -9 $$", "status -9"),
    ],
)
def test_a_command_that_fails_is_an_error(command, words):
    with pytest.raises(RemoteError, match=f"after 2 attempts; the last error: .*{words}"):
        read(f"pipe:{command}", Retry(attempts=2, first_delay_s=0.001))


def test_a_command_that_is_not_there_is_tried_once():
    with pytest.raises(RemoteError, match=r"no_such_command_here.*status 127"):
        read("pipe:no_such_command_here")


def test_a_command_that_fails_once_is_read_again_from_its_start(tmp_path):
    flag = tmp_path / "flag"
    command = f"printf 0123456789; test -e {flag} || {{ touch {flag}; exit 1; }}"
    assert read(f"pipe:{command}") == b"0123456789"
    other = f"test -e {flag}2 && printf 9876543210 || {{ printf 01234; touch {flag}2; exit 1; }}"
    with pytest.raises(RemoteError, match="what was read before came back different"):
        read(f"pipe:{other}")


@pytest.mark.parametrize("notices", [True, False])
def test_a_command_that_is_left_is_ended(tmp_path, monkeypatch, notices):
    monkeypatch.setattr(connection, "_GRACE_S", 5.0 if notices else 0.2)
    deaf = "" if notices else "trap '' TERM; "
    started = time.monotonic()
    with open_stream(f"pipe:{deaf}echo $$ > {tmp_path}/pid; printf 0123456789; sleep 20") as file:
        assert file.read(10) == b"0123456789"
    assert time.monotonic() - started < 10
    pid = int((tmp_path / "pid").read_text())
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


# ---- addresses


@pytest.mark.parametrize("url", ["s3://b/a.tar", "https://h/x?y=1", "memory://a", "pipe:cat x"])
def test_urls_are_told_from_paths(url):
    assert is_url(url)
    assert is_url(Path(url))
    if not url.startswith("pipe:"):
        assert url_text(Path(url)) == url


@pytest.mark.parametrize("path", ["a.tar", "/a/b", "c:/windows", "file:///etc/passwd", "x#a@1+2"])
def test_paths_are_no_urls(path):
    assert not is_url(path) or path.startswith("c:")


def test_messages_hide_what_an_address_holds_of_secrets():
    assert shown("https://me:secret@h/a.tar?X-Amz-Signature=1") == "https://h/a.tar"
    assert shown("sftp://me:secret@h/a.tar") == "sftp://h/a.tar"
    assert shown("s3://b/a?b@c") == "s3://b/a?b@c"


@pytest.mark.parametrize("name", ["../x", "a/../../x", "/x", "https://evil/x", "a\\..\\x"])
def test_names_do_not_leave_what_they_lie_below(name):
    with pytest.raises(ValueError, match="leads outside"):
        join("https://h/root", name)
    assert join("https://h/root/", "a b/c%2e.png") == "https://h/root/a%20b/c%252e.png"


def test_an_address_without_a_driver_is_refused():
    with pytest.raises(RemoteError, match="nothing://x"):
        read("nothing://x")


# ---- fingerprints


def test_a_fingerprint_follows_the_version(server):
    url = f"{server.url}/a.bin"
    first = fingerprint(url)
    assert fingerprint(f"{url}?signature=2") == first
    server.files["a.bin"] = CONTENT[::-1]
    assert fingerprint(url) != first
    server.has_versions = False
    second = fingerprint(url)
    server.files["a.bin"] = CONTENT
    assert fingerprint(url) != second  # its bytes were read
    assert fingerprint("pipe:cat x") != fingerprint("pipe:cat y")


# ---- copies


def test_a_copy_is_made_once(server, tmp_path):
    first = local_copy(f"{server.url}/a.bin", tmp_path, version="1")
    second = local_copy(f"{server.url}/a.bin", tmp_path, version="1")
    assert first.path == second.path
    assert first.path.read_bytes() == CONTENT
    assert len(server.requests) == 1
    assert local_copy(f"{server.url}/a.bin", tmp_path, version="2").path != first.path


def test_without_a_version_a_changed_file_is_fetched_again(server, tmp_path):
    url = f"{server.url}/a.bin"
    assert local_copy(url, tmp_path).path.read_bytes() == CONTENT
    server.files["a.bin"] = b"other"
    assert local_copy(url, tmp_path).path.read_bytes() == b"other"


def test_a_copy_survives_cuts(server, tmp_path):
    server.cuts = [100_000, 50_000, 0]
    assert local_copy(f"{server.url}/a.bin", tmp_path).path.read_bytes() == CONTENT


@pytest.mark.parametrize("tells_size", [True, False])
def test_a_copy_that_is_not_what_was_expected_is_refused_and_leaves_nothing(
    server, tmp_path, tells_size
):
    server.tells_size = tells_size
    url = f"{server.url}/a.bin"
    with pytest.raises(ValueError, match=r"700000 bytes, expected 5"):
        local_copy(url, tmp_path, num_bytes=5)
    with pytest.raises(ValueError, match="not what was expected: wrong digest"):
        local_copy(url, tmp_path, check=lambda path: "wrong digest")
    server.statuses = [503] * 9
    with pytest.raises(ValueError, match="after 4 attempts"):
        local_copy(url, tmp_path, version="x")
    assert list(tmp_path.iterdir()) == []


def test_a_download_that_ends_while_room_is_made_is_no_error(tmp_path, monkeypatch):
    unfinished, path = tmp_path / ".b-0.1-a.tmp", tmp_path / "b-0"
    (tmp_path / "a-0").write_bytes(bytes(60))
    unfinished.write_bytes(bytes(60))
    (tmp_path / "b-0.lock").touch()
    with (tmp_path / "b-0.lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        listed = Path.iterdir

        def iterdir(directory):
            found = list(listed(directory))
            if unfinished.exists():
                unfinished.rename(path)  # as another process does, in this moment
            return iter(found)

        monkeypatch.setattr(Path, "iterdir", iterdir)
        make_room(tmp_path, 10, 100)
    assert path.exists()
    assert not (tmp_path / "a-0").exists()


def test_the_copy_used_longest_ago_goes_first_and_open_ones_stay(server, tmp_path, monkeypatch):
    monkeypatch.setenv("REVISION_CACHE_GIB", str(3000 / 2**30))
    server.files = {f"{i}.bin": bytes([i]) * 1000 for i in range(5)}

    def fetch(i):
        return local_copy(f"{server.url}/{i}.bin", tmp_path, version="1")

    held = fetch(0)
    fetch(1).close()
    fetch(2).close()
    time.sleep(0.01)
    fetch(1).close()  # used again
    fetch(3).close()
    names = sorted(p.name[0] for p in tmp_path.glob("*.bin-*"))
    assert names == ["0", "1", "3"]
    assert held.path.read_bytes() == bytes(1000)
    also = [fetch(1), fetch(3)]
    with pytest.raises(ValueError, match="files of 3000 bytes are in use and the limit is 3000"):
        fetch(4)
    held.close()
    assert fetch(4).path.exists()
    del also


def test_what_killed_processes_left_is_removed(tmp_path):
    (tmp_path / ".a.bin-0123.77-abcd.tmp").write_bytes(bytes(1000))
    (tmp_path / "a.bin-0123.lock").touch()
    make_room(tmp_path, 10, 100)
    assert not list(tmp_path.glob(".*.tmp"))


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("REVISION_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_what_is_shared_comes_over_the_network_once(server, cache):
    url = f"{server.url}/a.bin"
    with open_shared(url) as first, open_shared(url) as second:
        assert first.read() == second.read() == CONTENT
        assert len(server.requests) == 3  # the version, all of it, the version
        (copy,) = cache.iterdir()
        with pytest.raises(ValueError, match="limit is 800000; allow more by REVISION_CACHE_GIB"):
            make_room(cache, len(CONTENT), 800_000)
    make_room(cache, len(CONTENT), 800_000)  # nobody has it open
    assert not copy.exists()


def test_what_a_copy_does_not_help_is_streamed(server, cache, monkeypatch):
    def read_shared(url):
        with open_shared(url) as file:
            return file.read()

    assert read_shared("pipe:printf abc") == b"abc"
    server.has_versions = False
    assert read_shared(f"{server.url}/a.bin") == CONTENT
    server.has_versions = True
    monkeypatch.setenv("REVISION_CACHE_GIB", str(7 * len(CONTENT) / 2**30))
    assert read_shared(f"{server.url}/a.bin") == CONTENT
    assert not list(cache.glob("*a.bin*"))


def test_what_finds_no_room_is_streamed(server, cache, monkeypatch, caplog):
    server.files["b.bin"] = bytes(1000)
    monkeypatch.setenv("REVISION_CACHE_GIB", str(8500 / 2**30))
    with ExitStack() as held:
        for i in range(8):
            held.enter_context(local_copy(f"{server.url}/b.bin", version=str(i)).into_file())
        with open_shared(f"{server.url}/b.bin") as file:
            assert file.read() == bytes(1000)
    assert "read without a copy" in caplog.text


def test_a_disk_without_locks_is_refused(server, cache, monkeypatch):
    def flock(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(ValueError, match=r"No locks available.*set REVISION_CACHE_DIR"):
        open_shared(f"{server.url}/a.bin")


def test_the_cache_takes_no_more_than_half_of_what_is_free(server, cache, monkeypatch):
    usage = shutil.disk_usage("/")._replace(free=100_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(ValueError, match="the limit is 50000"):
        local_copy(f"{server.url}/a.bin")


def _copy(url: str, directory: Path) -> bytes:
    return local_copy(url, directory, version="1").path.read_bytes()


def test_of_several_processes_one_downloads(server, tmp_path):
    server.pause_s = 0.01
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        calls = [(f"{server.url}/a.bin", tmp_path)] * 3
        assert pool.starmap(_copy, calls) == [CONTENT] * 3
    assert len(server.requests) == 1
