"""A directory of images as a stream of raw entries; called by `revision.records.formats`.

Every picture below the directory is a record, in sorted order: its id is the path below the
directory without the suffix, its text stands in `<stem>.txt` or, as "text" or "caption", in
`<stem>.json`, whose other fields become metadata. What the picture itself and `.txt` say wins over
`.json`. Names that begin with a dot are stepped over; every other file is handed back as refused.

Nothing outside the directory is read: a link to a file is followed only to a place inside, a link
to a directory never. Memory is that of the listing of one directory.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from revision.records.entry import IMAGE_SUFFIXES, MAX_ENTRY_CHARACTERS, Entry, merge_json

_SIDECARS = (".txt", ".json")


def folder_files(directory: Path) -> Iterator[Path]:
    """Pictures and sidecars below `directory` that may be read, in the order of the entries."""
    root = directory.resolve()
    for path, _ in _walk(directory):
        if (_is_picture(path) or path.suffix in _SIDECARS) and not _refusal(path, root):
            yield path


def folder_entries(directory: Path, image_root: Path | str | None = None) -> Iterator[Entry]:
    """One entry per file; images as paths that `load_image` finds from `image_root`.

    Raises:
        ValueError: the directory lies outside `image_root`.
    """
    root, prefix = directory.resolve(), _prefix(directory, image_root)
    for path, stems in _walk(directory):
        if path.suffix in _SIDECARS and path.stem in stems:
            continue  # read, or refused, with its picture
        problem = _refusal(path, root)
        if not problem and path.suffix in _SIDECARS:
            problem = "text without a picture of the same stem beside it"
        elif not problem and not _is_picture(path):
            problem = f"not a picture: the suffix is none of {', '.join(IMAGE_SUFFIXES)}"
        address = str(path).encode("utf-8", "backslashreplace").decode()
        if problem:
            yield Entry(address, None, problem=problem)
        else:
            yield _entry(path, path.relative_to(directory), prefix, root, address)


def _walk(directory: Path) -> Iterator[tuple[Path, set[str]]]:
    """Files and links below `directory`, depth first, each directory in sorted order.

    With each the stems of the pictures beside it.
    """
    paths = [directory / name for name in sorted(os.listdir(directory)) if name[0] != "."]
    stems = {path.stem for path in paths if _is_picture(path)}
    for path in paths:
        if path.is_dir() and not path.is_symlink():
            yield from _walk(path)
        else:
            yield path, stems


def _is_picture(path: Path) -> bool:
    return path.suffix[1:].lower() in IMAGE_SUFFIXES


def _refusal(path: Path, root: Path) -> str:
    """Why `path` is not read; empty when it may be. `root` is resolved."""
    try:
        path.name.encode("utf-8")
    except UnicodeEncodeError:
        return "the name is not valid UTF-8"
    if path.is_symlink():
        if path.is_dir():
            return "a link to a directory, which is not followed"
        if not path.resolve().is_relative_to(root):
            return "a link that leaves the directory, which is not followed"
    return "" if path.is_file() else "not a file that can be read"


def _entry(path: Path, relative: Path, prefix: Path, root: Path, address: str) -> Entry:
    id = relative.with_suffix("").as_posix()
    fields: dict[str, Any] = {"id": id, "images": [str(prefix / relative)]}
    problem = ""
    for suffix in _SIDECARS:
        sidecar = path.with_suffix(suffix)
        if sidecar.is_symlink() or sidecar.exists():
            problem = problem or _merge_sidecar(fields, sidecar, root)
    fields.pop("__members__", None)  # a sidecar could send `Record.to_json` elsewhere with it
    return Entry(address, fields, problem=problem)


def _prefix(directory: Path, image_root: Path | str | None) -> Path:
    """Where the pictures' paths start, so that `load_image` finds them from `image_root`."""
    if image_root is None:
        return directory
    inner, outer = directory.resolve(), Path(image_root).resolve()
    if not inner.is_relative_to(outer):
        raise ValueError(
            f"{directory}: lies outside image_root={image_root}, from where its pictures would "
            "not be found; leave image_root out, or give the folder itself or one above it"
        )
    return inner.relative_to(outer)


def _merge_sidecar(fields: dict[str, Any], sidecar: Path, root: Path) -> str:
    """Add what `sidecar` says to `fields`; returns the problem, empty when there is none."""
    refusal = _refusal(sidecar, root)
    if refusal:
        return f"{sidecar.name}: {refusal}"
    try:
        size = sidecar.stat().st_size
        if size > MAX_ENTRY_CHARACTERS:
            return f"{sidecar.name}: {size} bytes, a sidecar has at most {MAX_ENTRY_CHARACTERS}"
        content = sidecar.read_bytes()
        if sidecar.suffix == ".json":
            return merge_json(fields, content)
        text = content.decode("utf-8-sig").strip()
        fields |= {"text": text} if text else {}
    except OSError as error:
        return f"{sidecar.name}: cannot be read ({error.strerror})"
    except UnicodeDecodeError:
        return f"{sidecar.name}: not valid UTF-8"
    return ""
