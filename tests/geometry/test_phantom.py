import numpy as np
import pytest

from revision.geometry.phantom import matched_drift, phantom_drift
from revision.geometry.spectrum import covariance_of
from tests.geometry.clouds import pairs, unit

MEAN = np.array([0.3, -0.2, 0.1, 0.25, 0, 0, 0.1, 0.05])


def second_order_drift(mean: np.ndarray, covariance: np.ndarray) -> np.ndarray:
    """The expansion of the docstring."""
    square = float(mean @ mean)
    axis = mean / np.sqrt(square)
    pushed = covariance @ axis
    radial = 1.5 * float(axis @ pushed) - 0.5 * float(np.trace(covariance))
    return (radial * axis - pushed) / square


def expansion_error(rows: np.ndarray) -> float:
    found = phantom_drift(rows).drift
    error = second_order_drift(rows.mean(0), covariance_of(rows)) - found
    return float(np.linalg.norm(error) / np.linalg.norm(found))


def around(mean: np.ndarray, share: float, *, isotropic: bool = False) -> np.ndarray:
    """Antithetic Gaussian rows with tr S = share * |mean|^2, so their mean is exact."""
    half = np.random.default_rng(0).standard_normal((20_000, len(mean)))
    if not isotropic:
        half *= np.arange(1, len(mean) + 1) ** -0.7
    half *= np.sqrt(share * (mean @ mean) / (half**2).sum(1).mean())
    return mean + np.concatenate([half, -half])


def test_two_points_of_the_plane_drift_as_computed_by_hand():
    rows = np.array([[1.0, 0.6], [1.0, -0.6]])
    found = phantom_drift(rows)
    assert found.drift == pytest.approx([1 / np.sqrt(1.36) - 1, 0])
    expansion = second_order_drift(rows.mean(0), covariance_of(rows))
    assert expansion == pytest.approx([-0.18, 0])
    assert found.relative_spread == pytest.approx(0.6)


@pytest.mark.parametrize(("share", "error"), [(1e-3, 0.003), (1e-2, 0.015), (0.1, 0.15)])
def test_expansion_is_good_for_a_small_spread(share, error):
    assert expansion_error(around(MEAN, share)) < error


@pytest.mark.parametrize("share", [1.0, 6.0])
def test_expansion_is_useless_for_the_spread_of_real_rows(share):
    """|e| / r is 2 to 3.5 for contrastive encoders; already at 1 the error is more than half."""
    found = phantom_drift(around(MEAN, share))
    assert expansion_error(around(MEAN, share)) > 0.5
    assert found.relative_spread == pytest.approx(np.sqrt(share), rel=1e-6)


def test_an_isotropic_cloud_drifts_along_its_mean():
    expansion = second_order_drift(MEAN, 0.01 * np.eye(8))
    axis = MEAN / np.linalg.norm(MEAN)
    assert np.abs(expansion - (expansion @ axis) * axis).max() < 1e-15
    found = phantom_drift(around(MEAN, 0.5, isotropic=True)).drift
    tangential = found - (found @ axis) * axis
    assert np.linalg.norm(tangential) < 0.02 * np.linalg.norm(found)


def test_tangential_part_of_the_expansion():
    spread = np.cov(pairs(0, 50, 8)[0].T)
    axis = MEAN / np.linalg.norm(MEAN)
    across = np.eye(8) - np.outer(axis, axis)
    expected = -across @ spread @ axis / (MEAN @ MEAN)
    assert across @ second_order_drift(MEAN, spread) == pytest.approx(expected)


def test_the_anchored_drift_is_another_vector():
    text, image = pairs(1, 90)
    anchor = image.mean(0)
    placed = text - text.mean(0) + anchor
    found = phantom_drift(placed, anchor)
    mean = unit(placed).mean(0)
    assert found.drift == pytest.approx(mean - unit(anchor[None])[0])
    assert found.anchored == pytest.approx(mean - anchor)
    assert np.linalg.norm(found.drift - found.anchored) == pytest.approx(1 - np.linalg.norm(anchor))
    assert phantom_drift(placed).anchored == pytest.approx(found.anchored)


def test_a_point_does_not_drift_and_scale_does_not_matter():
    assert np.abs(phantom_drift(np.tile(MEAN, (3, 1))).drift).max() < 1e-15
    rows = around(MEAN, 2.0)
    assert phantom_drift(5 * rows).drift == pytest.approx(phantom_drift(rows).drift)


def test_rows_at_the_origin_are_refused():
    with pytest.raises(ValueError, match="1 of 3 rows lie at the origin"):
        phantom_drift(np.array([[1.0, 0], [0, 0], [0, 1]]))
    with pytest.raises(ValueError, match="mean has length 0"):
        phantom_drift(np.array([[1.0, 0], [-1, 0]]))


def test_texts_that_lie_as_the_images_do_stay_on_the_sphere():
    """The two anchors differ by 1 - |mu_x|."""
    text, image = pairs(2, 90)
    same = matched_drift(image[::-1], image)
    assert same.anchored_length == pytest.approx(0, abs=1e-12)
    assert same.length == pytest.approx(1 - np.linalg.norm(image.mean(0)), abs=1e-12)
    moved = matched_drift(text[:60], image)
    centred = text[:60] - text[:60].mean(0)
    scale = np.sqrt(image.var(0).sum() / text[:60].var(0).sum())
    expected = unit(image.mean(0) + scale * centred).mean(0) - image.mean(0)
    assert moved.anchored == pytest.approx(expected)
