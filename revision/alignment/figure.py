"""Picture of the gap: both modalities before and after, seen on a plane through the mean gap.

The plane is spanned by the mean gap g = mean(x) - mean(y) and by the leading principal direction of
all rows orthogonal to it, so the distance of the clouds along the horizontal axis is the gap
itself. The same plane serves both panels. Drawn without pyplot: no display and no global state.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from revision.files import replacing

Rows = Float[np.ndarray, "_ dim"]  # the clouds differ in their number of rows
COLORS = {"image": "#2b6cb0", "text": "#c05621", "aligned text": "#2f855a"}
SMALLEST_BAR = 1e-6


def draw_gap(
    path: Path, *, image: Rows, text: Rows, aligned: Rows, gaps: Mapping[str, float], title: str
) -> None:
    """Write a PNG: image and text, image and aligned text, and a bar for each of `gaps`."""
    plane = gap_plane(image, text)
    figure = Figure(figsize=(13, 4.2), layout="constrained")
    before, after, bars = figure.subplots(1, 3, width_ratios=(3, 3, 2))
    after.sharex(before)
    after.sharey(before)
    _scatter(before, plane, {"image": image, "text": text})
    _scatter(after, plane, {"image": image, "aligned text": aligned})
    before.set_title("before")
    after.set_title("after")
    _draw_bars(bars, gaps)
    figure.suptitle(title)
    with replacing(path) as file:
        figure.savefig(file, format="png", dpi=110)


def gap_plane(image: Rows, text: Rows) -> Float[np.ndarray, "dim 2"]:
    """Orthonormal axes: along the mean gap, and along the widest direction orthogonal to it."""
    gap = image.mean(0) - text.mean(0)
    length = np.linalg.norm(gap)
    rows = np.concatenate([image - image.mean(0), text - text.mean(0)])
    covariance = rows.T @ rows / len(rows)
    if length == 0:
        return _leading(covariance, 2)
    first = gap / length
    across = np.eye(len(first)) - np.outer(first, first)
    return np.column_stack([first, _leading(across @ covariance @ across, 1)])


def _leading(covariance: np.ndarray, count: int) -> np.ndarray:
    vectors = np.linalg.eigh(covariance)[1][:, ::-1][:, :count]
    signs = np.sign(vectors[np.abs(vectors).argmax(0), np.arange(count)])
    return vectors * signs


def _scatter(axes: Axes, plane: np.ndarray, clouds: Mapping[str, Rows]) -> None:
    for name, rows in clouds.items():
        points = rows @ plane
        axes.scatter(
            points[:, 0],
            points[:, 1],
            s=4,
            alpha=0.35,
            linewidths=0,
            color=COLORS[name],
            label=name,
        )
        axes.plot(*points.mean(0), "P", color=COLORS[name], markeredgecolor="white", markersize=11)
    axes.set_xlabel("along the mean gap")
    axes.set_ylabel("leading direction across it")
    axes.legend(loc="best", markerscale=3, fontsize=8)


def _draw_bars(axes: Axes, gaps: Mapping[str, float]) -> None:
    heights = [max(value, SMALLEST_BAR) for value in gaps.values()]
    drawn = axes.bar(list(gaps), heights, color="#718096")
    axes.bar_label(drawn, [f"{value:.2g}" for value in gaps.values()], fontsize=8)
    axes.set_yscale("log")
    axes.set_ylim(min(heights) / 3, max(heights) * 3)
    axes.set_ylabel("distance of the means")
    axes.tick_params(axis="x", labelrotation=20)
