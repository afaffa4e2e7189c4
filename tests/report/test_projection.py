import numpy as np

from revision.alignment.moments import unit_rows
from revision.report.projection import gap_plane, joint_plane, thinned
from tests.feature_sets import cloud

TEXT, IMAGE = unit_rows(cloud(1, 230)), unit_rows(cloud(2, 170, mean=0.35))


def test_plane_is_orthonormal_and_shows_the_gap_at_full_length():
    plane = gap_plane(IMAGE, TEXT)
    assert np.abs(plane.T @ plane - np.eye(2)).max() < 1e-9
    seen = (IMAGE @ plane).mean(0) - (TEXT @ plane).mean(0)
    length = np.linalg.norm(IMAGE.mean(0) - TEXT.mean(0))
    assert np.allclose(seen, [length, 0], atol=1e-9)


def test_second_axis_is_the_widest_direction_across_the_gap():
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((400, 6)) * [0.1, 0.1, 3.0, 0.1, 0.1, 0.1]
    plane = gap_plane(rows + 5 * np.eye(6)[0], rows)
    assert abs(plane[2, 1]) > 0.99


def test_equal_clouds_still_have_a_plane():
    plane = gap_plane(TEXT, TEXT)
    assert np.abs(plane.T @ plane - np.eye(2)).max() < 1e-9


def test_a_small_cloud_counts_as_much_as_a_large_one_in_the_joint_plane():
    many = np.repeat(TEXT, 3, axis=0)
    one, two = (joint_plane({"image": IMAGE, "text": rows}) for rows in (TEXT, many))
    assert np.abs(one - two).max() < 1e-9


def test_thinned_rows_are_few_and_span_the_set():
    rows = np.arange(2500.0)[:, None]
    found = thinned(rows, 1000)
    assert len(found) <= 1000 and found[-1] > 2400
    assert len(thinned(rows[:7], 1000)) == 7
