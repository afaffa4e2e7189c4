"""CSV and TSV with a header as streams of raw entries; called by `revision.records.formats`.

    id                            the record's id; without it `<file stem>/<row>`
    text | caption                its text
    image | filepath | image_path its picture; of several, the first of these that is there
    every other column            metadata, as text

A row is quarantined with its lines when it is not UTF-8, has more or fewer cells than the header,
or breaks the rules of quoting; the rows after it are read. Memory is that of the largest row: the
csv module refuses cells over 131072 characters.
"""

import csv
import logging
from collections.abc import Iterator
from io import TextIOBase
from pathlib import Path
from typing import Any

from revision.records.entry import MAX_ENTRY_CHARACTERS, Entry

TABLE_SUFFIXES = (".csv", ".tsv")
_TEXT_COLUMNS = ("text", "caption")
_IMAGE_COLUMNS = ("image", "filepath", "image_path")
_KNOWN = ("id", *_TEXT_COLUMNS, *_IMAGE_COLUMNS)
_DELIMITERS = (",", "\t", ";", "|")

log = logging.getLogger(__name__)


def table_delimiter(path: Path) -> str:
    """The delimiter of `path`: a tab in .tsv, else the one that finds most in the first line.

    Most columns that have a meaning here, then most columns, then the comma.

    Raises:
        ValueError: no column of the first line is a text or an image.
    """
    with _opened(path) as file:
        line = next(_lines(file, path), "")
    candidates = ("\t",) if path.suffix.lower() == ".tsv" else _DELIMITERS
    headers = {delimiter: _cells(line, delimiter) for delimiter in candidates}
    best = max(candidates, key=lambda d: (_num_known(headers[d]), len(headers[d])))
    _check_header(headers[best], path)
    return best


def table_entries(path: Path) -> Iterator[Entry]:
    """One entry per row; lines without a character are stepped over."""
    delimiter = table_delimiter(path)
    log.info("%s: columns are delimited by %r", path, delimiter)
    with _opened(path) as file:
        rows = csv.reader(_lines(file, path), delimiter=delimiter, strict=True)
        header = next(rows)
        number, first = 0, rows.line_num + 1
        while True:
            cells, problem = _next_row(rows)
            if cells is None and not problem:
                return
            if cells or problem:
                address = f"{path.name}:{_span(first, rows.line_num)}"
                yield _entry(address, f"{path.stem}/{number}", header, cells or [], problem)
                number += 1
            first = rows.line_num + 1


def _opened(path: Path) -> TextIOBase:
    # Bytes that are not UTF-8 survive as surrogates, so that they cost one row and not the file.
    return path.open(encoding="utf-8-sig", errors="surrogateescape", newline="")


def _lines(file: TextIOBase, path: Path) -> Iterator[str]:
    while line := file.readline(MAX_ENTRY_CHARACTERS):
        if len(line) == MAX_ENTRY_CHARACTERS:
            raise ValueError(
                f"{path}: a line of {MAX_ENTRY_CHARACTERS} characters or more; a table has one "
                "row a line, so this is another format: say which by format="
            )
        yield line


def _cells(line: str, delimiter: str) -> list[str]:
    try:
        return next(csv.reader([line], delimiter=delimiter, strict=True), [])
    except csv.Error:
        return []


def _num_known(header: list[str]) -> int:
    return sum(name in _KNOWN for name in header)


def _check_header(header: list[str], path: Path) -> None:
    shown = ", ".join(repr(name) for name in header[:12]) or "nothing"
    if not any(name in (*_TEXT_COLUMNS, *_IMAGE_COLUMNS) for name in header):
        raise ValueError(
            f"{path}: the first line must name the columns, one of them text, caption, image, "
            f"filepath or image_path; it holds {shown}"
        )
    if "__members__" in header:
        raise ValueError(f"{path}: a column is named '__members__', which tars and parquet use")
    repeated = sorted({name for name in header if header.count(name) > 1})
    if repeated:
        raise ValueError(f"{path}: columns {repeated} appear twice; one would hide the other")


def _next_row(rows: Any) -> tuple[list[str] | None, str]:
    """The next row, or what is wrong with it; neither at the end."""
    try:
        return next(rows, None), ""
    except csv.Error as error:
        return None, f"not a row of this table: {error}"


def _span(first: int, last: int) -> str:
    return f"line {last}" if first >= last else f"lines {first}-{last}"


def _entry(address: str, id: str, header: list[str], cells: list[str], problem: str) -> Entry:
    if problem:
        return Entry(address, None, problem=problem)
    if len(cells) != len(header):
        wrong = f"{len(cells)} cells in a table of {len(header)} columns; quote delimiters in text"
        return Entry(address, None, problem=wrong)
    fields: dict[str, Any] = {"id": id} | dict(zip(header, cells, strict=True))
    for name, cell in fields.items():
        try:
            cell.encode()  # fails on the surrogates of `_opened`, in C
        except UnicodeEncodeError:
            return Entry(address, None, problem=f"column {name!r} is not valid UTF-8")
    image = next((name for name in _IMAGE_COLUMNS if name in fields), None)
    if image:
        fields["image"] = fields.pop(image)
    return Entry(address, fields)
