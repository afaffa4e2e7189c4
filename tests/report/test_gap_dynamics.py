"""The figure of a tracked run: it draws what is measured, and nothing that is not."""

import numpy as np
import pytest
from PIL import Image

from revision.geometry.dynamics import GapTracker
from revision.geometry.gradients import info_nce_gradients
from revision.report.gap_dynamics import PANELS, draw_gap_dynamics


@pytest.fixture(scope="module")
def curves():
    tracker, found = GapTracker(rank=3, freeze_step=2), {}
    for step in range(4):
        rows = np.random.default_rng(step).standard_normal((2, 20, 8)) + np.array(
            [[[0.5]], [[-0.5]]]
        )
        image, text = rows / np.linalg.norm(rows, axis=2, keepdims=True)
        gradients = info_nce_gradients(image, text, 10.0)
        for name, value in tracker.measure(step, image, text, gradients).items():
            found.setdefault(name, []).append((step, value))
    return found


def test_every_line_of_every_panel_is_measured(curves):
    for panel in PANELS:
        for line in (*panel.lines, *panel.nulls):
            assert line is None or line[0] in curves
        assert len(panel.nulls) <= len(panel.lines)  # a null has the colour of its line


def test_a_figure_is_written_and_is_small(curves, tmp_path):
    draw_gap_dynamics(tmp_path / "gap.png", curves, rank=3, title="a run")
    with Image.open(tmp_path / "gap.png") as picture:
        assert picture.width > picture.height > 500
    assert (tmp_path / "gap.png").stat().st_size < 150_000


def test_numbers_that_are_not_finite_are_left_out(curves, tmp_path):
    holed = {
        name: [*curve, (9, float("inf")), (10, float("nan"))] for name, curve in curves.items()
    }
    for name, data in (("one", curves), ("two", holed)):
        draw_gap_dynamics(tmp_path / name, data, rank=3, title="a run")
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_curves_of_something_else_are_refused(tmp_path):
    with pytest.raises(ValueError, match="none of 1 curves belongs to a panel"):
        draw_gap_dynamics(tmp_path / "gap.png", {"train/loss": [(1, 2.0)]}, rank=3, title="a run")
