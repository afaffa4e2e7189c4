"""Both clouds on two planes: through the mean gap, and through the leading directions of all rows.

The gap plane is spanned by the mean gap g = mean(x) - mean(y) and by the leading principal
direction of all rows orthogonal to it, so the distance of the clouds along the horizontal axis is
the gap itself. The PCA plane is spanned by the two leading principal directions of image, text and
mapped text rows pooled in equal shares: it shows what a reader of such plots expects, and hides a
gap that is small beside the clouds' spread.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float64
from matplotlib.axes import Axes

CLOUD_COLOURS = {"image": "#2f6fde", "text": "#e07a2f", "mapped": "#2a9d76", "moved": "#a44fc4"}
CLOUD_NAMES = {
    "image": "images",
    "text": "texts",
    "mapped": "mapped texts",
    "moved": "mapped images",
}
DRAWN_ROWS = 1000

Rows = Float64[np.ndarray, "_ dim"]  # the clouds differ in their number of rows
Plane = Float64[np.ndarray, "dim 2"]


def gap_plane(image: Rows, text: Rows) -> Plane:
    """Orthonormal axes: along the mean gap, and along the widest direction orthogonal to it."""
    gap = image.mean(0) - text.mean(0)
    length = np.linalg.norm(gap)
    covariance = _within(image, text)
    if length == 0:
        return _leading(covariance, 2)
    first = gap / length
    across = np.eye(len(first)) - np.outer(first, first)
    return np.column_stack([first, _leading(across @ covariance @ across, 1)])


def joint_plane(clouds: Mapping[str, Rows]) -> Plane:
    """The two leading principal directions of all clouds together, each with the same weight."""
    centre = np.mean([rows.mean(0) for rows in clouds.values()], axis=0)
    moments = [(rows - centre).T @ (rows - centre) / len(rows) for rows in clouds.values()]
    return _leading(np.mean(moments, axis=0), 2)


def thinned(rows: Rows, count: int = DRAWN_ROWS) -> Rows:
    """At most `count` rows at even distances: enough for a picture."""
    return rows[:: max(1, -(-len(rows) // count))]


def scatter(axes: Axes, plane: Plane, clouds: Mapping[str, Rows]) -> None:
    """The rows as dots and each cloud's mean as a plus sign."""
    for name, rows in clouds.items():
        points = rows @ plane
        colour, label = CLOUD_COLOURS[name], CLOUD_NAMES[name]
        dots: dict[str, Any] = {"s": 5, "alpha": 0.45, "linewidths": 0, "label": label}
        axes.scatter(*points.T, color=colour, **dots)
        axes.plot(*points.mean(0), "P", color=colour, markeredgecolor="white", markersize=11)


def _within(image: Rows, text: Rows) -> Float64[np.ndarray, "dim dim"]:
    rows = np.concatenate([image - image.mean(0), text - text.mean(0)])
    return rows.T @ rows / len(rows)


def _leading(covariance: np.ndarray, count: int) -> np.ndarray:
    vectors = np.linalg.eigh(covariance)[1][:, ::-1][:, :count]
    signs = np.sign(vectors[np.abs(vectors).argmax(0), np.arange(count)])
    return vectors * signs
