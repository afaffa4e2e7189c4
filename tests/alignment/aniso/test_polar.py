import numpy as np
import pytest
import torch

from revision.alignment.aniso.polar import (
    haar_rotation,
    map_radii,
    radial_quantiles,
    to_cartesian,
    to_polar,
)


def rows(seed: int, *shape: int) -> torch.Tensor:
    return torch.tensor(np.random.default_rng(seed).standard_normal(shape))


def test_polar_to_cartesian_is_exact_without_epsilon():
    coordinates = rows(0, 50, 12)
    assert (to_cartesian(to_polar(coordinates, 0.0)) - coordinates).abs().max() < 1e-15


def test_epsilon_lengthens_a_block_by_half_of_it_over_the_square():
    coordinates, epsilon = rows(1, 50, 12), 1e-6
    exact, longer = to_polar(coordinates, 0.0).radii, to_polar(coordinates, epsilon).radii
    assert torch.allclose(longer / exact - 1, epsilon / (2 * exact.square()), rtol=1e-2)


def test_an_empty_block_has_a_finite_radius_and_phase():
    polar = to_polar(torch.zeros(1, 4, dtype=torch.float64), 1e-12)
    assert polar.radii.tolist() == [[1e-6, 1e-6]] and polar.phases.tolist() == [[0.0, 0.0]]


def test_quantiles_are_numpys():
    radii = rows(2, 37, 3).abs()
    expected = np.quantile(radii.numpy(), np.linspace(0, 1, 17), axis=0).T
    assert np.abs(radial_quantiles(radii, 17).numpy() - expected).max() < 1e-15


def test_mapped_radii_have_the_target_quantiles():
    """129 rows and 33 levels: every level is an order statistic, so the law is exact."""
    source, target = rows(3, 129, 4).abs(), rows(4, 129, 4).square()
    knots = radial_quantiles(source, 33), radial_quantiles(target, 33)
    mapped = map_radii(source, *knots)
    assert (radial_quantiles(mapped, 33) - knots[1]).abs().max() < 1e-14


def test_the_map_never_decreases_even_where_text_radii_repeat():
    source = torch.tensor([[0.1, 0.2, 0.2, 0.2, 0.5], [0.3, 0.3, 0.3, 0.3, 0.3]]).double()
    target = torch.tensor([[1.0, 2.0, 3.0, 4.0, 5.0]] * 2).double()
    grid = torch.linspace(0, 1, 1001, dtype=torch.float64)[:, None].expand(-1, 2)
    mapped = map_radii(grid, source, target)
    assert (mapped.diff(dim=0) >= 0).all() and torch.isfinite(mapped).all()


def test_radii_beyond_the_fit_stay_within_the_images():
    source, target = (radial_quantiles(rows(seed, 40, 2).abs(), 9) for seed in (5, 6))
    mapped = map_radii(torch.tensor([[0.0, 0.0], [99.0, 99.0]]).double(), source, target)
    assert torch.equal(mapped, torch.stack([target[:, 0], target[:, -1]]))


def test_a_block_without_spread_maps_to_the_ends_of_the_images():
    source, target = torch.full((1, 5), 0.3).double(), torch.arange(5.0).double()[None]
    mapped = map_radii(torch.tensor([[0.2], [0.3]]).double(), source, target)
    assert mapped.flatten().tolist() == [0.0, 4.0]


@pytest.mark.parametrize("size", [2, 7])
def test_haar_rotation_is_orthogonal_and_follows_its_seed(size):
    rotation = haar_rotation(size, 3)
    assert np.abs(rotation.T @ rotation - np.eye(size)).max() < 1e-14
    assert np.array_equal(rotation, haar_rotation(size, 3))
    assert not np.allclose(rotation, haar_rotation(size, 4))
