"""Which format an input is in, and its files as streams of raw entries.

One generator per file format. Each yields `Entry`: plain fields and where they stood. What the
fields mean, and which entries are refused, is decided in one place, `revision.records.read`.

    revision       the two lists of the public data                  (`revision.records.json_files`)
    conversations  LLaVA, Bunny, ShareGPT4V; JSON or JSONL           (`revision.records.json_files`)
    webdataset     tars, as img2dataset writes them                  (`revision.records.tars`)
    parquet        parquet files, those of the hub among them       (`revision.records.arrow_files`)
    datasets       folders and .arrow files of `datasets`           (`revision.records.arrow_files`)
    csv            CSV or TSV with a header                          (`revision.records.table`)
    folder         a directory of images with text beside them       (`revision.records.folder`)
"""

import json
import re
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Literal, get_args

from revision.records.arrow_files import arrow_entries, parquet_entries
from revision.records.entry import Entry
from revision.records.folder import folder_entries
from revision.records.input_file import InputFile
from revision.records.inputs import Inputs, input_files, input_text, shown_input
from revision.records.json_files import conversation_entries, revision_entries
from revision.records.table import table_entries
from revision.records.tars import webdataset_entries
from revision.remote import RemoteError

Format = Literal["revision", "conversations", "webdataset", "parquet", "datasets", "csv", "folder"]
_HEAD_CHARACTERS = 2**16
_SUFFIXES: dict[str, Format] = {
    ".tar": "webdataset",
    ".parquet": "parquet",
    ".arrow": "datasets",
    ".csv": "csv",
    ".tsv": "csv",
}
_TAR_MAGIC = slice(257, 262)

ENTRIES: dict[Format, Callable[[InputFile], Iterator[Entry]]] = {
    "revision": revision_entries,
    "conversations": conversation_entries,
    "webdataset": webdataset_entries,
    "parquet": parquet_entries,
    "datasets": arrow_entries,
    "csv": table_entries,
}


def detect_format(given: Inputs) -> Format:
    """Which format `given` is in, from the suffix of its first file, else from its first bytes."""
    first = input_files(given)[0]
    directory = Path(input_text(given))
    if directory.is_dir() and first.suffix not in _SUFFIXES:
        return "folder"
    return _SUFFIXES.get(first.suffix) or _by_content(first)


def chosen_format(given: Inputs, format: str) -> Format:
    """`format`, or for "auto" the one that is detected.

    Raises:
        ValueError: no such format, or nothing that is known at `given`.
    """
    if format == "auto":
        try:
            return detect_format(given)
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(f"{shown_input(given)}: cannot be read ({error})") from error
    if format not in get_args(Format):
        known = sorted(get_args(Format))
        raise ValueError(f"format must be auto or one of {known}, got {format!r}")
    return format  # type: ignore[return-value]


def described_input(given: Inputs, format: str) -> str:
    """One line that says how an input is read, for whoever starts a run."""
    how = "detected" if format == "auto" else "as asked"
    chosen, files = chosen_format(given, format), input_files(given, format)
    count = f", {len(files)} files" if len(files) > 1 else ""
    return f"input {shown_input(given)}: read as {chosen} ({how}){count}"


def _by_content(file: InputFile) -> Format:
    with file.open() as raw:
        if raw.read(512)[_TAR_MAGIC] == b"ustar":
            return "webdataset"
    with file.open_text() as text:
        head = text.read(_HEAD_CHARACTERS).lstrip("\ufeff \t\r\n")
    if head.startswith("["):
        return "conversations"
    if head.startswith("{"):
        return "revision" if _opens_revision(head) else "conversations"
    if not head:
        raise ValueError(f"{file}: it is empty; pass format= if it is meant to be")
    raise ValueError(
        f"{file}: neither JSON, JSONL, .csv, .tsv, .tar, .arrow nor .parquet; "
        "pass format= if its name misleads"
    )


def _opens_revision(head: str) -> bool:
    """An object with a list of objects under "images" or "texts", not one line of JSONL."""
    try:
        value, _ = json.JSONDecoder().raw_decode(head)
    except (ValueError, RecursionError):  # longer than the head: one object, or a huge line
        return re.search(r'^\{\s*"(images|texts)"\s*:\s*\[\s*[\{\]]', head) is not None
    if "id" in value or "conversations" in value:
        return False  # a record with several images
    return any(isinstance(value.get(key), list) for key in ("images", "texts"))


def read_entries(
    given: Inputs, format: Format, image_root: Path | str | None, *, is_shared: bool
) -> Iterator[Entry]:
    """The raw entries of all files of `given`, one file after the other."""
    if format == "folder" and Path(input_text(given)).is_dir():
        yield from folder_entries(Path(input_text(given)), image_root)
        return
    for file in input_files(given, format):
        try:
            yield from ENTRIES[format](replace(file, is_shared=is_shared))
        except RemoteError as error:
            raise ValueError(str(error)) from error
        except (OSError, EOFError, zlib.error) as error:
            reason = getattr(error, "strerror", None) or error
            raise ValueError(
                f"{file}: cannot be read to its end ({reason}); it was there when "
                "reading began: restore it and start again"
            ) from error
