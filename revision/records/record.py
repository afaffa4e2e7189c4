"""What every stage of the pipeline reads: a record, its turns, and entries that were refused."""

import base64
import json
from dataclasses import dataclass, field
from typing import Any, Literal

ImageSource = str | bytes
Role = Literal["system", "user", "assistant"]
IMAGE_MARK = "<image>"


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
