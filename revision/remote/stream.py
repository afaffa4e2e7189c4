"""Read a remote file from any byte, over connections that break, stall or are refused.

A broken connection is opened again at the byte that it broke at. A server that ignores the
position, or a command, is read again from its start, and what was read before must come again:
its CRC-32 is compared. A file that has changed meanwhile (size, ETag, modification time) ends the
reading, because the rest would belong to other data.

The attempts without one new byte in between are counted. The k-th wait is

    d_k = u min(D, d 2^(k-1)),    u uniform on [1/2, 1)

so that many readers do not return together; after A attempts comes the end, with what was tried.

Letters: A `attempts`, d `first_delay_s`, D `max_delay_s`.
"""

import hashlib
import io
import logging
import random
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import NoReturn, TypeVar

from revision.remote.address import is_pipe, shown, url_text
from revision.remote.connection import Connection, RemoteError, connect, described, is_final

_KEPT_BYTES = 1024  # of what was read: readers of tars step back by one header
_PIECE_BYTES = 2**20
T = TypeVar("T")
_jitter = random.SystemRandom()  # not one that a seed makes equal in all processes

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Retry:
    """How long to go on. With the defaults the waits come to about a minute in all.

    `timeout_s` is for connecting to a web server and for each wait for its next bytes; other
    drivers have their own, which fsspec configures.
    """

    attempts: int = 8
    first_delay_s: float = 0.5
    max_delay_s: float = 30.0
    timeout_s: float = 60.0

    def delay_s(self, failures: int) -> float:
        """The wait after `failures` attempts in vain, at least one."""
        longest = min(self.max_delay_s, self.first_delay_s * 2 ** (failures - 1))
        return longest * _jitter.uniform(0.5, 1.0)


RETRY = Retry()


def open_stream(url: str, retry: Retry | None = None) -> io.BufferedReader:
    """`url` as a binary file: read on from a byte, or sought where the server knows ranges.

    Reading raises RemoteError (an OSError) when it ends before the file does.
    """
    return io.BufferedReader(RemoteFile(url_text(url), retry or RETRY), _PIECE_BYTES)


def read_all(url: str, *, offset: int = 0, max_bytes: int) -> bytes:
    """The bytes of `url` from `offset` to its end, or `max_bytes` of them."""
    with open_stream(url) as file:
        file.seek(offset)
        return file.read(max_bytes)


def exists(url: str) -> bool:
    """Whether there is such a file, and it may be read.

    Raises:
        RemoteError: its server does not answer.
    """
    try:
        with RemoteFile(url_text(url), RETRY) as file:
            file.facts()
    except RemoteError as error:
        if error.__cause__ is not None and is_final(error.__cause__):
            return False
        raise
    return True


def fingerprint(url: str) -> str:
    """SHA-256 of what identifies the version of a file: its name, size and ETag, or time.

    A server that tells neither ETag nor time is read to its end, once; of a command this is the
    command alone, since nobody knows whether it prints the same again.
    """
    url = url_text(url)
    facts = [shown(url)]
    if not is_pipe(url):
        with RemoteFile(url, RETRY) as file:
            size, version = file.facts()
        facts += [str(size), version or _content_digest(url)]
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()


def _content_digest(url: str) -> str:
    digest = hashlib.sha256()
    with open_stream(url) as file:
        while piece := file.read(_PIECE_BYTES):
            digest.update(piece)
    return digest.hexdigest()


class RemoteFile(io.RawIOBase):
    """The bytes of `url` without a buffer; see `open_stream`."""

    def __init__(self, url: str, retry: Retry) -> None:
        self.url, self._retry = url, retry
        self._connection: Connection | None = None
        self._size: int | None = None
        self._version = ""
        self._position = 0  # of the caller
        self._fetched = 0  # position behind the last byte that was fetched
        self._kept = b""  # the bytes before it
        self._checksum: int | None = 0  # of all bytes before it; None when some were left out
        self._failures = 0
        self._is_known = False

    # ---- what io.BufferedReader calls

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position}.get(whence)
        if base is None:
            base, _ = self.facts()
        if base is None:
            raise RemoteError(f"{shown(self.url)}: its size is not known, read it from its start")
        self._position = base + offset
        return self._position

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        kept = self._fetched - self._position
        if 0 < kept <= len(self._kept):
            piece = self._kept[-kept:][: len(buffer)]
        else:
            if self._position != self._fetched:
                self._move()
            piece = self._fetch(len(buffer))
        buffer[: len(piece)] = piece
        self._position += len(piece)
        return len(piece)

    def close(self) -> None:
        self._hang_up()
        super().close()

    # ---- what the network does

    def facts(self) -> tuple[int | None, str]:
        """Size and version of the file, as far as the server tells them."""
        while not self._is_known:
            self._attempt(self._connect)
        return self._size, self._version

    def _move(self) -> None:
        """Go to the caller's position: over a short gap by reading, else by another connection."""
        gap = self._position - self._fetched
        if gap > 0 and (gap <= _PIECE_BYTES or is_pipe(self.url)):
            while self._fetched < self._position and self._fetch(
                min(_PIECE_BYTES, self._position - self._fetched)
            ):
                pass
            return
        self._hang_up()
        self._fetched, self._kept = self._position, b""
        self._checksum = None if self._position else 0
        if self._size is None or self._position < self._size:
            while self._connection is None:
                self._attempt(self._connect)

    def _fetch(self, num_bytes: int) -> bytes:
        """The next bytes, none at the end of the file."""
        piece: bytes | None = None
        while piece is None:
            if self._size is not None and self._fetched >= self._size:
                return b""
            piece = self._attempt(lambda: self._read(num_bytes))
        self._failures = 0
        self._fetched += len(piece)
        self._kept = (self._kept + piece[-_KEPT_BYTES:])[-_KEPT_BYTES:]
        if self._checksum is not None:
            self._checksum = zlib.crc32(piece, self._checksum)
        return piece

    def _read(self, num_bytes: int) -> bytes:
        if self._connection is None:
            self._connect()
        assert self._connection is not None
        piece = self._connection.read(num_bytes)
        if not piece and self._size is not None:
            raise ConnectionError("the connection was closed too early")
        return piece

    def _attempt(self, action: Callable[[], T]) -> T | None:
        """The result of `action`, or None after a wait when it failed in a way that may pass."""
        try:
            return action()
        except Exception as error:  # every driver has its own family of errors
            self._hang_up()
            self._failures += 1
            if is_final(error) or self._failures >= self._retry.attempts:
                self._give_up(error)
            delay_s = self._retry.delay_s(self._failures)
            log.warning(
                *("%s: %s at byte %d; attempt %d of %d in %.1f s", shown(self.url)),
                *(described(error), self._fetched, self._failures + 1, self._retry.attempts),
                delay_s,
            )
            time.sleep(delay_s)
            return None

    def _give_up(self, error: Exception) -> NoReturn:
        if isinstance(error, RemoteError):
            raise error
        of = "" if self._size is None else f" of {self._size}"
        tried = f"{self._failures} attempt{'s' if self._failures > 1 else ''}"
        raise RemoteError(
            f"{shown(self.url)}: cannot be read at byte {self._fetched}{of} after {tried}; "
            f"the last error: {described(error)}"
        ) from error

    def _connect(self) -> None:
        """Open a connection that stands at `_fetched`."""
        connection = connect(self.url, self._fetched, self._version, self._retry.timeout_s)
        self._connection = connection
        self._check_same(connection)
        if self._checksum is None and connection.start != self._fetched:
            raise RemoteError(
                f"{shown(self.url)}: cannot be read from byte {self._fetched} on, its server knows "
                "no ranges; download it and give the file"
            )
        self._skip(connection)

    def _check_same(self, connection: Connection) -> None:
        if not self._is_known:
            self._size, self._version, self._is_known = connection.size, connection.version, True
            return
        pairs = ((self._size, connection.size), (self._version, connection.version))
        for known, found in pairs:
            if known and found and known != found:
                raise self._changed(f"{known} is now {found}")

    def _changed(self, reason: str) -> RemoteError:
        return RemoteError(
            f"{shown(self.url)}: changed while it was read, at byte {self._fetched} ({reason}); "
            "what follows would belong to other data: start again"
        )

    def _skip(self, connection: Connection) -> None:
        """Read again what was read before, and compare."""
        checksum, position = 0, connection.start
        if position not in (0, self._fetched):
            raise ConnectionError(f"the server answered with bytes from {position} on")
        while position < self._fetched:
            piece = connection.read(min(_PIECE_BYTES, self._fetched - position))
            if not piece:
                raise ConnectionError(f"it ended at byte {position}")
            position += len(piece)
            checksum = zlib.crc32(piece, checksum)
        if connection.start < self._fetched and checksum != self._checksum:
            raise self._changed("what was read before came back different")

    def _hang_up(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()
