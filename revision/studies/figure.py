"""The figure of a gap study: panels of numbers over one label, a line per value of another.

    figure: {x: rows, line: test rows, panels: [[gap, floor], [phi]], log: [rows, gap]}

`x` and `line` are labels of the study (`line` may be null), `panels` lists the numbers drawn in
each panel. `log` names what is drawn on a logarithmic axis: the label, and the first number of a
panel. A label whose values are no numbers is spaced evenly in the order of the jobs. Whiskers are
one standard deviation over trials; colours tell lines apart, or numbers where there is one line.
"""

import io
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from revision.files import write_bytes
from revision.report.figures import INK, MUTED, SERIES, style_panel
from revision.report.tables import markdown
from revision.studies.table import Group, Reading, groups_of, study_csv, study_table

DPI = 110  # a figure of three panels stays below 100 kB
STYLES = ("-", "--", ":", "-.")
MARKS = ("o", "s", "^", "D", "v")


def study_figure(readings: Sequence[Reading]) -> bytes:
    """The PNG that the card of the study asks for."""
    groups, wanted = groups_of(readings), readings[0].figure
    panels = wanted["panels"]
    figure = Figure(figsize=(0.6 + 3.7 * len(panels), 3.7), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for panel, numbers in zip(axes, panels, strict=True):
        _draw(panel, groups, wanted, numbers)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
    return buffer.getvalue()


def write_study(readings: Sequence[Reading], directory: Path, name: str) -> str:
    """Write `<name>.md`, `.csv`, `.json` (all readings) and `.png`; returns the table."""
    table = markdown(study_table(readings))
    write_bytes(directory / f"{name}.md", table.encode())
    write_bytes(directory / f"{name}.csv", study_csv(readings).encode())
    content = json.dumps([asdict(reading) for reading in readings], indent=1)
    write_bytes(directory / f"{name}.json", content.encode() + b"\n")
    if readings[0].figure.get("x"):
        write_bytes(directory / f"{name}.png", study_figure(readings))
    return table


def _draw(panel: Axes, groups: list[Group], wanted: dict[str, Any], numbers: list[str]) -> None:
    x, line, log = wanted["x"], wanted["line"], wanted["log"]
    places = _places([group.labels[x] for group in groups])
    lines = list(dict.fromkeys(group.labels[line] if line else "" for group in groups))
    for i, value in enumerate(lines):
        members = [g for g in groups if not line or g.labels[line] == value]
        for j, number in enumerate(numbers):
            named = [number] if len(numbers) > 1 or not line else []
            _draw_line(
                panel,
                [places[group.labels[x]] for group in members],
                [(group.mean(number), group.std(number) or 0.0) for group in members],
                label=", ".join([*named, str(value)] if line else named),
                color=SERIES[(i if line else j) % len(SERIES)],
                ls=STYLES[j % len(STYLES)],
                marker=MARKS[j % len(MARKS)],
            )
    style_panel(panel)
    _scale(panel, places, x_log=x in log, y_log=numbers[0] in log)
    panel.set_xlabel(x, fontsize=8.5, color=MUTED)
    panel.set_title(", ".join(numbers), fontsize=9, color=INK, loc="left")
    below: dict[str, Any] = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.2)}
    panel.legend(frameon=False, fontsize=7.5, title=line, title_fontsize=7.5, ncols=2, **below)


def _draw_line(
    panel: Axes, at: list[float], values: list[tuple[float | None, float]], **style: Any
) -> None:
    known = [(x, mean, std) for x, (mean, std) in zip(at, values, strict=True) if mean is not None]
    if known:
        x, mean, std = zip(*known, strict=True)
        panel.errorbar(x, mean, yerr=std, ms=4, lw=1.4, capsize=2, **style)


def _scale(panel: Axes, places: dict[Any, float], *, x_log: bool, y_log: bool) -> None:
    if not all(isinstance(value, (int, float)) for value in places):
        panel.set_xticks(list(places.values()), [str(v).replace("_", "\n") for v in places])
    elif x_log:
        panel.set_xscale("log")
    if y_log:
        panel.set_yscale("log")


def _places(values: list[Any]) -> dict[Any, float]:
    distinct = list(dict.fromkeys(values))
    if all(isinstance(value, (int, float)) for value in distinct):
        return {value: float(value) for value in distinct}
    return {value: float(place) for place, value in enumerate(distinct)}
