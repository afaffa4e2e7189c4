"""Read records: stream any input format, refuse bad entries one by one, lose none of them.

An id that comes again is refused where ids pair things or name rows. In conversations it does
neither: there it may name the picture, and several entries ask about one (users of
PhoenixZ810/MG-LLaVA count such ids in its fine-tuning file). Those entries are kept, the n-th as
`<id>#<n>`, with the id of the file as the metadata `original_id`. Every entry with an id is
counted, refused or not, so that the n-th means the same for images and for texts.
"""

import hashlib
import reprlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np

from revision.records.entry import Entry
from revision.records.formats import chosen_format, read_entries
from revision.records.inputs import Inputs
from revision.records.record import IMAGE_MARK, ImageSource, Record, Rejection, Role, Turn
from revision.remote import url_text

Side = Literal["image", "text", "both"]

_ROLES: dict[str, Role] = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
}
_FIELDS = ("id", "text", "caption", "image", "images", "conversations")
_RECENT_IDS = 2**18
_MAX_PATH = 4096


class SeenIds:
    """The ids met so far as 64-bit hashes: a set of the recent ones, sorted runs of the others.

    Eight bytes an id. The hash is the same in every process. Two of 10^8 ids collide with
    probability 3e-4; the later one would be refused as a duplicate, in plain sight.
    """

    def __init__(self) -> None:
        self._recent: set[int] = set()
        self._runs: list[np.ndarray] = []

    def add(self, id: str, part: str = "") -> bool:
        """Remember `id` of list `part`; False when it was there already."""
        content = f"{part}\0{id}".encode("utf-8", "surrogatepass")
        key = int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little")
        if key in self._recent or any(_holds(run, key) for run in self._runs):
            return False
        self._recent.add(key)
        if len(self._recent) >= _RECENT_IDS:
            self._settle()
        return True

    def _settle(self) -> None:
        run = np.fromiter(self._recent, np.uint64, len(self._recent))
        self._recent = set()
        while self._runs and len(self._runs[-1]) <= len(run):
            run = np.concatenate([run, self._runs.pop()])
        run.sort()
        self._runs.append(run)


def _holds(run: np.ndarray, key: int) -> bool:
    position = int(np.searchsorted(run, np.uint64(key)))
    return position < len(run) and int(run[position]) == key


def read_records(
    path: Inputs,
    *,
    side: Side,
    image_root: Path | str | None = None,
    format: str = "auto",
    is_shared: bool = False,
) -> Iterator[Record | Rejection]:
    """Stream the records of `path` in the order of the file, refused entries in their place.

    `side` says what a record must have: "image" at least one image (a conversation without one
    is kept: it has no feature row), "text" a text that is not empty, "both" either. Ids are text,
    and unique per file list; see above for those that come again. `image_root` does not open
    anything: it only makes the addresses of tar members, and the pictures of a folder, relative to
    it, as `load_image` expects them. `is_shared` says that others read the same input, or that it
    is read again: remote files then come to the cache of this machine, one by one.

    Raises:
        ValueError: the input is missing, in no known format, or cannot be read to its end.
    """
    chosen = chosen_format(path, format)
    names = _Names(numbered=chosen == "conversations")
    root = None if image_root is None else url_text(image_root)
    for entry in read_entries(path, chosen, image_root, is_shared=is_shared):
        if entry.part in ("", "images" if side == "image" else "texts") or side == "both":
            yield _accepted(entry, side, names, root)


class _Names:
    """The ids of a stream, each given once."""

    def __init__(self, *, numbered: bool) -> None:
        self._seen, self._numbered = SeenIds(), numbered
        self._counts: dict[str, int] = {}  # of the ids that came again

    def given(self, id: str, part: str) -> tuple[str, bool]:
        """The id of the next entry with `id`, and whether no earlier one has it."""
        if self._seen.add(id, part):
            return id, True
        if not self._numbered:
            return id, False
        while True:
            self._counts[id] = self._counts.get(id, 1) + 1
            numbered = f"{id}#{self._counts[id]}"
            if self._seen.add(numbered, part):
                return numbered, True


def _accepted(entry: Entry, side: Side, names: _Names, root: str | None) -> Record | Rejection:
    """The record of `entry`, or why it is refused."""
    id = ""
    try:
        if entry.problem:
            raise ValueError(entry.problem)
        if not isinstance(entry.fields, dict):
            raise ValueError(f"a {type(entry.fields).__name__}, expected an object with an id")
        _check_unicode(entry.fields)
        original = _identifier(entry.fields)
        id, is_new = names.given(original, entry.part)
        record = _record(id, entry.fields, root)
        _check(record, "image" if entry.part == "images" else side, entry.part)
        if not is_new:
            raise ValueError("duplicate id: an earlier entry has it")
    except ValueError as error:
        return Rejection(id, str(error), entry.address)
    if id != original:
        record.metadata["original_id"] = original
    return record


def _check_unicode(fields: dict[str, Any]) -> None:
    """Refuse lone surrogates: they were bytes that are not UTF-8, or half of a pair."""
    waiting: list[Any] = [fields]
    while waiting:  # not a recursion: nesting may be deeper than Python's stack
        value = waiting.pop()
        if isinstance(value, dict):
            waiting += [*value.keys(), *value.values()]
        elif isinstance(value, (list, tuple)):
            waiting += value
        elif isinstance(value, str) and not value.isascii():
            _check_text(value)


def _check_text(value: str) -> None:
    try:
        value.encode()
    except UnicodeEncodeError as error:
        start = max(0, error.start - 20)
        raise ValueError(
            f"not valid Unicode (UTF-8) at character {error.start} of {value[start : error.end]!r}"
        ) from None


def _identifier(fields: dict[str, Any]) -> str:
    id = fields.get("id")
    if id is None or id == "":
        raise ValueError("missing id")
    if isinstance(id, (dict, list)):
        raise ValueError(f"id is a {type(id).__name__}, expected text or a number")
    return str(id)


def _record(id: str, fields: dict[str, Any], image_root: str | None) -> Record:
    text_key = next((key for key in ("text", "caption") if fields.get(key) is not None), None)
    text = fields[text_key] if text_key else None
    if text is not None and not isinstance(text, str):
        raise ValueError(f"{text_key} is a {type(text).__name__}, expected text")
    known = set(_FIELDS) - ({"caption"} if text_key == "text" else set())
    metadata = {key: value for key, value in fields.items() if key not in known}
    images = _images(fields)
    if "__members__" in metadata:
        _check_members(metadata["__members__"], images)
    if "__members__" in metadata and image_root is not None:
        metadata["__members__"] = [_relative(m, image_root) for m in metadata["__members__"]]
    return Record(id, text, images, _turns(fields.get("conversations")), metadata)


def _check_members(members: Any, images: tuple[ImageSource, ...]) -> None:
    """The name is the reader's, for where bytes came from; data that used it could swap images."""
    given = members if isinstance(members, list) else []
    pairs = zip(given, images, strict=False)
    agree = all(isinstance(image, bytes) or image == member for member, image in pairs)
    if not isinstance(members, list) or not agree or len(given) != len(images):
        raise ValueError("a field is named '__members__', which tars and parquet use; rename it")


def _relative(member: str, image_root: str) -> str:
    return member.removeprefix(f"{image_root.rstrip('/')}/")


def _images(fields: dict[str, Any]) -> tuple[ImageSource, ...]:
    value = fields.get("images") or fields.get("image") or []
    images = value if isinstance(value, list) else [value]
    for image in images:
        if not isinstance(image, (str, bytes)) or not image:
            raise ValueError(f"image is {reprlib.repr(image)}, expected a path or a list of paths")
        if isinstance(image, str) and len(image) > _MAX_PATH:
            raise ValueError(f"image is a path of {len(image)} characters, at most {_MAX_PATH}")
    return tuple(images)


def _turns(value: Any) -> tuple[Turn, ...]:
    if value is None:
        return ()
    if not isinstance(value, list):
        raise ValueError(f"conversations is a {type(value).__name__}, expected a list of turns")
    return tuple(_turn(turn) for turn in value)


def _turn(turn: Any) -> Turn:
    """{"from", "value"} as LLaVA has it, or {"role", "text" or "content"}."""
    if not isinstance(turn, dict):
        raise ValueError(f"a turn is a {type(turn).__name__}, expected an object")
    role = turn.get("from", turn.get("role"))
    text = next((turn[key] for key in ("value", "text", "content") if key in turn), None)
    if not isinstance(role, str) or role not in _ROLES:
        raise ValueError(
            f"a turn comes from {reprlib.repr(role)}, expected one of {sorted(_ROLES)}"
        )
    if not isinstance(text, str):
        raise ValueError(f"the turn of {role!r} has no text")
    return Turn(_ROLES[role], text)


def _check(record: Record, side: Side, part: str) -> None:
    """Raise with the reason for which `side` cannot use the record."""
    has_text = bool(record.text and record.text.strip())
    if (part == "texts" or side == "text") and not has_text:
        raise ValueError("empty text: neither 'text' nor 'caption' holds a character")
    if side == "image" and not record.images and not record.conversations:
        raise ValueError("no image")
    if side == "both" and not (has_text or record.images or record.conversations):
        raise ValueError("nothing in it: no text, no image, no conversation")
    if record.conversations:
        _check_marks(record, side, has_text)


def _check_marks(record: Record, side: Side, has_text: bool) -> None:
    marks = sum(turn.text.count(IMAGE_MARK) for turn in record.conversations)
    # Text-only pretraining: the caption's feature fills the slot in place of an image.
    stands_in = side != "image" and has_text and not record.images and marks == 1
    if marks != len(record.images) and not stands_in:
        raise ValueError(
            f"{marks} {IMAGE_MARK} marks in the conversation but {len(record.images)} images"
        )
