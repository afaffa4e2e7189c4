"""Input files as streams of raw entries; the very first step of the pipeline.

One generator per file format. Each yields `Entry`: plain fields and where they stood. What the
fields mean, and which entries are refused, is decided in one place, `revision.records.read`.

    revision       {"images": [{id, image}], "texts": [{id, text}]}        (Yu-xm/ReVision README)
    conversations  JSON array or JSONL of {id, image, caption, conversations}  (LLaVA, Bunny)
    webdataset     tars whose members share a stem, as img2dataset writes them
    parquet        one row per entry, as `datasets` and img2dataset write them
    csv            CSV or TSV with a header                          (`revision.records.table`)
    folder         a directory of images with text beside them       (`revision.records.folder`)
"""

import itertools
import json
import re
import tarfile
from collections.abc import Callable, Iterator
from io import TextIOWrapper
from pathlib import Path
from typing import Any, Literal

from revision.records.entry import IMAGE_SUFFIXES, Entry, merge_json
from revision.records.folder import folder_entries, folder_files
from revision.records.json_stream import JsonStream
from revision.records.table import TABLE_SUFFIXES, table_entries

Format = Literal["revision", "conversations", "webdataset", "parquet", "csv", "folder"]
_HEAD_CHARACTERS = 2**16


def input_paths(path: str | Path, format: str = "auto") -> list[Path]:
    """The files that `path` stands for: itself, a directory's files, or braces `{00000..00009}`.

    Of a directory these are its tars, else its parquet files, else the pictures and sidecars
    below it; `format="folder"` asks for the last whatever else the directory holds.
    """
    matches = sorted(_expand_braces(str(path)))
    paths = [Path(match) for match in matches]
    if len(paths) == 1 and paths[0].is_dir():
        return _directory_paths(paths[0], format)
    for missing in (p for p in paths if not p.is_file()):
        raise ValueError(f"{missing}: no such input file")
    if format == "folder":
        raise ValueError(f"{path}: a file, but format=folder reads one directory of images")
    return paths


def _directory_paths(directory: Path, format: str) -> list[Path]:
    archives = [] if format == "folder" else _archives(directory)
    return archives or list(_pictures(directory))


def _archives(directory: Path) -> list[Path]:
    return sorted(directory.glob("*.tar")) or sorted(directory.glob("*.parquet"))


def _pictures(directory: Path) -> Iterator[Path]:
    files = folder_files(directory)
    first = next(files, None)
    if first is None:
        raise ValueError(
            f"{directory}: holds neither .tar nor .parquet files, nor a picture; "
            "give the JSON or CSV file itself"
        )
    yield from itertools.chain([first], files)


def _expand_braces(pattern: str) -> list[str]:
    """`a{00..02}.tar` and `{a,b}.tar`, the notation of webdataset."""
    match = re.search(r"\{([^{}]*)\}", pattern)
    if match is None:
        return [pattern]
    body = match.group(1)
    span = re.fullmatch(r"(\d+)\.\.(\d+)", body)
    if span:
        width = len(span.group(1))
        options = [f"{i:0{width}d}" for i in range(int(span.group(1)), int(span.group(2)) + 1)]
    else:
        options = body.split(",")
    head, tail = pattern[: match.start()], pattern[match.end() :]
    return [expanded for option in options for expanded in _expand_braces(head + option + tail)]


def detect_format(path: str | Path) -> Format:
    """Which format `path` is in, from its suffix and, for JSON, from its first characters."""
    directory = Path(path)
    if directory.is_dir() and not _archives(directory):
        next(_pictures(directory))  # refuses a directory without any; does not list the others
        return "folder"
    first = input_paths(path)[0]
    if first.suffix == ".tar":
        return "webdataset"
    if first.suffix == ".parquet":
        return "parquet"
    if first.suffix.lower() in TABLE_SUFFIXES:
        return "csv"
    with first.open(encoding="utf-8", errors="replace") as file:
        head = file.read(_HEAD_CHARACTERS).lstrip("\ufeff \t\r\n")
    if head.startswith("["):
        return "conversations"
    if head.startswith("{"):
        return "revision" if _opens_revision(head) else "conversations"
    raise ValueError(
        f"{first}: neither JSON, JSONL, .csv, .tsv, .tar nor .parquet; "
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


def _opened(path: Path) -> TextIOWrapper:
    """Bytes that are not UTF-8 become surrogates, for which `revision.records.read` refuses the
    entry alone; strict reading would lose the rest of the file."""
    return path.open(encoding="utf-8", errors="surrogateescape")


def revision_entries(path: Path) -> Iterator[Entry]:
    """Entries of both lists in the order of the file; other keys of the object are stepped over."""
    with _opened(path) as file:
        stream = JsonStream(file, str(path))
        for key in stream.members():
            if key == "images" or key == "texts":
                for i, fields in enumerate(stream.elements()):
                    yield Entry(f"{path.name}:{key} entry {i}", fields, key)
            else:
                stream.value()
        stream.finish()


def conversation_entries(path: Path) -> Iterator[Entry]:
    """Entries of a JSON array or, one object a line, of JSONL."""
    with _opened(path) as file:
        stream = JsonStream(file, str(path))
        if stream.peek() == "[":
            for i, fields in enumerate(stream.elements()):
                yield Entry(f"{path.name}:entry {i}", fields)
            stream.finish()
            return
        file.seek(0)
        for number, line in enumerate(file, start=1):
            if line.strip("\ufeff \t\r\n"):
                yield _line_entry(f"{path.name}:line {number}", line)


def _line_entry(address: str, line: str) -> Entry:
    try:
        return Entry(address, json.loads(line.lstrip("\ufeff")))
    except (ValueError, RecursionError) as error:
        return Entry(address, None, problem=f"not valid JSON: {error}")


def webdataset_entries(path: Path) -> Iterator[Entry]:
    """One entry per group of consecutive members with the same stem; images as encoded bytes.

    An image's `__members__` address, `<tar>#<member>@<offset>+<size>`, finds it again with one
    seek (`load_image` reads it).
    """
    for key, members in itertools.groupby(_tar_members(path), key=lambda m: _stem(m[0])):
        fields: dict[str, Any] = {"__key__": key}
        images: dict[str, bytes] = {}
        problem = ""
        for name, offset, content in members:
            if content is not None and _suffix(name) in IMAGE_SUFFIXES:
                images[f"{path}#{name}@{offset}+{len(content)}"] = content
            else:
                problem = _add_member(fields, name, content) or problem
        if images:  # else the .json may name paths
            fields |= {"images": list(images.values()), "__members__": list(images)}
        yield Entry(f"{path.name}/{key}", {"id": key} | fields, problem=problem)


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


def _tar_members(path: Path) -> Iterator[tuple[str, int, bytes | None]]:
    """Name, offset and content of every file; refuses a tar that ends before its end mark.

    Links and devices have no content of their own: None.
    """
    with _opened_tar(path) as tar:
        while True:
            try:
                info = tar.next()
                if info is None:
                    break
                content = _content(tar, info)
            except (tarfile.TarError, EOFError, ValueError, OverflowError, MemoryError) as error:
                raise ValueError(f"{path}: truncated tar ({error}); fetch it again") from error
            tar.members = []  # type: ignore[attr-defined]  # it would remember every member
            if not info.isdir():
                yield info.name, info.offset_data, content
        end = tar.offset
    with path.open("rb") as raw:
        raw.seek(end)
        if raw.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise ValueError(
                f"{path}: truncated tar: no end mark at byte {end} of {path.stat().st_size}; "
                "samples are missing, fetch it again"
            )


def _opened_tar(path: Path) -> tarfile.TarFile:
    try:
        return tarfile.open(path, "r:")
    except (tarfile.TarError, EOFError, ValueError, OverflowError) as error:
        raise ValueError(f"{path}: not a tar ({error}); fetch it again") from error


def _content(tar: tarfile.TarFile, info: tarfile.TarInfo) -> bytes | None:
    if info.issparse():  # a few bytes may claim terabytes of zeros
        raise ValueError(f"{info.name!r} is a sparse member; write the tar without sparse members")
    file = tar.extractfile(info) if info.isfile() else None
    return file.read() if file else None


def parquet_entries(path: Path) -> Iterator[Entry]:
    """One entry per row. A file without an id column gets `<file stem>/<row>` as ids."""
    from pyarrow import parquet

    try:
        file = parquet.ParquetFile(path)
    except Exception as error:  # pyarrow has its own family of errors
        raise ValueError(f"{path}: not a readable parquet file ({error})") from error
    names = set(file.schema_arrow.names)
    id_column = next((name for name in ("id", "key", "__key__") if name in names), None)
    row = 0
    for batch in file.iter_batches(batch_size=256):
        for fields, problem in _rows(batch):
            address = f"{path.name}:row {row}"
            if not problem:
                fields["id"] = fields[id_column] if id_column else f"{path.stem}/{row}"
                _unpack_images(fields, address)
            yield Entry(address, fields, problem=problem)
            row += 1


def _rows(batch: Any) -> Iterator[tuple[dict[str, Any], str]]:
    """The rows of a batch with what is wrong with them; one bad value does not cost the others."""
    try:
        rows = batch.to_pylist()
    except (ValueError, OverflowError):  # a text that is not UTF-8, a date without a calendar
        for i in range(batch.num_rows):
            try:
                yield batch.slice(i, 1).to_pylist()[0], ""
            except (ValueError, OverflowError) as error:
                yield {}, f"a value that cannot be read: {error}"
    else:
        yield from ((fields, "") for fields in rows)


def _unpack_images(fields: dict[str, Any], address: str) -> None:
    """`datasets` stores an image as {"bytes", "path"}."""
    key = "images" if fields.get("images") is not None else "image"
    value = fields.pop(key, None)
    images = value if isinstance(value, list) else [value]
    unpacked = [
        (image.get("bytes") or image.get("path")) if isinstance(image, dict) else image
        for image in images
        if image is not None
    ]
    fields["images"] = unpacked
    fields["__members__"] = [address if isinstance(i, bytes) else i for i in unpacked]


ENTRIES: dict[Format, Callable[[Path], Iterator[Entry]]] = {
    "revision": revision_entries,
    "conversations": conversation_entries,
    "webdataset": webdataset_entries,
    "parquet": parquet_entries,
    "csv": table_entries,
}


def read_entries(path: str | Path, format: Format, image_root: Path | None) -> Iterator[Entry]:
    """The raw entries of all files of `path`, one file after the other."""
    if format == "folder" and Path(path).is_dir():
        yield from folder_entries(Path(path), image_root)
        return
    for file in input_paths(path, format):
        try:
            yield from ENTRIES[format](file)
        except OSError as error:
            raise ValueError(
                f"{file}: cannot be read to its end ({error.strerror or error}); it was there when "
                "reading began: restore it and start again"
            ) from error
