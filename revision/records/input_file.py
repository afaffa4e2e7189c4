"""One file of an input, wherever it lies: its name, its bytes or text, and its version.

Used by the readers of all formats; `revision.records.inputs` says which files there are.
"""

import gzip
import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, TextIO

from revision.files import file_digest
from revision.remote import fingerprint, is_pipe, is_url, open_shared, open_stream, shown

GZIP, _ZSTANDARD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
_MAX_NAME = 60


@dataclass(frozen=True)
class InputFile:
    """One file of an input: its path, URL or command.

    A file that `is_shared` is read by several processes, or again: over the network once, if it
    can be (`revision.remote.open_shared`).
    """

    address: str
    is_shared: bool = False

    def __str__(self) -> str:
        return shown(self.address)

    @property
    def is_remote(self) -> bool:
        return is_url(self.address)

    @property
    def name(self) -> str:
        """The last part of its path, or the start of its command."""
        if is_pipe(self.address):
            return self.address[:_MAX_NAME]
        return str(self).rsplit("/", 1)[-1]

    @property
    def stem(self) -> str:
        return self.name if is_pipe(self.address) else PurePosixPath(self.name).stem

    @property
    def suffix(self) -> str:
        """With its dot and in lower case; that of what is compressed for `x.json.gz`."""
        if is_pipe(self.address):
            return ""
        return PurePosixPath(self.name.lower().removesuffix(".gz")).suffix

    def open(self) -> IO[bytes]:
        """Its bytes as they are stored; it can be sought."""
        if not self.is_remote:
            return open(self.address, "rb")
        return open_shared(self.address) if self.is_shared else open_stream(self.address)

    @contextmanager
    def open_text(self, newline: str | None = None) -> Iterator[TextIO]:
        """Its text, decompressed if it is gzip.

        Bytes that are not UTF-8 become surrogates, for which an entry alone is refused; strict
        reading would lose the rest of the file.
        """
        with self.open() as stored:
            head = stored.read(len(_ZSTANDARD))
            stored.seek(0)
            if head == _ZSTANDARD:
                raise ValueError(f"{self}: zstd; give it as 'pipe:zstd -dc <file>'")
            raw = gzip.GzipFile(fileobj=stored) if head.startswith(GZIP) else stored
            yield io.TextIOWrapper(raw, "utf-8", "surrogateescape", newline=newline)

    def digest(self) -> str:
        """SHA-256 of its content, or of what identifies the version of a remote file."""
        return fingerprint(self.address) if self.is_remote else file_digest(Path(self.address))

    def stamp(self) -> list[str | int]:
        """What changes when it is written again, without reading it."""
        if self.is_remote:
            return [fingerprint(self.address)]
        path = Path(self.address)
        stat = path.stat()
        return [str(path.resolve()), stat.st_size, stat.st_mtime_ns]
