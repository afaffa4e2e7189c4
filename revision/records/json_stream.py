"""Incremental JSON: one value at a time out of files that are larger than memory.

Used by `revision.records.formats`, the first step of the pipeline. The text is read in pieces; a
value is decoded as soon as it is complete, so memory is that of the largest single entry.
"""

import json
from collections.abc import Iterator
from typing import Any, TextIO

from revision.records.entry import MAX_ENTRY_CHARACTERS

# "1." or "1e+" at the end of a piece would decode as 1; two more characters settle it.
_LOOKAHEAD = 8


class JsonStream:
    """A position in a JSON text file, of which `start` was read already.

    `name` is the file's name in errors.
    """

    def __init__(
        self, file: TextIO, name: str, piece_characters: int = 2**16, *, start: str = ""
    ) -> None:
        self._file, self._name, self._piece = file, name, piece_characters
        self._buffer, self._position, self._ended = start, 0, False
        self._decoder = json.JSONDecoder()

    def _grow(self, characters: int) -> None:
        piece = self._file.read(characters)
        self._ended = not piece
        self._buffer = self._buffer[self._position :] + piece
        self._position = 0

    def peek(self) -> str:
        """The next character that is not white space; empty at the end of the file."""
        while True:
            while self._position < len(self._buffer):
                if self._buffer[self._position] not in " \t\r\n\ufeff":
                    return self._buffer[self._position]
                self._position += 1
            if self._ended:
                return ""
            self._grow(self._piece)

    def take(self, expected: str) -> None:
        """Step over one punctuation character."""
        found = self.peek()
        if found != expected:
            what = f"{found!r}" if found else "the end of the file"
            raise ValueError(f"{self._name}: not valid JSON: expected {expected!r}, found {what}")
        self._position += 1

    def value(self) -> Any:
        """Decode the next value, reading on until it is complete."""
        self.peek()
        while True:
            error: json.JSONDecodeError | None = None
            try:
                value, end = self._decoder.raw_decode(self._buffer, self._position)
            except json.JSONDecodeError as caught:
                error, end = caught, len(self._buffer)
            except (ValueError, RecursionError) as caught:  # numbers or nesting without an end
                raise ValueError(f"{self._name}: not readable JSON: {caught}") from caught
            if error is None and (self._ended or end + _LOOKAHEAD <= len(self._buffer)):
                self._position = end
                return value
            self._need_more(error)

    def _need_more(self, error: json.JSONDecodeError | None) -> None:
        pending = len(self._buffer) - self._position
        if self._ended or pending > MAX_ENTRY_CHARACTERS:
            reason = error.msg if error else "unfinished value"
            start = self._buffer[self._position : self._position + 40]
            raise ValueError(f"{self._name}: not valid JSON ({reason}) in the entry {start!r}...")
        self._grow(max(self._piece, pending))  # doubling keeps the total work linear

    def elements(self) -> Iterator[Any]:
        """The elements of the array that comes next, one by one."""
        self.take("[")
        if self.peek() == "]":
            self.take("]")
            return
        while True:
            yield self.value()
            if self.peek() != ",":
                break
            self.take(",")
        self.take("]")

    def members(self) -> Iterator[str]:
        """The keys of the object that comes next; the caller must consume each key's value."""
        self.take("{")
        if self.peek() == "}":
            self.take("}")
            return
        while True:
            key = self.value()
            self.take(":")
            yield key
            if self.peek() != ",":
                break
            self.take(",")
        self.take("}")

    def finish(self) -> None:
        """Refuse anything after the end, which would be data that nobody reads."""
        if self.peek():
            raise ValueError(f"{self._name}: not valid JSON: {self.peek()!r} after the end")
