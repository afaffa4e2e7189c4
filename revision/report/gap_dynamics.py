"""The curves of `stage.track`: eight panels of the gap in its fixed frame, over training steps.

A solid line is measured, a dotted one of the same colour is what a null model gives in its place;
at the dashed upright the frame was frozen. Names are those of `revision.geometry.dynamics`.
"""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter
from PIL import Image

from revision.files import replacing
from revision.report.figures import GRID, INK, MUTED, SERIES

DPI = 110
COLOURS = 128  # a third of the bytes, and no difference to see
Curves = Mapping[str, Sequence[tuple[int, float]]]


@dataclass(frozen=True)
class Panel:
    """`lines` and `nulls` are (metric, label); a null has the colour of the line at its place."""

    title: str
    lines: tuple[tuple[str, str], ...]
    nulls: tuple[tuple[str, str] | None, ...] = ()
    is_log: bool = False


PANELS = (
    Panel(
        "mean gap and its parts",
        (("mean_gap", "|m|"), ("beta", "|β|, in U"), ("gamma", "|γ|, in V")),
    ),
    Panel(
        "motion of γ",
        (("drift", "drift since the freeze"), ("stability", "stability"), ("update", "update")),
    ),
    Panel(
        "gradients outside the frame",
        (
            ("leakage", "leakage out of U"),
            ("sin_theta", "sin θ(U_t, U)"),
            ("leakage_now", "leakage out of U_t"),
            ("sin_theta_rms", "sin θ, rms"),
        ),
        (("leakage_null", "random"), None, ("leakage_rows", "the rows themselves")),
    ),
    Panel(
        "κ_eff of the residuals",
        (("kappa_u", "in U"), ("kappa_v", "in V")),
        (("kappa_u_null", "isotropic"), ("kappa_v_null", "isotropic")),
        is_log=True,
    ),
    Panel(
        "residuals against gradients",
        (
            ("rho_eig", "ρ_eig"),
            ("rho_eig_log", "ρ_eig, log-log"),
            ("diagonal_correlation", "diag."),
        ),
        (("rho_eig_null", "broken stick"), ("rho_eig_log_null", "broken stick")),
    ),
    Panel(
        "coupling of V to U",
        (("coupling", "‖L‖"), ("r2_in", "R², in sample"), ("r2_out", "R², held out")),
        (None, ("r2_null", "independent"), ("r2_out_null", "independent")),
    ),
    Panel(
        "γ to the largest spread in V, degrees",
        (("angle", "angle"), ("angle_window", "window since the freeze")),
        (("angle_null", "random"),),
    ),
    Panel(
        "phantom drift of ReAlign's first step",
        (("phantom", "against π(μ_x)"), ("phantom_anchor", "against μ_x")),
    ),
)


def draw_gap_dynamics(path: Path, curves: Curves, *, rank: int, title: str) -> None:
    """Write a PNG of `curves`, metric name to (step, value) pairs.

    Raises ValueError when none of the panels has a curve.
    """
    if not any(name in curves for panel in PANELS for name, _ in panel.lines):
        raise ValueError(f"none of {len(curves)} curves belongs to a panel; track the run first")
    figure = Figure(figsize=(13.2, 7.0), layout="constrained")
    axes = figure.subplots(2, 4)
    freeze = next((step for step, frozen in curves.get("is_frozen", ()) if frozen), None)
    for place, panel in zip(axes.flat, PANELS, strict=True):
        _draw(place, panel, curves)
        if freeze:
            place.axvline(freeze, color=MUTED, lw=0.9, ls="--", zorder=1)
    whole = f"{title}, over optimizer steps; frame of rank {rank}"
    figure.suptitle(whole, fontsize=10.5, color=INK, x=0.01, ha="left")
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=DPI, facecolor="white")
    with replacing(path) as file, Image.open(drawn) as picture:
        picture.convert("RGB").quantize(COLOURS).save(file, format="png", optimize=True)


def _draw(axes: Axes, panel: Panel, curves: Curves) -> None:
    for index, (name, label) in enumerate(panel.lines):
        if name in curves:
            axes.plot(*_finite(curves[name]), color=SERIES[index], lw=1.5, label=label)
    for index, null in enumerate(panel.nulls):
        if null is not None and null[0] in curves:
            dots: dict[str, Any] = {"color": SERIES[index], "lw": 1.2, "ls": ":", "label": null[1]}
            axes.plot(*_finite(curves[null[0]]), **dots)
    if panel.is_log:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(ScalarFormatter())
        axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_title(panel.title, fontsize=9.5, color=INK, loc="left")
    axes.grid(color=GRID, lw=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, labelsize=8, labelcolor=INK)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(GRID)
    if axes.lines:
        place: dict[str, Any] = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.09)}
        axes.legend(fontsize=7.5, frameon=False, ncols=2, **place)


def _finite(curve: Sequence[tuple[int, float]]) -> tuple[list[int], list[float]]:
    kept = [(step, value) for step, value in curve if np.isfinite(value)]
    return [step for step, _ in kept], [value for _, value in kept]
