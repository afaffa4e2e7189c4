import numpy as np
import pytest
from scipy.stats import vonmises_fisher

from revision.geometry.decomposition import (
    concentration,
    decompose,
    random_angle,
    residual_coordinates,
    split_bias,
    spread_angle,
    subspace_shape,
)
from revision.geometry.frame import Frame, reference_frame
from revision.geometry.spectrum import covariance_of, eigenvalues, kappa_eff
from tests.geometry.clouds import pairs, rotation, unit


def framed(text: np.ndarray, image: np.ndarray, rank: int = 6) -> Frame:
    return reference_frame(covariance_of(text), covariance_of(image), rank=rank)


def test_bias_and_residual_add_up_to_every_gap():
    text, image = pairs(0, 90)
    frame, gaps = framed(text, image), image - text
    bias = split_bias(gaps.mean(0), frame)
    delta, zeta = residual_coordinates(gaps, frame)
    inside, outside = delta @ frame.basis.T, zeta @ frame.complement.T
    assert np.abs(bias.beta + bias.gamma + inside + outside - gaps).max() < 1e-12
    assert np.abs(delta.mean(0)).max() < 1e-12 and np.abs(zeta.mean(0)).max() < 1e-12
    assert np.abs((inside * outside).sum(1)).max() < 1e-12
    assert abs(bias.beta @ bias.gamma) < 1e-12
    assert bias.principal_share + bias.orthogonal_share == pytest.approx(1)


def test_energy_identity_and_coverage():
    text, image = pairs(1, 90)
    found = decompose(text, image, framed(text, image))
    residual = found.inside.energy + found.outside.energy
    energy = found.bias.principal**2 + found.bias.orthogonal**2 + residual
    assert energy == pytest.approx(float(((image - text) ** 2).sum(1).mean()), abs=1e-12)
    assert found.coverage == pytest.approx(found.inside.energy / residual)


def test_the_uncentred_second_moment_holds_the_bias():
    text, image = pairs(2, 90)
    frame, gaps = framed(text, image), image - text
    inside = frame.split(gaps)[0]
    beta = split_bias(gaps.mean(0), frame).beta
    delta = residual_coordinates(gaps, frame)[0] @ frame.basis.T
    expected = np.outer(beta, beta) + delta.T @ delta / 90
    assert np.abs(inside.T @ inside / 90 - expected).max() < 1e-12


def test_a_common_rotation_changes_nothing():
    text, image = pairs(3, 90)
    turn = rotation(2)
    one = decompose(text, image, framed(text, image))
    two = decompose(text @ turn, image @ turn, framed(text @ turn, image @ turn))
    assert np.allclose(two.bias.beta, one.bias.beta @ turn)
    assert vars(two.inside) == pytest.approx(vars(one.inside))
    assert vars(two.outside) == pytest.approx(vars(one.outside))
    assert two.spread_angle == pytest.approx(one.spread_angle)
    assert two.concentration == pytest.approx(one.concentration)


def test_a_full_frame_leaves_nothing_outside():
    text, image = pairs(4, 90)
    found = decompose(text, image, framed(text, image, rank=16))
    assert found.bias.orthogonal < 1e-12 and found.coverage == 1
    assert found.outside.dim == 0 and found.outside.kappa is None
    assert found.spread_angle is None and found.concentration is None


def test_shape_is_measured_among_the_axes_of_its_subspace():
    """A covariance of full width would have zeros for the other axes and a huge kappa."""
    text, image = pairs(5, 200)
    frame = framed(text, image)
    found = decompose(text, image, frame).outside
    ambient = frame.split(image - text - (image - text).mean(0))[1]
    values = eigenvalues(covariance_of(ambient))
    assert found.kappa == pytest.approx(kappa_eff(values[:10]))
    assert found.kappa < 100 < kappa_eff(values)
    assert found.energy == pytest.approx(values.sum())


def test_isotropic_residuals_have_the_null():
    rows = np.random.default_rng(0).standard_normal((300, 10))
    shape = subspace_shape(rows - rows.mean(0))
    assert shape.kappa == pytest.approx(shape.kappa_null, rel=0.25)
    assert subspace_shape(np.zeros((5, 3))).kappa is None


def test_planted_angle_is_found_whatever_the_sign():
    spread = np.diag([4.0, 1, 1, 1])
    direction = np.array([np.cos(0.3), np.sin(0.3), 0, 0])
    for gamma in (direction, -7 * direction):
        assert spread_angle(gamma, spread) == pytest.approx(np.degrees(0.3))
    assert spread_angle(np.zeros(4), spread) == 90


@pytest.mark.parametrize(("dim", "angle"), [(384, 87.7), (1152, 88.7)])
def test_random_directions_are_nearly_orthogonal(dim, angle):
    assert random_angle(dim) == pytest.approx(angle, abs=0.05)
    cosines = unit(np.random.default_rng(0).standard_normal((300, dim)))[:, 0]
    assert np.degrees(np.arccos(np.abs(cosines).mean())) == pytest.approx(angle, abs=0.2)


def test_concentration_is_that_of_the_maximum_likelihood_fit():
    """The closed form approximates it; measured 1.6 % apart."""
    rows = vonmises_fisher(np.eye(8)[0], 20, seed=0).rvs(300)
    assert concentration(3 * rows) == pytest.approx(vonmises_fisher.fit(rows)[1], rel=0.03)
    assert concentration(np.concatenate([rows, -rows])) < 1e-12
    assert concentration(np.tile(rows[:1], (4, 1))) == np.inf
    assert concentration(np.eye(3)[:2]) == pytest.approx(np.sqrt(0.5) * (3 - 0.5) / 0.5)


def test_concentration_is_that_of_whole_gaps_outside():
    """Of residuals alone, whose mean is 0, it would be near 0."""
    text, image = pairs(6, 90)
    frame = framed(text, image)
    outside = (image - text) @ frame.complement
    found = decompose(text, image, frame)
    assert found.concentration == pytest.approx(concentration(outside))
    assert found.spread_angle == pytest.approx(
        spread_angle(outside.mean(0), covariance_of(outside))
    )
    assert found.spread_angle_null == random_angle(10)
