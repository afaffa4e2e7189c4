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
from typing import Any, TextIO

from revision.records.entry import MAX_ENTRY_CHARACTERS, Entry
from revision.records.input_file import InputFile

_TEXT_COLUMNS = ("text", "caption")
_IMAGE_COLUMNS = ("image", "filepath", "image_path")
_KNOWN = ("id", *_TEXT_COLUMNS, *_IMAGE_COLUMNS)
_DELIMITERS = (",", "\t", ";", "|")

log = logging.getLogger(__name__)


def table_delimiter(file: InputFile) -> str:
    """The delimiter of `file`: a tab in .tsv, else the one that finds most in the first line.

    Most columns that have a meaning here, then most columns, then the comma.

    Raises:
        ValueError: no column of the first line is a text or an image.
    """
    with file.open_text(newline="") as text:
        line = next(_lines(text, file), "")
    candidates = ("\t",) if file.suffix == ".tsv" else _DELIMITERS
    headers = {delimiter: _cells(line, delimiter) for delimiter in candidates}
    best = max(candidates, key=lambda d: (_num_known(headers[d]), len(headers[d])))
    _check_header(headers[best], file)
    return best


def table_entries(file: InputFile) -> Iterator[Entry]:
    """One entry per row; lines without a character are stepped over."""
    delimiter = table_delimiter(file)
    log.info("%s: columns are delimited by %r", file, delimiter)
    with file.open_text(newline="") as text:
        rows = csv.reader(_lines(text, file), delimiter=delimiter, strict=True)
        header = next(rows)
        number, first = 0, rows.line_num + 1
        while True:
            cells, problem = _next_row(rows)
            if cells is None and not problem:
                return
            if cells or problem:
                address = f"{file.name}:{_span(first, rows.line_num)}"
                yield _entry(address, f"{file.stem}/{number}", header, cells or [], problem)
                number += 1
            first = rows.line_num + 1


def _lines(text: TextIO, file: InputFile) -> Iterator[str]:
    limit = MAX_ENTRY_CHARACTERS
    line = text.readline(limit).removeprefix("\ufeff")
    while line:
        if len(line) >= limit:
            raise ValueError(
                f"{file}: a line of {limit} characters or more; a table has one "
                "row a line, so this is another format: say which by format="
            )
        yield line
        line = text.readline(limit)


def _cells(line: str, delimiter: str) -> list[str]:
    try:
        return next(csv.reader([line], delimiter=delimiter, strict=True), [])
    except csv.Error:
        return []


def _num_known(header: list[str]) -> int:
    return sum(name in _KNOWN for name in header)


def _check_header(header: list[str], file: InputFile) -> None:
    shown = ", ".join(repr(name) for name in header[:12]) or "nothing"
    if not any(name in (*_TEXT_COLUMNS, *_IMAGE_COLUMNS) for name in header):
        raise ValueError(
            f"{file}: the first line must name the columns, one of them text, caption, image, "
            f"filepath or image_path; it holds {shown}"
        )
    if "__members__" in header:
        raise ValueError(f"{file}: a column is named '__members__', which tars and parquet use")
    repeated = sorted({name for name in header if header.count(name) > 1})
    if repeated:
        raise ValueError(f"{file}: columns {repeated} appear twice; one would hide the other")


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
