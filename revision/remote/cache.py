"""Whole remote files in a directory of this machine, for random access and for many processes.

A file appears under its name when it is complete (`revision.files.replacing`), with the size and
the digest that were expected. Of the processes that want the same one, one downloads and the
others wait. The directory has a limit: the file that was used the longest time ago goes first, and
one that some process has open never does.

    <name>-<16 hex digits of the address>       a file; its lock is shared by those who use it
    <name>-<16 hex digits of the address>.lock  exists while one process downloads

Locks are those of `flock`, which the system frees when a process dies. The directory must lie on a
disk of this machine, as network file systems often know no locks: where that is, and how much of it
may be used, are facts of the machine and not of a run, so they are environment variables.

    REVISION_CACHE_DIR  runs/.cache
    REVISION_CACHE_GIB  64, or half of what is free on that disk if that is less
"""

import fcntl
import hashlib
import logging
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO

from revision.files import explained, replacing
from revision.progress import track
from revision.remote.address import is_pipe, shown, url_text
from revision.remote.connection import RemoteError
from revision.remote.stream import fingerprint, open_stream

CACHE_DIR, CACHE_GIB = "REVISION_CACHE_DIR", "REVISION_CACHE_GIB"
_PIECE_BYTES = 2**20
_LARGE_BYTES = 64 * 2**20  # from here on a bar is shown
_DEFAULT_BYTES = 64 * 2**30
_SHARED_PART = 8  # readers are at different files; so many fit beside each other
_LOCK = ".lock"
_ROOM = ".room.lock"

log = logging.getLogger(__name__)


class NoRoom(ValueError):
    """A file does not fit beside those that are in use."""


class LocalCopy:
    """A cached file that stays where it is until this is closed, or forgotten."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path, self._descriptor = path, descriptor

    def into_file(self) -> IO[bytes]:
        """The file, open to read; from now on it holds the copy, until it is closed."""
        descriptor, self._descriptor = self._descriptor, -1
        return os.fdopen(descriptor, "rb")

    def close(self) -> None:
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def __del__(self) -> None:
        self.close()


def local_copy(
    url: str,
    cache_dir: Path | None = None,
    *,
    num_bytes: int | None = None,
    check: Callable[[Path], str] | None = None,
    version: str = "",
) -> LocalCopy:
    """A complete copy of `url` in `cache_dir` (default: that of the machine), downloaded unless it
    is there.

    Copies of another `version` (any text, such as the digest that is expected) are others; without
    one the server is asked which it has.
    `check(path)` says what is wrong with a downloaded file, "" when nothing is.

    Raises:
        ValueError: it cannot be read, is not what was expected, or does not fit.
    """
    url = url_text(url)
    cache_dir = cache_dir or _machine_dir()
    path = cache_dir / _cached_name(url, version or _current(url))
    cache_dir.mkdir(parents=True, exist_ok=True)
    while True:
        held = _opened(path)
        if held is not None:
            return held
        with _locked(path.with_name(path.name + _LOCK)):
            if not path.exists():  # else another process was faster
                _download(url, path, num_bytes, check)


def open_shared(url: str) -> IO[bytes]:
    """`url` for readers that are many, or that come again: from a copy, which one of them makes.

    It is streamed to each of them, as by `open_stream`, where a copy is no help or too large:
    commands, files whose size or version the server does not tell, and those that take more than
    an eighth of the cache or that find no room in it.
    """
    stream = open_stream(url)
    if is_pipe(url):
        return stream
    size, version = stream.raw.facts()  # type: ignore[attr-defined]
    if size is None or not version or size > _limit_bytes(_machine_dir()) // _SHARED_PART:
        return stream
    stream.close()
    try:
        return local_copy(url, num_bytes=size, version=f"{size} {version}").into_file()
    except NoRoom as error:
        log.warning("%s: read without a copy: %s", shown(url), error)
        return open_stream(url)


def _machine_dir() -> Path:
    return Path(os.environ.get(CACHE_DIR) or "runs/.cache")


def _limit_bytes(cache_dir: Path) -> int:
    given = os.environ.get(CACHE_GIB)
    if not given:
        cache_dir.mkdir(parents=True, exist_ok=True)
        cached = sum(512 * stat.st_blocks for stat in _stats(cache_dir).values())
        return min(_DEFAULT_BYTES, (shutil.disk_usage(cache_dir).free + cached) // 2)
    try:
        return int(float(given) * 2**30)
    except (ValueError, OverflowError):
        raise ValueError(f"{CACHE_GIB} is {given!r}, expected a number of GiB") from None


def _current(url: str) -> str:
    try:
        return fingerprint(url)
    except RemoteError as error:
        raise ValueError(str(error)) from error


def _cached_name(url: str, version: str) -> str:
    name = re.sub(r"[^A-Za-z0-9._-]", "_", shown(url).rsplit("/", 1)[-1])[-80:]
    key = hashlib.sha256(f"{url}\n{version}".encode()).hexdigest()[:16]
    return f"{name}-{key}"


def _opened(path: Path) -> LocalCopy | None:
    """`path`, held so that nobody removes it; None if it is not there."""
    with suppress(FileNotFoundError):
        descriptor = os.open(path, os.O_RDONLY)
        _lock(descriptor, fcntl.LOCK_SH, path)
        if _is_still(path, descriptor):
            os.utime(path)
            return LocalCopy(path, descriptor)
        os.close(descriptor)
    return None


def _lock(descriptor: int, how: int, path: Path) -> None:
    try:
        fcntl.flock(descriptor, how)
    except BlockingIOError:
        raise
    except OSError as error:
        raise ValueError(
            f"{path.parent}: files cannot be locked there ({error.strerror}), so processes would "
            f"remove what others read; set {CACHE_DIR} to a directory on a disk of this machine"
        ) from error


def _is_still(path: Path, descriptor: int) -> bool:
    """Whether `path` is the file that was opened: it may have been removed before it was locked."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the lock file `path` alone; it is gone afterwards."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT)
        try:
            _lock(descriptor, fcntl.LOCK_EX, path)
            if _is_still(path, descriptor):
                try:
                    yield
                finally:
                    path.unlink()
                return
        finally:
            os.close(descriptor)


def _download(
    url: str, path: Path, num_bytes: int | None, check: Callable[[Path], str] | None
) -> None:
    try:
        with open_stream(url) as file, ExitStack() as stack:
            size, _ = file.raw.facts()  # type: ignore[attr-defined]
            if num_bytes is not None and size not in (None, num_bytes):
                raise ValueError(f"{shown(url)}: {size} bytes, expected {num_bytes}")
            with _locked(path.parent / _ROOM):
                make_room(path.parent, size or 0, _limit_bytes(path.parent))
                copy = stack.enter_context(replacing(path))
                copy.truncate(size or 0)  # what will be written counts from now on
            for piece in _pieces(file, size, path.name):
                with explained(path):
                    copy.write(piece)
            _check(url, copy, num_bytes, check)
    except RemoteError as error:
        raise ValueError(str(error)) from error


def _pieces(file: IO[bytes], size: int | None, name: str) -> Iterator[bytes]:
    pieces = iter(lambda: file.read(_PIECE_BYTES), b"")
    if size is None or size < _LARGE_BYTES:
        return pieces
    return track(pieces, f"fetch {name}, MiB", total=-(-size // _PIECE_BYTES))


def _check(
    url: str, copy: IO[bytes], num_bytes: int | None, check: Callable[[Path], str] | None
) -> None:
    copy.flush()
    if num_bytes is not None and copy.tell() != num_bytes:
        raise ValueError(f"{shown(url)}: {copy.tell()} bytes, expected {num_bytes}")
    problem = check(Path(copy.name)) if check else ""
    if problem:
        raise ValueError(f"{shown(url)}: not what was expected: {problem}")


def make_room(cache_dir: Path, num_bytes: int, max_bytes: int) -> None:
    """Remove the files that were used the longest time ago until `num_bytes` more fit.

    Raises:
        NoRoom: those that are in use leave too little.
    """
    _remove_dead(cache_dir)
    sizes = _stats(cache_dir)
    total = sum(stat.st_size for stat in sizes.values())
    for path in sorted(sizes, key=lambda path: sizes[path].st_mtime_ns):
        if total + num_bytes <= max_bytes:
            return
        if not path.name.startswith(".") and _remove_unused(path):
            total -= sizes[path].st_size
    if total + num_bytes > max_bytes:
        raise NoRoom(
            f"{cache_dir}: {num_bytes} bytes do not fit, files of {total} bytes are in use and the "
            f"limit is {max_bytes}; allow more by {CACHE_GIB}, or use fewer processes"
        )


def _stats(cache_dir: Path) -> dict[Path, os.stat_result]:
    while True:
        with suppress(FileNotFoundError):  # renamed meanwhile: a download of another process ended
            paths = [path for path in cache_dir.iterdir() if not path.name.endswith(_LOCK)]
            return {path: path.stat() for path in paths}


def _remove_unused(path: Path) -> bool:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        _lock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, path)
        path.unlink()
        return True
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)


def _remove_dead(cache_dir: Path) -> None:
    """Delete what processes that were killed had downloaded; nobody holds the lock of those."""
    for unfinished in cache_dir.glob(".*.tmp"):
        name = unfinished.name[1:].rsplit(".", 2)[0]
        with suppress(FileNotFoundError):
            if not (cache_dir / (name + _LOCK)).exists() or _remove_unused(
                cache_dir / (name + _LOCK)
            ):
                unfinished.unlink()
