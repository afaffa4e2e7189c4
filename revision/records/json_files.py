"""JSON and JSONL files as streams of raw entries; called by `revision.records.formats`.

revision       {"images": [{id, image}], "texts": [{id, text}]}        (Yu-xm/ReVision README)
conversations  JSON array or JSONL of {id, image, caption, conversations}  (LLaVA, Bunny,
               ShareGPT4V: there, an entry without "image" is text alone)
"""

import json
from collections.abc import Iterator
from typing import TextIO

from revision.records.entry import MAX_ENTRY_CHARACTERS, Entry
from revision.records.input_file import InputFile
from revision.records.json_stream import JsonStream

_BLANK = "\ufeff \t\r\n"
_START_CHARACTERS = 1024


def revision_entries(file: InputFile) -> Iterator[Entry]:
    """Entries of both lists in the order of the file; other keys of the object are stepped over."""
    with file.open_text() as text:
        stream = JsonStream(text, str(file))
        for key in stream.members():
            if key == "images" or key == "texts":
                for i, fields in enumerate(stream.elements()):
                    yield Entry(f"{file.name}:{key} entry {i}", fields, key)
            else:
                stream.value()
        stream.finish()


def conversation_entries(file: InputFile) -> Iterator[Entry]:
    """Entries of a JSON array or, one object a line, of JSONL."""
    with file.open_text() as text:
        first, start = _first_line(text)
        if start.lstrip(_BLANK).startswith("["):
            stream = JsonStream(text, str(file), start=start)
            for i, fields in enumerate(stream.elements()):
                yield Entry(f"{file.name}:entry {i}", fields)
            stream.finish()
            return
        for number, line in enumerate(_lines(start, text, file), start=first):
            if line.strip(_BLANK):
                yield _line_entry(f"{file.name}:line {number}", line)


def _first_line(text: TextIO) -> tuple[int, str]:
    """Number and start of the first line that holds anything; an array may be one line."""
    number, start = 1, text.readline(_START_CHARACTERS)
    while start and not start.strip(_BLANK):
        number += start.endswith("\n")
        start = text.readline(_START_CHARACTERS)
    return number, start


def _lines(start: str, text: TextIO, file: InputFile) -> Iterator[str]:
    whole = start.endswith("\n")
    line = start if whole else start + text.readline(MAX_ENTRY_CHARACTERS - len(start))
    while line:
        if len(line) == MAX_ENTRY_CHARACTERS:
            raise ValueError(
                f"{file}: a line of {MAX_ENTRY_CHARACTERS} characters or more; JSONL has one "
                "object a line, so this is another format: say which by format="
            )
        yield line
        line = text.readline(MAX_ENTRY_CHARACTERS)


def _line_entry(address: str, line: str) -> Entry:
    try:
        return Entry(address, json.loads(line.lstrip("\ufeff")))
    except (ValueError, RecursionError) as error:
        return Entry(address, None, problem=f"not valid JSON: {error}")
