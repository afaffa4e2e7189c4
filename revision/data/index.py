"""An index of an input's records on disk: any record in one seek, none held in memory.

`build_index` streams the input once and writes, whole or not at all,

    <index_root>/<fingerprint>/records.jsonl     one record per line
                               offsets.i64       where each line starts, and the end
                               quarantine.jsonl  what was refused, and why
                               index.json        counts and what the index was made from

The fingerprint covers the paths, sizes and times of the input's files, so a second run finds the
index and a changed input gets a new one. It is written in a locked directory `.index-*`, so that
the next build can tell what a killed one left from what another process is writing.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from revision.files import explained, locked
from revision.progress import track
from revision.records import Record, Rejection, input_files, json_line, read_records
from revision.records.image import check_header
from revision.records.image_source import image_file, is_member, remote_file
from revision.records.inputs import shown_input, stamps_of
from revision.remote import is_url, url_text

QUARANTINE = "quarantine.jsonl"
_VERSION = 3
_BLOCK = 4096
_UNFINISHED = ".index-"


class RecordIndex:
    """The records of an index directory, by number. May be pickled to workers."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        about = json.loads((directory / "index.json").read_text())
        self.num_rejected: int = about["num_rejected"]
        self._offsets = np.memmap(directory / "offsets.i64", np.int64, mode="r")

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def __getitem__(self, number: int) -> Record:
        with (self.directory / "records.jsonl").open("rb") as file:
            file.seek(int(self._offsets[number]))
            line = file.read(int(self._offsets[number + 1] - self._offsets[number]))
        return Record.from_json(json.loads(line))

    def __iter__(self) -> Iterator[Record]:
        with (self.directory / "records.jsonl").open("rb") as file:
            for line in file:
                yield Record.from_json(json.loads(line))

    @property
    def block_sizes(self) -> list[int]:
        """The records in blocks of `_BLOCK`, by which an epoch is shuffled."""
        full, rest = divmod(len(self), _BLOCK)
        return [_BLOCK] * full + ([rest] if rest else [])

    def __getstate__(self) -> Path:
        return self.directory

    def __setstate__(self, directory: Path) -> None:
        RecordIndex.__init__(self, directory)


def build_index(
    input: str | Path,
    index_root: Path,
    *,
    image_root: Path | None,
    check: Callable[[Record], None],
) -> RecordIndex:
    """The index of `input`, built now unless it exists.

    `check(record)` raises ValueError for a record that cannot be used; such records, those that
    the reader refuses and those with a missing image go to `quarantine.jsonl`.

    Raises ValueError when no usable record is left, and when the disk is full.
    """
    directory = index_root / _fingerprint(input, image_root)
    if not (directory / "index.json").exists():
        with explained(directory):
            index_root.mkdir(parents=True, exist_ok=True)
            with _unfinished(index_root) as temporary:
                _write(temporary, input, image_root, check)
                _publish(temporary, directory)
    return RecordIndex(directory)


@contextmanager
def _unfinished(index_root: Path) -> Iterator[Path]:
    """A directory to write in, gone afterwards; what killed writers left is removed first."""
    with ExitStack() as held:
        with locked(index_root, wait=True):
            for leftover in index_root.glob(f"{_UNFINISHED}*"):
                _remove_if_dead(leftover)
            temporary = Path(tempfile.mkdtemp(prefix=_UNFINISHED, dir=index_root))
            held.callback(shutil.rmtree, temporary, ignore_errors=True)
            held.enter_context(locked(temporary))
        yield temporary


def _remove_if_dead(leftover: Path) -> None:
    with suppress(FileNotFoundError), locked(leftover) as is_dead:
        if is_dead:
            shutil.rmtree(leftover, ignore_errors=True)


def _write(
    directory: Path, input: str | Path, image_root: Path | None, check: Callable[[Record], None]
) -> None:
    accepted, rejected = 0, 0
    with (
        (directory / "records.jsonl").open("wb") as records,
        (directory / "offsets.i64").open("wb") as offsets,
        (directory / QUARANTINE).open("wb") as quarantine,
    ):
        stream = read_records(input, side="image", image_root=image_root)
        for entry in track(stream, f"index {shown_input(input)}"):
            entry = _usable(entry, image_root, check)
            if isinstance(entry, Rejection):
                quarantine.write(json_line(asdict(entry)))
                rejected += 1
            else:
                offsets.write(np.int64(records.tell()).tobytes())
                records.write(json_line(entry.to_json()))
                accepted += 1
        offsets.write(np.int64(records.tell()).tobytes())
    if not accepted:
        first = (directory / QUARANTINE).read_text().partition("\n")[0]
        raise ValueError(f"{input}: none of its {rejected} records can be used; the first: {first}")
    about = {"num_records": accepted, "num_rejected": rejected, "input": str(input)}
    (directory / "index.json").write_text(json.dumps(about))


def _usable(
    entry: Record | Rejection, image_root: Path | None, check: Callable[[Record], None]
) -> Record | Rejection:
    if isinstance(entry, Rejection):
        return entry
    try:
        check(entry)
        addresses = entry.metadata.get("__members__", entry.images)
        for image, address in zip(entry.images, addresses, strict=True):
            _check_image(image, address, image_root)
    except ValueError as error:
        return Rejection(entry.id, str(error), f"record {entry.id!r}")
    return entry


def _check_image(image: str | bytes, address: str, image_root: Path | None) -> None:
    """Look at the header of an image file: decoding a whole data set would take hours."""
    if isinstance(image, bytes) and not is_member(address):
        raise ValueError(
            f"{address}: a picture that is stored as bytes there cannot be opened again while "
            "training; embed the input with embed.py and give the feature set as data.shards"
        )
    if is_url(address) or (image_root is not None and is_url(image_root)):
        remote_file(address, image_root)  # to open each would cost a request for each
        return
    path = image_file(address, image_root)
    if is_member(address):
        return
    try:
        check_header(path)
    except FileNotFoundError:
        raise ValueError(f"{path}: missing image") from None
    except Exception as error:  # decoders raise anything
        raise ValueError(f"{path}: unreadable image ({error})") from error


def _publish(temporary: Path, directory: Path) -> None:
    """Move a finished index into place; one that another process finished first is kept."""
    for file in temporary.iterdir():
        with file.open("rb") as handle:
            os.fsync(handle.fileno())
    try:
        temporary.rename(directory)
    except OSError:
        if not (directory / "index.json").exists():
            raise


def _fingerprint(input: str | Path, image_root: Path | None) -> str:
    facts: list[Any] = stamps_of(input_files(input))
    root = image_root and (url_text(image_root) if is_url(image_root) else image_root.resolve())
    facts += [_VERSION, str(root) if root else None]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:24]
