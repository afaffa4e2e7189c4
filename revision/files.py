"""Files that exist whole or not at all: temporary name, fsync, rename, fsync of the directory.

Every artefact of the pipeline (feature shards, headers, maps) is written through `replacing`, so
that a killed run leaves nothing that a later one could mistake for a result.
"""

import errno
import fcntl
import hashlib
import json
import os
import re
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

PLAN_NAME = "plan.json"


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """Yield a binary file that appears as `path` when the block ends without an exception.

    Leftovers of killed writers of the same `path` are removed first: a path has one writer.

    Raises:
        ValueError: the disk is full, or the file could not be written for another reason of the
            system; nothing of it is left behind.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(path.parent, path.name)
    temporary = path.parent / f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp"
    try:
        with explained(path):
            file = temporary.open("xb")
        with _closing(file):
            yield file
            with explained(path):
                file.flush()
                os.fsync(file.fileno())
        with explained(path):
            temporary.replace(path)
            fsync(path.parent)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise


@contextmanager
def _closing(file: IO[bytes]) -> Iterator[None]:
    """Close `file`; on an exception, without a second one from a buffer that cannot be flushed."""
    try:
        yield
    except BaseException:
        with suppress(OSError):
            file.close()
        raise
    file.close()


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn an error of the system while `path` is written into one clear sentence."""
    try:
        yield
    except OSError as error:
        raise ValueError(_explanation(path, error)) from error


@contextmanager
def saving(directory: Path) -> Iterator[None]:
    """`explained` around `save_file` and `save_pretrained`: safetensors has its own exception for
    an error of the system, which is no OSError.

    Raises:
        ValueError: the disk is full, or `directory` could not be written for another reason.
    """
    from safetensors import SafetensorError  # loads NumPy: not for whoever only reads files

    try:
        with explained(directory):
            yield
    except SafetensorError as error:
        raise ValueError(_explanation(directory, _as_os_error(error))) from error


@contextmanager
def replacing_directory(directory: Path) -> Iterator[Path]:
    """Yield an empty directory that appears as `directory` when the block ends without an
    exception; what stood there is replaced in one step, and kept otherwise.

    Raises:
        ValueError: as `saving` does.
    """
    with saving(directory):
        directory.parent.mkdir(parents=True, exist_ok=True)
        prefix = f".{directory.name}-"
        with tempfile.TemporaryDirectory(prefix=prefix, dir=directory.parent) as work:
            new = Path(work) / "new"
            new.mkdir()
            yield new
            usual_modes(new)
            fsync_tree(new)
            if directory.exists():
                directory.rename(Path(work) / "old")
            new.rename(directory)
        fsync(directory.parent)


def _as_os_error(error: Exception) -> OSError:
    """From the text of a SafetensorError, '... (os error 28)', the only place of the number."""
    found = re.search(r"\(os error (\d+)\)", str(error))
    if found is None:
        return OSError(str(error))
    number = int(found[1])
    return OSError(number, os.strerror(number))


def _explanation(path: Path, error: OSError) -> str:
    message = f"{path}: cannot be written ({error.strerror or error}); nothing of it was kept"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        with suppress(OSError):
            message += f"; {shutil.disk_usage(path.parent).free / 2**20:.0f} MiB are free there"
        message += ". Free some space and run the same command again: it resumes here"
    return message


def write_bytes(path: Path, content: bytes) -> None:
    """Write a small file whole or not at all."""
    with replacing(path) as file, explained(path):
        file.write(content)


def file_digest(*paths: Path) -> str:
    """SHA-256 of a file's content, or of several contents one after the other."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while piece := file.read(1 << 20):
                digest.update(piece)
    return digest.hexdigest()


def claim(directory: Path, plan: dict[str, Any]) -> None:
    """Record in `plan.json` what `directory` will hold, or check that it is what stands there.

    Raises:
        ValueError: it was begun with another plan; two results would have been mixed.
    """
    path = directory / PLAN_NAME
    if not path.exists():
        write_bytes(path, json.dumps(plan, indent=1).encode())
        return
    recorded = json.loads(path.read_bytes())
    differing = sorted(k for k in recorded.keys() | plan if recorded.get(k) != plan.get(k))
    if differing:
        raise ValueError(
            f"{directory}: was begun with other {' and '.join(differing)}; choose another "
            "output_dir, or delete this one"
        )


@contextmanager
def locked(directory: Path, *, wait: bool = False) -> Iterator[bool]:
    """Hold a lock that the system frees when this process dies; yields whether it was free."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
            was_free = True
        except OSError:  # somebody has it, or this file system knows no locks
            was_free = False
        yield was_free
    finally:
        os.close(descriptor)


def remove_leftovers(directory: Path, name: str = "") -> None:
    """Delete what killed writers of `name` (default: of every file) left in `directory`."""
    for leftover in directory.glob(f".{name}*.tmp"):
        leftover.unlink(missing_ok=True)


def usual_modes(directory: Path) -> None:
    """Give the files below `directory` the permissions of new ones, as `directory` itself has them.

    Safetensors writes for the owner alone, so weights on a shared disk could be read by nobody
    else. Hard links are left: they are also somebody's file elsewhere.
    """
    mode = directory.stat().st_mode & 0o666
    for path in directory.rglob("*"):
        status = path.lstat()
        if stat.S_ISREG(status.st_mode) and status.st_nlink == 1:
            path.chmod(mode)


def fsync_tree(directory: Path) -> None:
    """Flush a directory and everything below it to the disk."""
    for path in [*directory.rglob("*"), directory]:
        fsync(path)


def fsync(path: Path) -> None:
    """Flush one file or directory to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
