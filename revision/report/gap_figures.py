"""Figures of the geometry report, each as the bytes of a PNG, from its JSON object alone.

One colour per cloud in all of them; hollow or pale is before the map, full is after it. Thin grey
is what chance gives: the sampling floor, random subspaces, an isotropic residual.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from revision.report.figures import INK, MUTED, png, style_panel
from revision.report.projection import CLOUD_COLOURS as CLOUDS
from revision.report.projection import CLOUD_NAMES as NAMES
from revision.report.projection import Rows, gap_plane, joint_plane, scatter, thinned

Json = Mapping[str, Any]
STAGES = {"before": CLOUDS["text"], "after": CLOUDS["mapped"]}
LINES: dict[str, dict[str, Any]] = {  # "after" lies under "before", and is seen around it
    "before": {"color": STAGES["before"], "lw": 1.4},
    "after": {"color": STAGES["after"], "lw": 4.0, "alpha": 0.55},
}
SPLITS = {"in_sample": "in-sample", "held_out": "held-out"}
SMALLEST_BAR = 1e-6


def gap_figures(report: Json, clouds: Mapping[str, Rows]) -> dict[str, bytes]:
    """Every figure that the report has numbers for, by name; `clouds` are the rows to draw."""
    drawn: dict[str, Callable[[Json], bytes]] = {
        "spectra": _spectra,
        "cosines": _cosines,
        "subspaces": _subspaces,
        "mixing": _mixing,
    }
    if any(comparison["paired"] for _, _, comparison in _comparisons(report)):
        drawn["energy"] = _energy
    few = {name: thinned(rows) for name, rows in clouds.items()}
    pictures = {"gap": _gap(report, few), "projection": _projection(few)}
    return pictures | {name: draw(report) for name, draw in drawn.items()}


def _gap(report: Json, clouds: Mapping[str, Rows]) -> bytes:
    """Before and after on the plane through the gap, and the gaps as bars."""
    stages = _stages(clouds)
    figure = Figure(figsize=(4.0 * len(stages) + 4.2, 3.7), layout="constrained")
    *panels, bars = figure.subplots(1, len(stages) + 1)
    plane = gap_plane(clouds["image"], clouds["text"])
    for panel, (title, shown) in zip(panels, stages.items(), strict=True):
        panel.sharex(panels[0])
        panel.sharey(panels[0])
        scatter(panel, plane, shown)
        _finish(panel, title, "along the mean gap", "best", dots=True)
    panels[0].set_ylabel("widest direction across it", fontsize=8.5, color=MUTED)
    _draw_gaps(bars, report)
    return png(figure)


def _projection(clouds: Mapping[str, Rows]) -> bytes:
    """The same rows on the leading principal directions of all of them."""
    stages = _stages(clouds)
    figure = Figure(figsize=(4.4 * len(stages) + 0.4, 3.7), layout="constrained")
    panels = figure.subplots(1, len(stages), sharex=True, sharey=True, squeeze=False)[0]
    plane = joint_plane(clouds)
    for panel, (title, shown) in zip(panels, stages.items(), strict=True):
        scatter(panel, plane, shown)
        _finish(panel, title, "first joint principal direction", "best", dots=True)
    panels[0].set_ylabel("second", fontsize=8.5, color=MUTED)
    return png(figure)


def _stages(clouds: Mapping[str, Rows]) -> dict[str, dict[str, Rows]]:
    """What the panels before and after show; one panel without a map."""
    stages = {"before" if "mapped" in clouds else "": ("image", "text")}
    if "mapped" in clouds:
        stages["after"] = ("moved" if "moved" in clouds else "image", "mapped")
    return {title: {name: clouds[name] for name in names} for title, names in stages.items()}


def _draw_gaps(panel: Axes, report: Json) -> None:
    """A bar for each gap with its interval, and the floor across it."""
    rows = list(_comparisons(report))
    shown = [max(c["gap"][key], SMALLEST_BAR) for *_, c in rows for key in ("value", "null")]
    for place, (_, stage, comparison) in enumerate(rows):
        gap = comparison["gap"]
        panel.barh(place, max(gap["value"], SMALLEST_BAR), height=0.6, color=STAGES[stage])
        _whisker(panel, gap, place)
        panel.plot(
            [gap["null"]] * 2, [place - 0.42, place + 0.42], color=INK, lw=1.6, ls=(0, (2, 1))
        )
        panel.text(1.01, place, f"{gap['value']:.2g}", transform=panel.get_yaxis_transform(),
                   va="center", fontsize=8.5, color=INK)  # fmt: skip
    panel.set_yticks(range(len(rows)), _names(rows))
    panel.set_ylim(len(rows) + 0.1, -0.6)
    panel.set_xscale("log")
    panel.set_xlim(min(shown) / 2, max(shown) * 1.5)
    panel.plot([], [], color=INK, lw=1.6, ls=(0, (2, 1)), label="sampling floor")
    _finish(panel, "", "distance of the centroids", legend="lower right")
    panel.grid(axis="y", visible=False)


def _spectra(report: Json) -> bytes:
    def draw(panel: Axes, split: Json) -> None:
        for name, cloud in split["clouds"].items():
            values = np.array(cloud["spectrum"])
            ranks = np.arange(1, len(values) + 1)
            shown = values > 1e-9 * values[0]
            label = f"{NAMES[name]}, α = {cloud['exponent']['value']:.2f}"
            panel.plot(ranks[shown], values[shown], color=CLOUDS[name], lw=1.7, label=label)
            slope, fitted = cloud["exponent"]["value"], ranks[: cloud["fitted_ranks"]]
            level = np.log(values[: len(fitted)]).mean() + slope * np.log(fitted).mean()
            line: dict[str, Any] = {"lw": 0.9, "ls": "--", "alpha": 0.7}
            panel.plot(fitted, np.exp(level) * fitted**-slope, color=CLOUDS[name], **line)
        panel.set_xscale("log")
        panel.set_yscale("log")

    return _by_split(report, draw, "rank k", "eigenvalue of the covariance", "lower left")


def _cosines(report: Json) -> bytes:
    def draw(panel: Axes, split: Json) -> None:
        for name, cloud in split["clouds"].items():
            grid, density = (np.array(v) for v in cloud["cosine_density"])
            panel.plot(grid, density, color=CLOUDS[name], lw=1.7, label=NAMES[name])
            panel.fill_between(grid, density, color=CLOUDS[name], alpha=0.12, lw=0)
        panel.set_xlim(*_support(split))
        panel.set_ylim(bottom=0)

    return _by_split(report, draw, "cosine of two rows of one cloud", "density", "upper right")


def _support(split: Json) -> tuple[float, float]:
    """Where any density is more than a hundredth of its height."""
    edges = []
    for cloud in split["clouds"].values():
        grid, density = (np.array(v) for v in cloud["cosine_density"])
        edges += list(grid[density > 0.01 * density.max()][[0, -1]])
    return min(edges), max(edges)


def _subspaces(report: Json) -> bytes:
    split = _trusted(report)
    figure = Figure(figsize=(9.4, 3.3), layout="constrained")
    curve, angles = figure.subplots(1, 2)
    for stage in ("after", "before"):
        if comparison := split[stage]:
            sizes, shares = ([o[k] for o in comparison["overlaps"]] for k in ("size", "value"))
            curve.plot(sizes, shares, marker="o", ms=4, label=stage, **LINES[stage])
            degrees = comparison["angles"][::-1]
            angles.plot(range(1, len(degrees) + 1), degrees, label=stage, **LINES[stage])
    null = [(o["size"], o["null"]) for o in split["before"]["overlaps"]]
    curve.plot(*zip(*null, strict=True), color=MUTED, lw=1, ls="--", label="random: q / d")
    curve.set_xscale("log", base=2)
    curve.set_ylim(0, 1.02)
    angles.set_ylim(0, 92)
    _finish(curve, "O_q, shared part of the leading subspaces", "q", "lower right")
    _finish(angles, "principal angles", "angle number, smallest first", "lower right")
    angles.set_ylabel("degrees", fontsize=8.5, color=MUTED)
    return png(figure)


def _energy(report: Json) -> bytes:
    split = _trusted(report)
    figure = Figure(figsize=(5.6, 3.3), layout="constrained")
    panel = figure.subplots()
    for stage in ("after", "before"):
        paired = (split[stage] or {}).get("paired")
        if paired:
            energy = paired["energy"]
            panel.plot(range(1, len(energy) + 1), energy, label=stage, **LINES[stage])
            ends = (1, len(energy))
    panel.plot(ends, (1 / ends[1], 1), color=MUTED, lw=1, ls="--", label="isotropic: K / d")
    panel.set_ylim(0, 1.02)
    _finish(panel, "", "leading directions K of the pair residual", "lower right")
    panel.set_ylabel("E(K), share of its energy", fontsize=8.5, color=MUTED)
    return png(figure)


def _mixing(report: Json) -> bytes:
    """Three groups of bars: mixing rate, mixing around texts, mixing around images."""
    titles = {
        "mixing_rate": "mixing rate",
        "m_text": "M around texts",
        "m_image": "M around images",
    }
    rows = list(_comparisons(report))
    figure = Figure(figsize=(9.4, 0.9 + 0.42 * len(rows)), layout="constrained")
    panels = figure.subplots(1, 3, sharey=True)
    for panel, (key, title) in zip(panels, titles.items(), strict=True):
        for place, (_, stage, comparison) in enumerate(rows):
            number = comparison[key]
            panel.barh(place, number["value"], height=0.6, color=STAGES[stage])
            _whisker(panel, number, place)
            mark: dict[str, Any] = {"color": INK, "lw": 1.6, "ls": (0, (2, 1))}
            panel.plot([number["null"]] * 2, [place - 0.42, place + 0.42], **mark)
        panel.set_xlim(0, 1.08)
        _finish(panel, title, "")
        panel.grid(axis="y", visible=False)
    panels[0].set_yticks(range(len(rows)), _names(rows))
    panels[0].set_ylim(len(rows) - 0.4, -0.6)
    return png(figure)


def _comparisons(report: Json) -> Iterator[tuple[str, str, Json]]:
    """(split, stage, comparison) of everything that was measured, in reading order."""
    for split in SPLITS:
        for stage in STAGES:
            if report[split] and report[split][stage]:
                yield split, stage, report[split][stage]


def _names(rows: Sequence[tuple[str, str, Json]]) -> list[str]:
    """How the bars are called; without a map there is no before and after."""
    mapped = any(stage == "after" for _, stage, _ in rows)
    return [SPLITS[split] + (f", {stage}" if mapped else "") for split, stage, _ in rows]


def _trusted(report: Json) -> Json:
    split: Json = report["held_out"] or report["in_sample"]
    return split


def _by_split(
    report: Json, draw: Callable[[Axes, Json], None], xlabel: str, ylabel: str, legend: str
) -> bytes:
    """One panel for each split that was measured."""
    splits = [name for name in SPLITS if report[name]]
    figure = Figure(figsize=(4.7 * len(splits) + 0.3, 3.3), layout="constrained")
    panels = figure.subplots(1, len(splits), squeeze=False)[0]
    for panel, name in zip(panels, splits, strict=True):
        draw(panel, report[name])
        _finish(panel, SPLITS[name] if len(splits) > 1 else "", xlabel, legend)
        panel.set_ylabel(ylabel, fontsize=8.5, color=MUTED)
    return png(figure)


def _whisker(panel: Axes, number: Json, place: float) -> None:
    if number.get("low") is None:
        return
    value = max(number["value"], SMALLEST_BAR)
    reach = [[max(0.0, value - number["low"])], [max(0.0, number["high"] - value)]]
    panel.errorbar(value, place, xerr=reach, color=INK, lw=1.2, capsize=2.5, zorder=3)


def _finish(
    panel: Axes, title: str, xlabel: str, legend: Any = None, *, dots: bool = False
) -> None:
    style_panel(panel)
    panel.set_title(title, fontsize=9.5, color=INK, loc="left")
    panel.set_xlabel(xlabel, fontsize=8.5, color=MUTED)
    if legend:
        panel.legend(loc=legend, frameon=False, fontsize=8, markerscale=3 if dots else 1)
