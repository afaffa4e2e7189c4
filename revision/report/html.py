"""The one-page report: self-contained HTML, every picture embedded as a data URI.

The page is data (`Report`, made of `Section`s) poured into `templates/report.html.j2`; nothing is
fetched when it is opened, so it can be mailed. Text from models and captions is escaped.
"""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from PIL import Image

from revision.files import write_bytes
from revision.report.tables import Table

TEMPLATES = Path(__file__).with_name("templates")
THUMBNAIL_PX = 320
PAGE_PX = 1024


@dataclass(frozen=True)
class Picture:
    """A PNG with a caption; shown at 0.6 of its pixels, so that it is sharp on dense screens."""

    png: bytes
    alt: str
    caption: str = ""

    @property
    def width_px(self) -> int:
        """Width on the page."""
        width = int.from_bytes(self.png[16:20], "big")  # the header chunk comes first
        return min(PAGE_PX, round(width * 0.6))


@dataclass(frozen=True)
class Tile:
    """One headline number: short name, the number, a line on what it is compared with."""

    name: str
    number: str
    note: str = ""


@dataclass(frozen=True)
class Answer:
    """A picture, what was asked, what each model (by name) said, and the reference."""

    image: bytes
    question: str
    said: Mapping[str, str]
    reference: str
    name: str = ""


@dataclass(frozen=True)
class Section:
    """A heading, a paragraph, then figures, a table and sample answers, whichever are given."""

    title: str
    text: str = ""
    figures: Sequence[Picture] = ()
    table: Table | None = None
    answers: Sequence[Answer] = ()


@dataclass(frozen=True)
class Report:
    """The page from top to bottom."""

    title: str
    summary: str
    sections: Sequence[Section]
    tiles: Sequence[Tile] = ()
    facts: Mapping[str, str] = field(default_factory=dict)


def write_report(path: Path, report: Report) -> Path:
    """Write the page whole or not at all, and return its path."""
    page = template("report.html.j2").render(vars(report))
    write_bytes(Path(path), page.encode())
    return Path(path)


def template(name: str) -> Template:
    """A page template: text is escaped, and a name that it lacks is an error."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["data_uri"] = data_uri
    return environment.get_template(name)


def data_uri(image: bytes) -> str:
    """The bytes of a PNG or JPEG as an address that needs no file."""
    kind = "png" if image.startswith(b"\x89PNG") else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(image).decode('ascii')}"


def thumbnail(image: Image.Image) -> bytes:
    """A JPEG of at most 320 pixels a side."""
    small = image.convert("RGB")
    small.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    small.save(buffer, format="JPEG", quality=86, optimize=True)
    return buffer.getvalue()
