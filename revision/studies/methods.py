"""All alignment methods on the same features: a table with intervals, and a figure.

Reads the `report.json` that `align.py` leaves for each method; numbers are those of held-out rows.
The gap alone ranks nothing (a random image for every text has one of the smallest), so the figure
sets what a map takes from the text, Omega, against how well it covers the images, M_X.

Source: arXiv:2605.07825, Sec. 5 and App. B (the comparison that the table follows).
"""

import io
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

from revision.files import write_bytes
from revision.report.figures import INK, MUTED, SERIES, style_panel
from revision.report.tables import Table, markdown

COLUMNS = {  # of the table: where each number stands in the held-out part of a report
    "gap ↓": ("after", "gap"),
    "JS, bits ↓": ("after", "js_bits"),
    "mixing rate, %": ("after", "mixing_rate"),
    "M_Z": ("after", "m_text"),
    "M_X": ("after", "m_image"),
    "Ω ↑": ("preservation", "omega"),
    "Φ ↑": ("preservation", "phi"),
    "Ψ ↑": ("preservation", "psi"),
}
PAIRED = {"paired cosine ↑": ("after", "paired", "cosine")}
PERCENT = "mixing rate, %"
LABEL_PLACES = [(x, y) for y in (4, -11, 12, -19, 20, -27) for x in (6, -6)]  # points
DIGITS = {"gap ↓": 3, "JS, bits ↓": 3, PERCENT: 1}


@dataclass(frozen=True)
class Measured:
    """One method: held-out numbers (value, low, high), floor, CPU seconds of fit and apply."""

    method: str
    needs_pairs: bool
    numbers: dict[str, tuple[float, float | None, float | None]]
    floor: float
    cpu_seconds: float


def read_method(directory: Path, method: str, *, needs_pairs: bool, cpu_seconds: float) -> Measured:
    """The numbers of `align.py`'s output directory.

    Raises:
        ValueError: the report has no held-out rows, whose numbers alone compare methods.
    """
    report = json.loads((directory / "report.json").read_text())
    part = report.get("held_out")
    if part is None:
        raise ValueError(
            f"{directory / 'report.json'} has in-sample numbers only, which do not compare "
            "methods; give holdout_source and holdout_target"
        )
    columns = COLUMNS | (PAIRED if part["after"].get("paired") else {})
    numbers = {title: _number(part, keys) for title, keys in columns.items()}
    floor = part["after"]["gap"]["null"]
    return Measured(method, needs_pairs, numbers, floor, cpu_seconds)


def methods_table(measured: Sequence[Measured]) -> Table:
    """One line a method, each number with its 95 % interval."""
    titles = list(dict.fromkeys(title for one in measured for title in one.numbers))
    body = [
        [
            one.method + ("*" if one.needs_pairs else ""),
            *(_cell(title, one.numbers.get(title)) for title in titles),
            f"{one.numbers['gap ↓'][0] / one.floor:.2f}",
            f"{one.cpu_seconds:.2g}",
        ]
        for one in measured
    ]
    return Table(["method", *titles, "gap / floor", "CPU s"], body)


def methods_figure(measured: Sequence[Measured]) -> bytes:
    """PNG: preservation of neighbours against coverage of the images, one point a method."""
    figure = Figure(figsize=(7.2, 4.6), layout="constrained")
    axes = figure.subplots()
    for one in measured:
        x, y = one.numbers["M_X"], one.numbers["Ω ↑"]
        color = SERIES[1] if one.needs_pairs else SERIES[0]
        axes.errorbar(
            x[0], y[0], xerr=_whisker(x), yerr=_whisker(y), fmt="o", ms=5, lw=0.8, color=color
        )
    style_panel(axes)
    axes.margins(x=0.12, y=0.08)
    _label(axes, {one.method: (one.numbers["M_X"][0], one.numbers["Ω ↑"][0]) for one in measured})
    axes.set_xlabel("coverage of the images, M_X (1: as mixed as chance)", color=MUTED)
    axes.set_ylabel("neighbours of the texts kept, Ω", color=MUTED)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, metadata={"Software": None})
    return buffer.getvalue()


def _label(axes: Axes, points: dict[str, tuple[float, float]]) -> None:
    """Names beside their points, each at the first of some places that overlaps no other name."""
    figure = axes.figure
    figure.canvas.draw()  # fixes the layout, so that places are in pixels
    taken = [
        Bbox.from_bounds(x - 4, y - 4, 8, 8)
        for x, y in axes.transData.transform(list(points.values()))
    ]
    for name, point in points.items():
        for place in LABEL_PLACES:
            side = "left" if place[0] > 0 else "right"
            text = axes.annotate(
                name, point, place, textcoords="offset points", fontsize=8, color=INK, ha=side
            )
            box = text.get_window_extent()
            if place == LABEL_PLACES[-1] or not any(box.overlaps(other) for other in taken):
                taken.append(box)
                break
            text.remove()


def write_methods(measured: Sequence[Measured], directory: Path) -> str:
    """Write `methods.md`, `methods.json` and `methods.png`; returns the table."""
    table = markdown(methods_table(measured))
    write_bytes(directory / "methods.md", table.encode())
    content = json.dumps([asdict(one) for one in measured], indent=1, ensure_ascii=False)
    write_bytes(directory / "methods.json", content.encode() + b"\n")
    write_bytes(directory / "methods.png", methods_figure(measured))
    return table


def _number(
    part: dict[str, Any], keys: tuple[str, ...]
) -> tuple[float, float | None, float | None]:
    found = part
    for key in keys:
        found = found[key]
    return found["value"], found["low"], found["high"]


def _cell(title: str, number: tuple[float, float | None, float | None] | None) -> str:
    if number is None:
        return ""
    factor, digits = (100 if title == PERCENT else 1), DIGITS.get(title, 2)
    value, *bounds = (None if n is None else f"{factor * n:.{digits}f}" for n in number)
    return str(value) if None in bounds else f"{value} [{', '.join(map(str, bounds))}]"


def _whisker(number: tuple[float, float | None, float | None]) -> list[list[float]] | None:
    value, low, high = number
    if low is None or high is None:
        return None
    return [[max(0.0, value - low)], [max(0.0, high - value)]]
