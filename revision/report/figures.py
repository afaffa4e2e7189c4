"""Figures of the report and the study, each as the bytes of a PNG.

They are drawn on matplotlib's object interface, so nothing depends on a display or on the state
of `pyplot`. A setting has one colour in all of them.
"""

import io
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from revision.evaluation.results import BOUNDS, Row, Spread, over_seeds
from revision.report.labels import CHANCE, base_lines, condition, metric_of, metrics_in

INK, MUTED, GRID, ALARM = "#1f2733", "#6b7686", "#e4e8ee", "#c43d5b"
SERIES = ("#2f6fde", "#e07a2f", "#2a9d76", "#a44fc4", "#8a7a1f", "#4a5568")
SETTINGS = {
    "realign": "#2f6fde",
    "none": "#e07a2f",
    "mean_shift": "#2a9d76",
    "paired": "#a44fc4",
    "blind": "#7a8594",
}
DPI = 170
SMOOTHING_STEPS = 10

Line = tuple[str, str, str]
Spreads = dict[tuple[str, str, str, str], Spread]
Points = Sequence[tuple[int, float]]


def png(figure: Figure) -> bytes:
    """The figure's PNG, the same bytes for the same figure on the same machine."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI, facecolor="white", metadata={"Software": None})
    return buffer.getvalue()


def colours(names: Sequence[str]) -> dict[str, str]:
    """A colour for each name: its own where it has one, otherwise the next that is free."""
    taken = {SETTINGS[name] for name in names if name in SETTINGS}
    free = [colour for colour in SERIES if colour not in taken] or list(SERIES)
    others = [name for name in dict.fromkeys(names) if name not in SETTINGS]
    return {**SETTINGS, **{name: free[i % len(free)] for i, name in enumerate(others)}}


def score_figure(rows: Sequence[Row], metrics: Sequence[str] | None = None) -> bytes:
    """One panel per metric, one line per stage and setting.

    Shares are bars from zero, losses are points. The whisker is the standard deviation over
    seeds, or the bootstrap interval of a single one; the hollow circle is the same model with its
    visual input zeroed (blind), the cross with another image's; the dashed line is chance.

    Raises ValueError when no metric or no setting has a row.
    """
    chosen = metrics_in(rows) if metrics is None else list(metrics)
    lines = base_lines(rows)
    if not chosen or not lines:
        raise ValueError(f"{len(chosen)} metrics and {len(lines)} settings to draw, 1 is needed")
    size = (1.5 + 2.45 * len(chosen), 1.1 + 0.5 * len(lines))
    figure = Figure(figsize=size, layout="constrained")
    panels = list(figure.subplots(1, len(chosen), sharey=True, squeeze=False)[0])
    for panel, metric in zip(panels, chosen, strict=True):
        _draw_scores(panel, over_seeds(rows), lines, metric)
    several = len({split for *_, split in lines}) > 1
    names = [
        f"{setting}\n{stage}{', ' + split if several else ''}" for setting, stage, split in lines
    ]
    panels[0].set_yticks(range(len(lines)), names)
    panels[0].set_ylim(len(lines) - 0.45, -0.55)
    _add_legend(figure, panels)
    return png(figure)


def _draw_scores(panel: Axes, spreads: Spreads, lines: Sequence[Line], metric: str) -> None:
    shown = metric_of(metric)
    scale = 100.0 if shown.percent else 1.0
    palette = colours([setting for setting, *_ in lines])
    style_panel(panel)
    for place, line in enumerate(lines):
        if (*line, metric) in spreads:
            _draw_score(panel, spreads, (*line, metric), place, palette[line[0]], scale)
    panel.set_title(shown.title, fontsize=9.5, color=INK, loc="left")
    panel.grid(axis="y", visible=False)
    left, right = panel.get_xlim()
    panel.set_xlim(0 if shown.percent else left - 0.08 * (right - left))
    panel.set_xlim(right=right + 0.26 * (right - panel.get_xlim()[0]))


def _draw_score(
    panel: Axes,
    spreads: Spreads,
    key: tuple[str, str, str, str],
    place: int,
    colour: str,
    scale: float,
) -> None:
    """One line of a panel: value, whisker, number at the edge, and what to compare it with."""
    setting, stage, split, metric = key
    shown = metric_of(metric)
    mean, below, above = (scale * number for number in _whisker(spreads, key))
    whisker: dict[str, Any] = {"xerr": [[below], [above]], "lw": 1.2, "capsize": 2.5, "zorder": 3}
    if shown.percent:
        panel.barh(place, mean, height=0.56, color=colour, alpha=0.88)
        panel.errorbar(mean, place, color=INK, **whisker)
    else:
        panel.errorbar(mean, place, color=colour, marker="o", ms=7.5, ecolor=INK, **whisker)
    edge = panel.get_yaxis_transform()
    number = shown.show(mean / scale)
    panel.text(0.99, place, number, transform=edge, ha="right", va="center", fontsize=8.5)
    for visual, shift, style in (
        ("zero", -0.17, {"marker": "o", "mfc": "white", "label": "blind: visual input zeroed"}),
        ("shuffled", 0.17, {"marker": "x", "label": "another image's feature"}),
    ):
        other = spreads.get((condition(setting, visual), stage, split, metric))
        if other:
            mark: dict[str, Any] = {"ls": "", "mec": INK, "ms": 5.2, "zorder": 4, **style}
            panel.plot(scale * other.mean, place + shift, **mark)
    chance = spreads.get((CHANCE, stage, split, metric))
    if chance:
        at = (scale * chance.mean, scale * chance.mean)
        dashes: dict[str, Any] = {"ls": (0, (3, 2)), "lw": 1.5, "color": ALARM, "zorder": 5}
        panel.plot(at, (place - 0.42, place + 0.42), label="chance", **dashes)


def _whisker(spreads: Spreads, key: tuple[str, str, str, str]) -> tuple[float, float, float]:
    """Mean and the whisker's length below and above it."""
    spread = spreads[key]
    if spread.std is not None:
        return spread.mean, spread.std, spread.std
    low, high = (spreads.get((*key[:3], key[3] + bound), spread).mean for bound in BOUNDS)
    return spread.mean, max(0.0, spread.mean - low), max(0.0, high - spread.mean)


def _add_legend(figure: Figure, panels: Sequence[Axes]) -> None:
    found: dict[str, Any] = {}
    for panel in panels:
        handles, names = panel.get_legend_handles_labels()
        found.update(zip(names, handles, strict=True))
    if found:
        place: dict[str, Any] = {"loc": "outside lower center", "ncols": len(found)}
        figure.legend(found.values(), found.keys(), frameon=False, fontsize=8.5, **place)


def loss_figure(panels: Mapping[str, Mapping[str, Mapping[str, Points]]]) -> bytes:
    """Training loss (smoothed over the raw curve) and held-out loss of runs side by side.

    `panels` maps a panel's title to its runs, a run's name to its curves as `read_metrics` gives
    them: `train/loss` and `val/loss`, each (step, value) pairs.
    """
    figure = Figure(figsize=(max(5.6, 4.4 * len(panels)), 3.0), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for panel, (title, runs) in zip(axes, panels.items(), strict=True):
        palette = colours(list(runs))
        for run, curves in runs.items():
            _draw_curves(panel, run, curves, palette[run])
        style_panel(panel)
        panel.set_title(title, fontsize=9.5, color=INK, loc="left")
        panel.set_xlabel("optimizer step", fontsize=8.5, color=MUTED)
        panel.set_ylabel("loss, nats per target token", fontsize=8.5, color=MUTED)
        panel.legend(frameon=False, fontsize=8)
    return png(figure)


def _draw_curves(panel: Axes, run: str, curves: Mapping[str, Points], colour: str) -> None:
    train, validation = curves.get("train/loss", ()), curves.get("val/loss", ())
    panel.plot(*_xy(train), color=colour, lw=0.8, alpha=0.35)
    panel.plot(*_xy(_smoothed(train)), color=colour, lw=1.8, label=f"{run}, training")
    if validation:
        style: dict[str, Any] = {"marker": "o", "ms": 4.5, "mfc": "white", "ls": "--", "lw": 1.0}
        panel.plot(*_xy(validation), color=colour, label=f"{run}, held out", **style)


def _xy(points: Points) -> tuple[list[int], list[float]]:
    return [x for x, _ in points], [y for _, y in points]


def _smoothed(points: Points) -> Points:
    """Mean of the last few values; the raw curve stays visible behind it."""
    values = [y for _, y in points]
    windows = [values[max(0, i - SMOOTHING_STEPS + 1) : i + 1] for i in range(len(values))]
    return [(x, sum(part) / len(part)) for (x, _), part in zip(points, windows, strict=True)]


def style_panel(panel: Axes) -> None:
    """Grid lines behind, no box, no ticks."""
    panel.grid(color=GRID, lw=0.8)
    panel.set_axisbelow(True)
    panel.tick_params(length=0, labelsize=8.5, labelcolor=INK)
    for side in ("top", "right", "left"):
        panel.spines[side].set_visible(False)
    panel.spines["bottom"].set_color(GRID)
