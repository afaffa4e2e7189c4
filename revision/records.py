"""Records: what every stage of the pipeline reads, whatever file it came from.

A record has an id and any of: a text, images, a conversation. `read_records` streams the records
of an input and hands back every entry that it refuses as a `Rejection`, so that nothing is lost
and nothing is silent. `load_image` turns an image source into RGB pixels.
"""

import base64
import hashlib
import io
import json
import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from PIL import Image

from revision.formats import ENTRIES, Entry, Format, detect_format, input_paths

__all__ = [
    "IMAGE_MARK",
    "ImageSource",
    "Record",
    "Rejection",
    "Side",
    "Turn",
    "detect_format",
    "load_image",
    "read_records",
]

ImageSource = str | bytes
Role = Literal["system", "user", "assistant"]
Side = Literal["image", "text", "both"]
IMAGE_MARK = "<image>"

_ROLES: dict[str, Role] = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
}
_TAR_ADDRESS = re.compile(r"(?P<tar>.*\.tar)#(?P<member>.+)@(?P<offset>\d+)\+(?P<size>\d+)")
_FIELDS = ("id", "text", "caption", "image", "images", "conversations")

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Turn:
    """One turn of a conversation; `IMAGE_MARK` in its text stands for one image."""

    role: Role
    text: str


@dataclass(frozen=True)
class Record:
    """One entry of an input. `images` are paths, addresses of tar members, or encoded bytes."""

    id: str
    text: str | None = None
    images: tuple[ImageSource, ...] = ()
    conversations: tuple[Turn, ...] = ()
    metadata: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """A JSON object that `from_json` reads back; image bytes become the member's address.

        Raises:
            ValueError: an image is bytes and nothing says where they came from.
        """
        metadata = {key: value for key, value in self.metadata.items() if key != "__members__"}
        members = self.metadata.get("__members__", self.images)
        if any(isinstance(member, bytes) for member in members):
            raise ValueError(
                f"record {self.id!r}: image bytes without metadata['__members__'], the addresses "
                "they came from, cannot be written; give a path instead"
            )
        fields: dict[str, Any] = {
            "id": self.id,
            "text": self.text,
            "images": list(members),
            "conversations": [{"role": t.role, "text": t.text} for t in self.conversations],
            "metadata": metadata,
        }
        return {key: value for key, value in fields.items() if value or key == "id"}

    @staticmethod
    def from_json(fields: dict[str, Any]) -> "Record":
        """The inverse of `to_json`; other keys are ignored."""
        return Record(
            id=fields["id"],
            text=fields.get("text"),
            images=tuple(fields.get("images", ())),
            conversations=tuple(Turn(**turn) for turn in fields.get("conversations", ())),
            metadata=dict(fields.get("metadata", {})),
        )


@dataclass(frozen=True)
class Rejection:
    """An entry that was refused: its id (may be empty), why, and where it stands."""

    id: str
    reason: str
    address: str


def json_line(fields: dict[str, Any]) -> bytes:
    """One line of JSONL. Dates and the like, which parquet may hold, become text."""
    return json.dumps(fields, default=_as_text).encode("ascii") + b"\n"


def _as_text(value: Any) -> str:
    return base64.b64encode(value).decode("ascii") if isinstance(value, bytes) else str(value)


def read_records(
    path: str | Path, *, side: Side, image_root: Path | None = None, format: str = "auto"
) -> Iterator[Record | Rejection]:
    """Stream the records of `path` in the order of the file, refused entries in their place.

    `side` says what a record must have: "image" at least one image (a conversation without one
    is kept: it has no feature row), "text" a text that is not empty, "both" either. Ids are text,
    and unique per file list; later duplicates are refused. `image_root` does not open anything:
    it only makes the addresses of tar members relative to it, as `load_image` expects them.

    Raises:
        ValueError: the input is missing, in no known format, or cannot be read to its end.
    """
    if side not in get_args(Side):
        raise ValueError(f"side must be one of {get_args(Side)}, got {side!r}")
    chosen = _format(path, format)
    seen: set[tuple[str, int]] = set()
    for file in input_paths(path):
        for entry in ENTRIES[chosen](file):
            if entry.part in ("", "images" if side == "image" else "texts") or side == "both":
                yield _accepted(entry, side, seen, image_root)


def _format(path: str | Path, format: str) -> Format:
    if format == "auto":
        detected = detect_format(path)
        log.info("%s: read as %s", path, detected)
        return detected
    if format not in ENTRIES:
        raise ValueError(f"format must be auto or one of {sorted(ENTRIES)}, got {format!r}")
    return format  # type: ignore[return-value]


def _accepted(
    entry: Entry, side: Side, seen: set[tuple[str, int]], root: Path | None
) -> Record | Rejection:
    """The record of `entry`, or why it is refused."""
    id = ""
    try:
        if entry.problem:
            raise ValueError(entry.problem)
        if not isinstance(entry.fields, dict):
            raise ValueError(f"a {type(entry.fields).__name__}, expected an object with an id")
        id = _identifier(entry.fields)
        record = _record(id, entry.fields, root)
        _check(record, "image" if entry.part == "images" else side, entry.part)
        key = (entry.part, _hash(id))
        if key in seen:
            raise ValueError("duplicate id: an earlier entry has it")
        seen.add(key)
    except ValueError as error:
        return Rejection(id, str(error), entry.address)
    return record


def _identifier(fields: dict[str, Any]) -> str:
    id = fields.get("id")
    if id is None or id == "":
        raise ValueError("missing id")
    if isinstance(id, (dict, list)):
        raise ValueError(f"id is a {type(id).__name__}, expected text or a number")
    return str(id)


def _hash(id: str) -> int:
    """64 bits, the same in every process: two of 10^8 ids collide with probability 3e-4."""
    digest = hashlib.blake2b(id.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def _record(id: str, fields: dict[str, Any], image_root: Path | None) -> Record:
    text_key = next((key for key in ("text", "caption") if fields.get(key) is not None), None)
    text = fields[text_key] if text_key else None
    if text is not None and not isinstance(text, str):
        raise ValueError(f"{text_key} is a {type(text).__name__}, expected text")
    known = set(_FIELDS) - ({"caption"} if text_key == "text" else set())
    metadata = {key: value for key, value in fields.items() if key not in known}
    if "__members__" in metadata and image_root is not None:
        metadata["__members__"] = [_relative(m, image_root) for m in metadata["__members__"]]
    return Record(id, text, _images(fields), _turns(fields.get("conversations")), metadata)


def _relative(member: str, image_root: Path) -> str:
    return member.removeprefix(f"{image_root}/")


def _images(fields: dict[str, Any]) -> tuple[ImageSource, ...]:
    value = fields.get("images") or fields.get("image") or []
    images = value if isinstance(value, list) else [value]
    for image in images:
        if not isinstance(image, (str, bytes)) or not image:
            raise ValueError(f"image is {image!r}, expected a path or a list of paths")
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
    if role not in _ROLES:
        raise ValueError(f"a turn comes from {role!r}, expected one of {sorted(_ROLES)}")
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


def load_image(source: ImageSource, *, image_root: Path | None = None) -> Image.Image:
    """Decode to RGB; transparent pixels are composited on white.

    A relative path is taken from `image_root` (default: the working directory).

    Raises:
        ValueError: missing, unreadable, truncated or absurdly large, with the address.
    """
    address = f"{len(source)} bytes" if isinstance(source, bytes) else source
    try:
        content = source if isinstance(source, bytes) else _read_source(source, image_root)
        with Image.open(io.BytesIO(content)) as image:
            return _opaque(image)
    except FileNotFoundError as error:
        raise ValueError(f"{address}: missing image, no file {error.filename}") from error
    except Exception as error:  # decoders raise anything: OSError, SyntaxError, struct.error ...
        raise ValueError(
            f"{address}: unreadable image ({type(error).__name__}: {error})"
        ) from error


def _read_source(source: str, image_root: Path | None) -> bytes:
    match = _TAR_ADDRESS.fullmatch(source)
    path = (image_root or Path()) / (match["tar"] if match else source)
    if match is None:
        return path.read_bytes()
    with open(path, "rb") as file:
        file.seek(int(match["offset"]))
        return file.read(int(match["size"]))


def _opaque(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):  # 16-bit grey: keep the high byte, convert() would clip
        image = image.point(lambda value: value / 256).convert("L")
    if not image.has_transparency_data:
        return image.convert("RGB")
    layer = image.convert("RGBA")
    canvas = Image.new("RGBA", layer.size, "white")
    return Image.alpha_composite(canvas, layer).convert("RGB")
