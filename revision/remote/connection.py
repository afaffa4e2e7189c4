"""One connection to a remote file: bytes from a position on, until it ends or breaks.

`connect` knows three kinds: a web server, a driver of fsspec, a command. What a connection tells
of its file (size, version) is compared by `revision.remote.stream` when the next one is opened.

An error is final if another attempt could not end differently: no such file, no permission, no
driver. All others, time-outs among them, are worth another attempt.
"""

import os
import re
import signal
import subprocess
import tempfile
from contextlib import suppress
from typing import Any, Protocol

from revision.remote.address import PIPE, filesystem, is_http, is_pipe, shown

_PASSING = (408, 425, 429)  # of the client errors of HTTP those that a later request may not meet
_VERSIONS = (
    *("ETag", "etag", "md5Hash", "Content-MD5", "Last-Modified"),
    *("LastModified", "last_modified", "updated", "mtime", "created"),
)
_BLOCK_BYTES = 2**23
_GRACE_S = 5.0  # for a command to end when it is asked to


class RemoteError(OSError):
    """A remote file cannot be read; the message says which, why, and what was tried."""


class Connection(Protocol):
    """`start` is where it begins, which may be 0 instead of the position that was asked for;
    `size` and `version` are of the whole file, None or empty where nobody tells."""

    start: int
    size: int | None
    version: str

    def read(self, num_bytes: int) -> bytes:
        """Some bytes, none at the end."""

    def close(self) -> None: ...


def connect(url: str, position: int, version: str, timeout_s: float) -> Connection:
    """Open `url` at `position`; `version` is the one that was read so far, or empty."""
    if is_pipe(url):
        return _Command(url)
    if is_http(url):
        return _Response(url, position, version, timeout_s)
    return _DriverFile(url, position)


def is_final(error: BaseException) -> bool:
    """Whether another attempt is pointless."""
    status = getattr(error, "status", None)
    if isinstance(status, int):
        return 400 <= status < 500 and status not in _PASSING
    if isinstance(error, RemoteError):
        return True
    return isinstance(error, (FileNotFoundError, PermissionError, IsADirectoryError, ValueError))


def described(error: BaseException) -> str:
    """`error` in short words; some of those of networks have none."""
    status = getattr(error, "status", None)
    if isinstance(status, int):
        return f"HTTP status {status} {getattr(error, 'message', '')}".strip()
    if isinstance(error, FileNotFoundError):
        return "no such file"
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def _version(facts: Any) -> str:
    return next((f"{key} {facts[key]}" for key in _VERSIONS if facts.get(key)), "")


class _Response:
    """A file of a web server, in one response however long it is."""

    def __init__(self, url: str, position: int, version: str, timeout_s: float) -> None:
        from aiohttp import ClientTimeout

        driver, path = filesystem(url)
        # Compressed on the way, the bytes would have other positions.
        headers = dict(driver.kwargs.get("headers", {})) | {"Accept-Encoding": "identity"}
        if position:
            headers["Range"] = f"bytes={position}-"
        if position and version.startswith(('ETag "', "Last-Modified ")):  # no weak ETag: "W/..."
            headers["If-Range"] = version.partition(" ")[2]
        timeout = ClientTimeout(total=None, sock_connect=timeout_s, sock_read=timeout_s)
        # A size, any, keeps the driver from asking for it, which signed addresses do not allow.
        self._file = driver.open(
            path, block_size=0, size=1, headers=headers, timeout=timeout, auto_decompress=False
        )
        response = self._file.r
        self.version = _version(response.headers)
        self.start, self.size = 0, response.content_length
        if response.status == 206:
            self.start, self.size = self._place(response.headers.get("Content-Range", ""))

    def _place(self, told: str) -> tuple[int, int | None]:
        """Where a part begins, and the size of the whole; proxies may tell anything."""
        found = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", told.strip())
        if found is None:
            self.close()
            raise ConnectionError(f"a part without its place: Content-Range {told!r}")
        return int(found[1]), None if found[2] == "*" else int(found[2])

    def read(self, num_bytes: int) -> bytes:
        return self._file.read(num_bytes)

    def close(self) -> None:
        self._file.close()


class _DriverFile:
    """A file of any other driver of fsspec, read by blocks."""

    def __init__(self, url: str, position: int) -> None:
        driver, path = filesystem(url)
        driver.invalidate_cache(driver._parent(path))
        facts = driver.info(path)
        if facts.get("type") == "directory":
            raise IsADirectoryError(f"{url} is a directory")
        self.start, self.size, self.version = position, facts.get("size"), _version(facts)
        self._file = driver.open(path, "rb", block_size=_BLOCK_BYTES)
        self._position = position

    def read(self, num_bytes: int) -> bytes:
        self._file.seek(self._position)  # drivers may hand out one object to several readers
        content = self._file.read(num_bytes)
        self._position += len(content)
        return content

    def close(self) -> None:
        self._file.close()


class _Command:
    """What a command prints. A status other than 0 of any part of its pipeline is an error."""

    start: int = 0
    size: int | None = None
    version: str = ""

    def __init__(self, url: str) -> None:
        self._command = url.removeprefix(PIPE)
        self._complaints = tempfile.TemporaryFile()  # noqa: SIM115 (closed with the command)
        self._process = subprocess.Popen(
            ["bash", "-o", "pipefail", "-c", self._command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=self._complaints,
            start_new_session=True,
        )

    def read(self, num_bytes: int) -> bytes:
        assert self._process.stdout is not None
        content = self._process.stdout.read1(num_bytes)  # type: ignore[attr-defined]
        if not content and self._process.wait():
            self._fail(self._process.returncode)
        return content

    def _fail(self, status: int) -> None:
        self._complaints.seek(max(0, self._complaints.seek(0, os.SEEK_END) - 300))
        last = self._complaints.read().decode("utf-8", "replace").strip()
        message = f"the command ended with status {status}" + (f": {last}" if last else "")
        if status in (126, 127):  # the shell did not find it, or may not run it
            raise RemoteError(f"{shown(PIPE + self._command)}: {message}")
        raise ConnectionError(message)

    def _signal(self, number: int) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)

    def close(self) -> None:
        """End the command, with all that it started, if it still runs."""
        if self._process.poll() is None:
            self._signal(signal.SIGTERM)
        assert self._process.stdout is not None
        self._process.stdout.close()
        try:
            self._process.wait(_GRACE_S)
        except subprocess.TimeoutExpired:  # it takes no notice
            self._signal(signal.SIGKILL)
            self._process.wait()
        self._complaints.close()
