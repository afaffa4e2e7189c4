"""The curves of `stage.track`: eight panels of the gap in its fixed frame, over training steps.

A solid line is measured, a dotted one of the same colour is what a null model gives, and the
dashed upright is where the frame was frozen. Names are those of `revision.geometry.dynamics`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from revision.files import replacing
from revision.report.figures import GRID, INK, MUTED, SERIES

DPI = 95
Curves = Mapping[str, Sequence[tuple[int, float]]]


@dataclass(frozen=True)
class Panel:
    """`lines` are (metric, label); the same position in `nulls` belongs to the same colour."""

    title: str
    lines: tuple[tuple[str, str], ...]
    nulls: tuple[str | None, ...] = ()
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
        ("leakage_null",),
    ),
    Panel(
        "κ_eff of the residuals",
        (("kappa_u", "in U"), ("kappa_v", "in V")),
        ("kappa_u_null", "kappa_v_null"),
        is_log=True,
    ),
    Panel(
        "residuals against gradients",
        (
            ("rho_eig", "ρ_eig"),
            ("rho_eig_log", "ρ_eig, log-log"),
            ("diagonal_correlation", "diag."),
        ),
        ("rho_eig_null", "rho_eig_log_null"),
    ),
    Panel(
        "coupling of V to U",
        (("coupling", "‖L‖"), ("r2_in", "R², in sample"), ("r2_out", "R², held out")),
        (None, "r2_null"),
    ),
    Panel(
        "γ to the largest spread in V, degrees",
        (("angle", "angle"), ("angle_window", "window since the freeze")),
        ("angle_null",),
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
    figure = Figure(figsize=(13.6, 6.2), layout="constrained")
    axes = figure.subplots(2, 4, sharex=True)
    freeze = next((step for step, frozen in curves.get("is_frozen", ()) if frozen), None)
    for place, panel in zip(axes.flat, PANELS, strict=True):
        _draw(place, panel, curves)
        if freeze:
            place.axvline(freeze, color=MUTED, lw=0.9, ls="--", zorder=1)
    for place in axes[1]:
        place.set_xlabel("optimizer step", fontsize=8.5, color=MUTED)
    figure.suptitle(f"{title}; frame of rank {rank}", fontsize=10.5, color=INK, x=0.01, ha="left")
    with replacing(path) as file:
        figure.savefig(file, format="png", dpi=DPI, facecolor="white")


def _draw(axes: Axes, panel: Panel, curves: Curves) -> None:
    for index, (name, label) in enumerate(panel.lines):
        if name in curves:
            axes.plot(*_finite(curves[name]), color=SERIES[index], lw=1.5, label=label)
    for index, null in enumerate(panel.nulls):
        if null is not None and null in curves:
            axes.plot(*_finite(curves[null]), color=SERIES[index], lw=1.2, ls=":", label="null")
    if panel.is_log:
        axes.set_yscale("log")
    axes.set_title(panel.title, fontsize=9.5, color=INK, loc="left")
    axes.grid(color=GRID, lw=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, labelsize=8, labelcolor=INK)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(GRID)
    if axes.lines:
        axes.legend(frameon=False, fontsize=7.5)


def _finite(curve: Sequence[tuple[int, float]]) -> tuple[list[int], list[float]]:
    kept = [(step, value) for step, value in curve if np.isfinite(value)]
    return [step for step, _ in kept], [value for _, value in kept]
