"""The files that an input stands for, wherever they lie; the first step of every reader.

    data.json                       a file of this machine
    parts                           a directory: its files of one kind
    parts/train-*.parquet           what matches
    {00000..00009}.tar  {a,b}.tar   braces, the notation of webdataset
    s3://bucket/parts/*.tar         a URL; braces too, and where the server lists them, directories
    pipe:aws s3 cp s3://b/a.tar -   what a command prints (`revision.remote.address`); of braces
                                    only {00000..00009} is ours, the others are the command's
    a.json::b.json                  several, one after the other, also a notation of webdataset

Of a directory these are, whichever comes first: the .arrow files of Hugging Face `datasets`, tars,
parquet files, the parquet files of `data/` below it, the pictures and sidecars below it. A data
set with several splits is refused with what to give instead: no split is a better guess.
"""

import itertools
import json
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import TypeVar

from revision.progress import track
from revision.records.folder import folder_files
from revision.records.input_file import InputFile
from revision.remote import is_pipe, is_url, listing, shown, url_text
from revision.remote.address import is_directory

Inputs = str | Path | Sequence[str | Path]
SEPARATOR = "::"
_PART = re.compile(r"(?P<split>.+)-(?P<index>\d{5})-of-(?P<count>\d{5})")
_QUESTIONS = 16
S = TypeVar("S")
T = TypeVar("T")
_BRACES = re.compile(r"\{(?:(\d+)\.\.(\d+)|([^{}]*,[^{}]*))\}")
_COMMAND_BRACES = re.compile(r"\{(\d+)\.\.(\d+)()\}")  # shells and jq use the others


def input_text(given: Inputs) -> str:
    """Any input as one text, which configs and headers can hold."""
    pieces = [given] if isinstance(given, (str, Path)) else list(given)
    parts = [part for piece in pieces for part in str(piece).split(SEPARATOR)]
    return SEPARATOR.join(url_text(part) for part in parts)


def shown_input(given: Inputs) -> str:
    """`given` for messages: without what addresses may hold of secrets."""
    return SEPARATOR.join(shown(piece) for piece in input_text(given).split(SEPARATOR))


def input_files(given: Inputs, format: str = "auto") -> list[InputFile]:
    """The files that `given` stands for; of a directory those of `format`.

    Raises:
        ValueError: a file of this machine is missing, or a directory holds none of this format.
    """
    patterns = [
        pattern
        for piece in input_text(given).split(SEPARATOR)
        for pattern in sorted(expand_braces(piece))
    ]
    found = _each(lambda pattern: _matching(pattern, format), patterns)
    return [InputFile(address) for files in found for address in files]


def digests_of(files: Sequence[InputFile]) -> list[str]:
    """`digest` of each; servers are asked about several at a time."""
    return list(track(_each(InputFile.digest, files), "digest the input", total=len(files)))


def stamps_of(files: Sequence[InputFile]) -> list[list[str | int]]:
    """`stamp` of each; servers are asked about several at a time."""
    return list(_each(InputFile.stamp, files))


def _each(ask: Callable[[S], T], subjects: Sequence[S]) -> Iterator[T]:
    """`ask` of each, in their order: of what is remote several at a time."""
    if not any(is_url(str(subject)) for subject in subjects):
        yield from map(ask, subjects)
        return
    with ThreadPoolExecutor(_QUESTIONS) as pool:
        yield from pool.map(ask, subjects)


def _matching(address: str, format: str) -> list[str]:
    if is_pipe(address):
        return [address]
    if is_url(address):
        return _remote(address, format)
    path = Path(address)
    if path.is_dir():
        return _of_directory(address, format)
    if format == "folder":
        raise ValueError(f"{path}: format=folder reads one directory of images, which this is not")
    if not path.exists() and "*" in path.name:
        return _found(address, _names(str(path.parent), path.name))
    if not path.is_file():
        raise ValueError(f"{path}: no such input file")
    return [address]


def _remote(address: str, format: str) -> list[str]:
    if format == "folder":
        raise ValueError(f"{shown(address)}: format=folder reads a directory of this machine")
    parent, _, name = address.rpartition("/")
    if "*" in name:
        return _found(address, listing(parent, name))
    return _of_directory(address, format) if is_directory(address) else [address]


def _found(pattern: str, files: list[str]) -> list[str]:
    if not files:
        raise ValueError(f"{shown(pattern)}: no file matches")
    return files


def _names(directory: str, pattern: str) -> list[str]:
    """Addresses of the files of a directory, here or elsewhere."""
    if is_url(directory):
        return listing(directory, pattern)
    return sorted(str(path) for path in Path(directory).glob(pattern) if path.is_file())


def _of_directory(directory: str, format: str) -> list[str]:
    """The files of the first kind that is there and that `format` allows."""
    if format in ("auto", "datasets") and (found := _arrow_files(directory)):
        return found
    if format in ("auto", "webdataset") and (found := _names(directory, "*.tar")):
        return found
    if format in ("auto", "parquet"):
        inner = f"{directory.rstrip('/')}/data"
        if found := _names(directory, "*.parquet") or _names(inner, "*.parquet"):
            return one_split(found)
    if format not in ("auto", "folder") or is_url(directory):
        raise ValueError(f"{directory}: holds no file of format={format}; give the file itself")
    return list(_pictures(Path(directory)))


def _pictures(directory: Path) -> Iterator[str]:
    files = folder_files(directory)
    first = next(files, None)
    if first is None:
        raise ValueError(
            f"{directory}: holds neither .arrow, .tar nor .parquet files, nor a picture; "
            "give the JSON or CSV file itself"
        )
    yield from map(str, itertools.chain([first], files))


def _arrow_files(directory: str) -> list[str]:
    """The .arrow files that `save_to_disk` wrote, or the cache of `datasets`, of one split."""
    base = directory.rstrip("/")
    if _names(directory, "dataset_dict.json"):
        splits = _read_json(f"{base}/dataset_dict.json")["splits"]
        raise ValueError(
            f"{shown(base)}: holds the splits {', '.join(splits)}; give one of them, "
            f"for example {shown(base)}/{splits[0]}"
        )
    if _names(directory, "state.json"):
        state = _read_json(f"{base}/state.json")
        if state.get("_indices_data_files"):
            raise ValueError(f"{shown(base)}: rows are chosen by indices; flatten_indices() first")
        return [f"{base}/{file['filename']}" for file in state["_data_files"]]
    found = _names(directory, "*.arrow")  # those of `map` and `filter` hold the same rows again
    return one_split([file for file in found if not file.rpartition("/")[2].startswith("cache-")])


def _read_json(address: str) -> dict:
    with InputFile(address).open() as file:
        try:
            return json.loads(file.read())
        except ValueError as error:
            raise ValueError(f"{shown(address)}: not valid JSON ({error})") from error


def one_split(files: list[str]) -> list[str]:
    """`files`, when the names `<split>-00000-of-00002.<suffix>` tell of one split, whole.

    Raises:
        ValueError: of several splits, or some of its parts are not there.
    """
    parts = [_PART.fullmatch(PurePosixPath(file).stem) for file in files]
    named = [part for part in parts if part is not None]
    splits = sorted({part["split"] for part in named})
    if not named and len(files) > 1 and files[0].endswith(".arrow"):
        splits = [PurePosixPath(file).stem for file in files]  # <data set>-<split>.arrow
    if len(splits) > 1:
        parent, suffix = files[0].rpartition("/")[0], PurePosixPath(files[0]).suffix
        raise ValueError(
            f"{shown(parent)}: holds the splits {', '.join(splits)}; give the files of one of "
            f"them, for example '{shown(parent)}/{splits[0]}*{suffix}'"
        )
    if named and len(named) != int(named[0]["count"]):
        raise ValueError(
            f"{shown(files[0])}: {len(named)} of {int(named[0]['count'])} parts are there; fetch "
            "the others, or give those that are there by name"
        )
    return files


def expand_braces(pattern: str) -> list[str]:
    """`a{00..02}.tar` and `{a,b}.tar`; other braces stay, as in a shell."""
    match = (_COMMAND_BRACES if is_pipe(pattern) else _BRACES).search(pattern)
    if match is None:
        return [pattern]
    if match[1]:
        width = len(match[1])
        options = [f"{i:0{width}d}" for i in range(int(match[1]), int(match[2]) + 1)]
    else:
        options = match[3].split(",")
    head, tail = pattern[: match.start()], pattern[match.end() :]
    return [expanded for option in options for expanded in expand_braces(head + option + tail)]
