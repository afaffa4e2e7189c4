"""Tars of webdataset and img2dataset as streams of raw entries; called by
`revision.records.formats`.

Members that follow each other and share a stem are one entry. A tar is read from its start to its
end mark in one stream, wherever it lies; one that ends before its mark is refused, because the
samples behind would be missing in silence.
"""

import itertools
import tarfile
from collections.abc import Iterator
from typing import IO, Any

from revision.records.entry import IMAGE_SUFFIXES, Entry, merge_json
from revision.records.input_file import GZIP, InputFile


def webdataset_entries(file: InputFile) -> Iterator[Entry]:
    """One entry per group of consecutive members with the same stem; images as encoded bytes.

    An image's `__members__` address, `<tar>#<member>@<offset>+<size>`, finds it again with one
    seek (`load_image` reads it).
    """
    for key, members in itertools.groupby(_tar_members(file), key=lambda m: _stem(m[0])):
        fields: dict[str, Any] = {"__key__": key}
        images: dict[str, bytes] = {}
        problem = ""
        for name, offset, content in members:
            if content is not None and _suffix(name) in IMAGE_SUFFIXES:
                images[f"{file.address}#{name}@{offset}+{len(content)}"] = content
            else:
                problem = _add_member(fields, name, content) or problem
        if images:  # else the .json may name paths
            fields |= {"images": list(images.values()), "__members__": list(images)}
        yield Entry(f"{file.name}/{key}", {"id": key} | fields, problem=problem)


def _suffix(name: str) -> str:
    return name.rsplit(".", 1)[-1].lower()


def _add_member(fields: dict[str, Any], name: str, content: bytes | None) -> str:
    """Add what a member says to `fields`; returns the problem, empty when there is none."""
    if content is None:
        return f"its member {name!r} is a link or a device, which is not followed"
    if _suffix(name) == "json":
        return merge_json(fields, content)
    if _suffix(name) == "txt":
        try:
            fields["text"] = content.decode("utf-8")
        except UnicodeDecodeError as error:
            return f"its .txt member is not valid UTF-8: {error}"
    return ""


def _stem(name: str) -> str:
    directory, _, base = name.rpartition("/")
    stem = base.split(".", 1)[0]
    return f"{directory}/{stem}" if directory else stem


def _tar_members(file: InputFile) -> Iterator[tuple[str, int, bytes | None]]:
    """Name, offset and content of every file; refuses a tar that ends before its end mark.

    Links and devices have no content of their own: None.
    """
    with file.open() as raw:
        tar = _opened_tar(file, raw)
        while True:
            try:
                info = tar.next()
                if info is None:
                    break
                content = _content(tar, info)
            except (tarfile.TarError, EOFError, ValueError, OverflowError, MemoryError) as error:
                raise ValueError(f"{file}: truncated tar ({error}); fetch it again") from error
            tar.members = []  # type: ignore[attr-defined]  # it would remember every member
            if not info.isdir():
                yield info.name, info.offset_data, content
        raw.seek(tar.offset)
        if raw.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise ValueError(
                f"{file}: truncated tar: no end mark at byte {tar.offset}; "
                "samples are missing, fetch it again"
            )
        while raw.read(2**20):  # a command tells only at its end whether it went well
            pass


def _opened_tar(file: InputFile, raw: IO[bytes]) -> tarfile.TarFile:
    head = raw.read(2)
    raw.seek(0)
    if head == GZIP:
        raise ValueError(
            f"{file}: a compressed tar, in which no member can be found by its place; unpack it, "
            "or give it as 'pipe:gzip -dc <file>'"
        )
    try:
        return tarfile.TarFile(fileobj=raw)
    except (tarfile.TarError, EOFError, ValueError, OverflowError) as error:
        raise ValueError(f"{file}: not a tar ({error}); fetch it again") from error


def _content(tar: tarfile.TarFile, info: tarfile.TarInfo) -> bytes | None:
    if info.issparse():  # a few bytes may claim terabytes of zeros
        raise ValueError(f"{info.name!r} is a sparse member; write the tar without sparse members")
    file = tar.extractfile(info) if info.isfile() else None
    return file.read() if file else None
