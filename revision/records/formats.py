"""Input files as streams of raw entries; the very first step of the pipeline.

One generator per file format. Each yields `Entry`: plain fields and where they stood. What the
fields mean, and which entries are refused, is decided in one place, `revision.records.read`.

    revision       {"images": [{id, image}], "texts": [{id, text}]}        (Yu-xm/ReVision README)
    conversations  JSON array or JSONL of {id, image, caption, conversations}  (LLaVA, Bunny)
    webdataset     tars whose members share a stem, as img2dataset writes them
    parquet        one row per entry, as `datasets` and img2dataset write them
"""

import itertools
import json
import re
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

from revision.records.json_stream import JsonStream

Format = Literal["revision", "conversations", "webdataset", "parquet"]
IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "webp")
_HEAD_CHARACTERS = 2**16


class Entry(NamedTuple):
    """Raw fields and their address; `part` is "images" or "texts" in a revision file."""

    address: str
    fields: Any
    part: str = ""
    problem: str = ""


def input_paths(path: str | Path) -> list[Path]:
    """The files that `path` stands for: itself, a directory's files, or braces `{00000..00009}`."""
    matches = sorted(_expand_braces(str(path)))
    paths = [Path(match) for match in matches]
    if len(paths) == 1 and paths[0].is_dir():
        directory = paths[0]
        paths = sorted(directory.glob("*.tar")) or sorted(directory.glob("*.parquet"))
        if not paths:
            raise ValueError(
                f"{directory}: holds neither .tar nor .parquet files; give the JSON file itself"
            )
    for missing in (p for p in paths if not p.is_file()):
        raise ValueError(f"{missing}: no such input file")
    return paths


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
    first = input_paths(path)[0]
    if first.suffix == ".tar":
        return "webdataset"
    if first.suffix == ".parquet":
        return "parquet"
    with first.open(encoding="utf-8") as file:
        head = file.read(_HEAD_CHARACTERS).lstrip("\ufeff \t\r\n")
    if head.startswith("["):
        return "conversations"
    if head.startswith("{"):
        return "revision" if _opens_revision(head) else "conversations"
    raise ValueError(
        f"{first}: neither JSON, JSONL, .tar nor .parquet; pass format= if its name misleads"
    )


def _opens_revision(head: str) -> bool:
    """An object with a list of objects under "images" or "texts", not one line of JSONL."""
    try:
        value, _ = json.JSONDecoder().raw_decode(head)
    except json.JSONDecodeError:  # longer than the head: a file of one object, or a huge line
        return re.search(r'^\{\s*"(images|texts)"\s*:\s*\[\s*[\{\]]', head) is not None
    if "id" in value or "conversations" in value:
        return False  # a record with several images
    return any(isinstance(value.get(key), list) for key in ("images", "texts"))


def revision_entries(path: Path) -> Iterator[Entry]:
    """Entries of both lists in the order of the file; other keys of the object are stepped over."""
    with path.open(encoding="utf-8") as file:
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
    with path.open(encoding="utf-8") as file:
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
    except json.JSONDecodeError as error:
        return Entry(address, None, problem=f"not valid JSON: {error.msg}")


def webdataset_entries(path: Path) -> Iterator[Entry]:
    """One entry per group of consecutive members with the same stem; images as encoded bytes.

    An image's `__members__` address, `<tar>#<member>@<offset>+<size>`, finds it again with one
    seek (`load_image` reads it).
    """
    for key, members in itertools.groupby(_tar_members(path), key=lambda m: _stem(m[0])):
        fields: dict[str, Any] = {"__key__": key, "images": [], "__members__": []}
        problem = ""
        for name, offset, content in members:
            suffix = name.rsplit(".", 1)[-1].lower()
            if suffix in IMAGE_SUFFIXES:
                fields["images"].append(content)
                fields["__members__"].append(f"{path}#{name}@{offset}+{len(content)}")
            elif suffix == "json":
                problem = _merge_json(fields, content) or problem
            elif suffix == "txt":
                fields["text"] = content.decode("utf-8", errors="replace")
        yield Entry(f"{path.name}/{key}", {"id": key} | fields, problem=problem)


def _merge_json(fields: dict[str, Any], content: bytes) -> str:
    """Merge a .json member into `fields`; what the tar itself says wins. Returns the problem."""
    try:
        loaded = json.loads(content)
    except ValueError as error:
        return f"its .json member is not valid JSON: {error}"
    if not isinstance(loaded, dict):
        return f"its .json member holds a {type(loaded).__name__}, expected an object"
    fields |= {key: value for key, value in loaded.items() if key not in fields}
    return ""


def _stem(name: str) -> str:
    directory, _, base = name.rpartition("/")
    stem = base.split(".", 1)[0]
    return f"{directory}/{stem}" if directory else stem


def _tar_members(path: Path) -> Iterator[tuple[str, int, bytes]]:
    """Name, offset and content of every file; refuses a tar that ends before its end mark."""
    with tarfile.open(path, "r:") as tar:
        while True:
            try:
                info = tar.next()
                if info is None:
                    break
                file = tar.extractfile(info) if info.isfile() else None
                content = file.read() if file else b""
            except (tarfile.TarError, EOFError) as error:
                raise ValueError(f"{path}: truncated tar ({error}); fetch it again") from error
            tar.members = []  # type: ignore[attr-defined]  # it would remember every member
            if file:
                yield info.name, info.offset_data, content
        end = tar.offset
    with path.open("rb") as raw:
        raw.seek(end)
        if raw.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise ValueError(
                f"{path}: truncated tar: no end mark at byte {end} of {path.stat().st_size}; "
                "samples are missing, fetch it again"
            )


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
        for fields in batch.to_pylist():
            fields["id"] = fields[id_column] if id_column else f"{path.stem}/{row}"
            address = f"{path.name}:row {row}"
            _unpack_images(fields, address)
            yield Entry(address, fields)
            row += 1


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


ENTRIES: dict[str, Callable[[Path], Iterator[Entry]]] = {
    "revision": revision_entries,
    "conversations": conversation_entries,
    "webdataset": webdataset_entries,
    "parquet": parquet_entries,
}
