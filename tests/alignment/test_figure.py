import numpy as np
from PIL import Image

from revision.alignment.figure import draw_gap, gap_plane
from tests.feature_sets import cloud


def test_plane_is_orthonormal_and_shows_the_gap_at_full_length(text, image):
    plane = gap_plane(image, text)
    assert np.abs(plane.T @ plane - np.eye(2)).max() < 1e-6
    seen = (image @ plane).mean(0) - (text @ plane).mean(0)
    length = np.linalg.norm(image.mean(0) - text.mean(0))
    assert np.allclose(seen, [length, 0], atol=1e-5)


def test_second_axis_is_the_widest_direction_across_the_gap():
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((400, 6)) * [0.1, 0.1, 3.0, 0.1, 0.1, 0.1]
    plane = gap_plane(rows + 5 * np.eye(6)[0], rows)
    assert abs(plane[2, 1]) > 0.99


def test_equal_clouds_still_have_a_plane(text):
    plane = gap_plane(text, text)
    assert np.abs(plane.T @ plane - np.eye(2)).max() < 1e-6


def test_a_png_is_written(tmp_path, text, image):
    path = tmp_path / "gap.png"
    gaps = {"raw": 0.7, "in-sample": 0.0}
    draw_gap(path, image=image, text=text, aligned=cloud(9, 50), gaps=gaps, title="t")
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        assert picture.width > 800
    assert [p.name for p in tmp_path.iterdir()] == ["gap.png"]
