"""A raw entry of an input file: what the generators of the formats yield, before any check."""

import json
from typing import Any, NamedTuple

IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "webp")
MAX_ENTRY_CHARACTERS = 64 * 2**20


class Entry(NamedTuple):
    """Raw fields and their address; `part` is "images" or "texts" in a revision file."""

    address: str
    fields: Any
    part: str = ""
    problem: str = ""


def merge_json(fields: dict[str, Any], content: bytes) -> str:
    """Merge JSON that stands beside an image into `fields`; what `fields` hold wins.

    Returns the problem, empty when there is none.
    """
    try:
        loaded = json.loads(content)
    except (ValueError, RecursionError) as error:
        return f"its .json member is not valid JSON: {error}"
    if not isinstance(loaded, dict):
        return f"its .json member holds a {type(loaded).__name__}, expected an object"
    fields |= {key: value for key, value in loaded.items() if key not in fields}
    return ""
