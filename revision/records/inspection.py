"""What is in an input: one pass over its records, for people who are about to use them.

Memory does not grow with the input, but for eight bytes an id (`SeenIds`) and one number for each
length of caption that occurs: lengths are counted, so their quantiles are exact. Names of metadata
and reasons for refusal are counted up to `MAX_NAMES` of each; what comes later is counted together.

Samples are drawn by Algorithm R (Vitter, ACM TOMS 11(1), 1985, p. 39), every record and every
picture with the same chance. A picture is opened when it is drawn, and only its header is decoded:
about num_images * (1 + ln(N / num_images)) files of N.
"""

import random
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from revision.captions import count_words
from revision.progress import track
from revision.records.formats import chosen_format
from revision.records.header import image_header
from revision.records.inputs import Inputs, input_files, shown_input
from revision.records.read import read_records
from revision.records.record import IMAGE_MARK, Record, Rejection

MAX_NAMES = 200
NUM_ADDRESSES = 5
QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
OTHERS = "(others)"
_SHOWN_CHARACTERS = 200
_DUPLICATE = "duplicate id"
_MARKS = f"{IMAGE_MARK} marks in the conversation"
T = TypeVar("T")


@dataclass
class Reservoir(Generic[T]):
    """`size` of all the items that are offered, each with the same chance."""

    size: int
    random: random.Random
    items: list[T] = field(default_factory=list)
    num_offered: int = 0

    def place(self) -> int | None:
        """Where the next item belongs, None where it is passed over."""
        self.num_offered += 1
        if len(self.items) < self.size:
            return len(self.items)
        chosen = self.random.randrange(self.num_offered)
        return chosen if chosen < self.size else None

    def put(self, place: int, item: T) -> None:
        self.items[place : place + 1] = [item]


def inspect_records(
    path: Inputs,
    *,
    image_root: Path | str | None = None,
    format: str = "auto",
    num_images: int = 500,
    num_samples: int = 3,
    seed: int = 0,
) -> dict[str, Any]:
    """What `path` holds, as plain numbers and text that JSON can store.

    An input that cannot be read to its end is described as far as it goes; "stopped" says why.

    Raises:
        ValueError: the input is missing, in no known format, or a count is negative.
    """
    if min(num_images, num_samples) < 0:
        raise ValueError(
            f"num_images and num_samples must be at least 0, got {num_images} and {num_samples}"
        )
    chosen = chosen_format(path, format)
    files = input_files(path, chosen)
    survey = _Survey(image_root, num_images, num_samples, seed)
    stopped = ""
    try:
        entries = read_records(path, side="both", image_root=image_root, format=chosen)
        for entry in track(entries, f"inspect {files[0].name}"):
            survey.add(entry)
    except (ValueError, OSError) as error:
        stopped = str(error)
    found: dict[str, Any] = {"input": shown_input(path), "format": chosen}
    found |= {"detected": format == "auto", "num_files": len(files)}
    return found | {"stopped": stopped, "seed": seed} | survey.found()


class _Survey:
    """The counts so far."""

    def __init__(
        self, image_root: Path | str | None, num_images: int, num_samples: int, seed: int
    ) -> None:
        self.image_root = image_root
        self.counts: Counter[str] = Counter()
        self.fields: Counter[str] = Counter()
        self.words: Counter[int] = Counter()
        self.characters: Counter[int] = Counter()
        self.refused: dict[str, dict[str, Any]] = {}
        self.headers: Reservoir[dict[str, Any]] = Reservoir(num_images, random.Random(seed))
        self.samples: Reservoir[dict[str, Any]] = Reservoir(num_samples, random.Random(seed))

    def add(self, entry: Record | Rejection) -> None:
        self.counts["entries"] += 1
        if isinstance(entry, Rejection):
            self._add_refused(entry)
            return
        self.counts["records"] += 1
        self._add_id(entry)
        self.fields.update(_bounded(self.fields, _filled(entry.metadata)))
        self._add_text(entry)
        self._add_conversation(entry)
        self._add_images(entry)
        place = self.samples.place()
        if place is not None:
            self.samples.put(place, shown(entry))

    def _add_refused(self, rejection: Rejection) -> None:
        (kind,) = _bounded(self.refused, [reason_kind(rejection.reason)])
        first = {"count": 0, "example": rejection.reason[:_SHOWN_CHARACTERS], "addresses": []}
        known = self.refused.setdefault(kind, first)
        known["count"] += 1
        if len(known["addresses"]) < NUM_ADDRESSES:
            known["addresses"].append({"id": rejection.id, "address": rejection.address})
        self.counts["refused"] += 1
        self.counts["duplicate_ids"] += rejection.reason.startswith(_DUPLICATE)
        self.counts["marks_unlike_images"] += _MARKS in rejection.reason

    def _add_id(self, record: Record) -> None:
        """`revision.records.read` numbers the ids of conversations that come again."""
        original = record.metadata.get("original_id")
        if isinstance(original, str) and record.id.startswith(f"{original}#"):
            self.counts["duplicate_ids"] += 1
            self.counts["numbered_ids"] += 1

    def _add_text(self, record: Record) -> None:
        if not (record.text and record.text.strip()):
            return
        self.counts["texts"] += 1
        self.counts["texts_with_marks"] += IMAGE_MARK in record.text
        self.words[count_words(record.text)] += 1
        self.characters[len(record.text)] += 1

    def _add_conversation(self, record: Record) -> None:
        if not record.conversations:
            return
        marks = sum(turn.text.count(IMAGE_MARK) for turn in record.conversations)
        self.counts["conversations"] += 1
        self.counts["marks"] += marks
        self.counts["conversations_without_images"] += not record.images and not marks
        self.counts["marks_filled_by_texts"] += marks > len(record.images)
        for turn in record.conversations:
            self.counts[f"turns_{turn.role}"] += 1

    def _add_images(self, record: Record) -> None:
        self.counts["images"] += len(record.images)
        self.counts["records_with_one_image"] += len(record.images) == 1
        self.counts["records_with_several_images"] += len(record.images) > 1
        for image, address in zip(record.images, _addresses(record), strict=True):
            place = self.headers.place()
            if place is not None:
                self.headers.put(place, _header(image, address, self.image_root))

    def found(self) -> dict[str, Any]:
        return {
            "counts": {name: self.counts[name] for name in COUNTS},
            "text_words": quantiles(self.words),
            "text_characters": quantiles(self.characters),
            "metadata": dict(self.fields.most_common()),
            "refused": dict(sorted(self.refused.items(), key=lambda item: -item[1]["count"])),
            "pictures": _pictures(self.headers),
            "samples": self.samples.items,
        }


COUNTS = (
    *(
        "entries",
        "records",
        "refused",
        "duplicate_ids",
        "numbered_ids",
        "texts",
        "texts_with_marks",
    ),
    *("images", "records_with_one_image", "records_with_several_images"),
    *("conversations", "turns_system", "turns_user", "turns_assistant"),
    *("conversations_without_images", "marks", "marks_filled_by_texts", "marks_unlike_images"),
)


def _bounded(known: Any, names: list[str]) -> list[str]:
    return [name if name in known or len(known) < MAX_NAMES else OTHERS for name in names]


def _filled(metadata: dict[str, Any]) -> list[str]:
    """Names of the fields that hold anything; those of our own readers are left out."""
    own = ("__members__", "__key__", "original_id")
    return [k for k, value in metadata.items() if k not in own and value not in (None, "", [], {})]


def reason_kind(reason: str) -> str:
    """`reason` without what differs from entry to entry: quoted parts and numbers."""
    plain = re.sub(r"'[^']*'|\"[^\"]*\"", "'...'", reason[:_SHOWN_CHARACTERS])
    return re.sub(r"\d+", "N", plain)


def quantiles(counted: Counter[int]) -> dict[str, int]:
    """The smallest length that at least a share q of all does not exceed, for each q."""
    total, below = sum(counted.values()), 0
    found: dict[str, int] = {}
    for length in sorted(counted):
        below += counted[length]
        for q in QUANTILES:
            if f"{q:g}" not in found and below >= q * total:
                found[f"{q:g}"] = length
    return found


def _addresses(record: Record) -> list[str]:
    """Of each image where it stands, or how long it is if nobody knows."""
    members = record.metadata.get("__members__")
    if not isinstance(members, list) or len(members) != len(record.images):
        members = list(record.images)  # a field of that name in the data means nothing
    return [m if isinstance(m, str) else f"{len(m)} bytes" for m in members]


def _header(image: str | bytes, address: str, image_root: Path | str | None) -> dict[str, Any]:
    try:
        return image_header(image, image_root=image_root)._asdict() | {"address": address}
    except ValueError as error:
        problem = str(error) if isinstance(image, str) else f"{address}: {error}"
        return {"address": address, "problem": problem}


def _pictures(headers: Reservoir[dict[str, Any]]) -> dict[str, Any]:
    good = [header for header in headers.items if "problem" not in header]
    broken = [header for header in headers.items if "problem" in header]
    return {
        "num_sampled": len(headers.items),
        "num_broken": len(broken),
        "broken": broken[:NUM_ADDRESSES],
        "modes": dict(Counter(header["mode"] for header in good).most_common()),
        "encodings": dict(Counter(header["encoding"] for header in good).most_common()),
        "width": quantiles(Counter(header["width"] for header in good)),
        "height": quantiles(Counter(header["height"] for header in good)),
    }


def shown(record: Record) -> dict[str, Any]:
    """`record` for the eye: long text is cut, bytes become their address or their length."""
    metadata = {name: record.metadata[name] for name in _filled(record.metadata)}
    fields = {
        "id": record.id,
        "text": record.text,
        "images": _addresses(record),
        "conversations": [f"{turn.role}: {turn.text}" for turn in record.conversations],
        "metadata": {name: str(value) for name, value in metadata.items()},
    }
    return {name: _cut(value) for name, value in fields.items() if value}


def _cut(value: Any) -> Any:
    if isinstance(value, list):
        return [_cut(item) for item in value[:6]]
    if isinstance(value, dict):
        return {name: _cut(item) for name, item in list(value.items())[:12]}
    text = str(value)
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}..."
