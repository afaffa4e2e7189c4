import numpy as np
import pytest
import torch

from revision.alignment import Cloud
from revision.alignment.methods.mean_shift import MeanShift
from revision.alignment.methods.ortho_gap import OrthogonalGap
from revision.geometry.frame import principal_axes, reference_frame
from tests.alignment.numbers import numbers_of
from tests.feature_sets import cloud

DIM = 10


@pytest.fixture
def text() -> Cloud:
    return Cloud.of(cloud(1, 220, DIM))


@pytest.fixture
def image() -> Cloud:
    return Cloud.of(cloud(2, 180, DIM, mean=0.35))


def fitted(method, text: Cloud, image: Cloud, **options):
    alignment = method(**options)
    alignment.fit(text, image)
    return alignment


def unit_rows(text: Cloud) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.tensor(next(iter(text.rows()))).double())


def test_principal_coordinates_of_the_texts_are_untouched(text, image):
    rows = unit_rows(text)
    moved = fitted(OrthogonalGap, text, image, num_directions=3).move(rows.clone())
    directions = principal_axes(text.moments.covariance)[1][:, :3]
    assert np.abs((moved - rows).numpy() @ directions).max() < 1e-15
    assert (moved - rows).norm(dim=1).min() > 0.1


@pytest.mark.parametrize("strength", [0.4, 1.0])
def test_no_directions_is_a_mean_shift(text, image, strength):
    own = fitted(OrthogonalGap, text, image, num_directions=0, strength=strength)
    shift = fitted(MeanShift, text, image, strength=strength)
    rows = unit_rows(text)
    assert (own.transform(rows.clone()) - shift.transform(rows)).abs().max() < 1e-15


def test_joint_basis_removes_gamma_and_leaves_beta(text, image):
    alignment = fitted(OrthogonalGap, text, image, num_directions=4, basis="joint")
    frame = reference_frame(text.moments.covariance, image.moments.covariance, rank=4)
    beta, gamma = frame.split(image.moments.mean - text.moments.mean)
    after = image.moments.mean - alignment.move(unit_rows(text)).numpy().mean(0)
    assert min(np.linalg.norm(beta), np.linalg.norm(gamma)) > 0.05
    assert np.abs(after - beta).max() < 1e-13
    assert np.abs(alignment.shift.numpy() - gamma).max() < 1e-14


def test_all_directions_leave_the_gap(text, image):
    alignment = fitted(OrthogonalGap, text, image, num_directions=DIM)
    assert alignment.shift.abs().max() < 1e-15


def test_phi_is_the_largest_possible(text, image):
    alignment = fitted(OrthogonalGap, text, image, num_directions=3)
    numbers = numbers_of(alignment, np.concatenate(list(text.rows())))
    assert abs(numbers.phi - numbers.phi_bound) < 1e-12


def test_fewer_rows_than_the_width_do_if_directions_are_few(text, image):
    few = Cloud.of(cloud(3, 8, DIM))
    with pytest.warns(UserWarning, match="8 source rows for 3 directions"):
        fitted(OrthogonalGap, few, image, num_directions=3)
    with pytest.raises(ValueError, match=r"8 source rows .* 8 are needed"):
        fitted(OrthogonalGap, few, image, num_directions=8)


def test_image_rows_count_only_where_their_covariance_is_used(text, recwarn):
    few = Cloud.of(cloud(3, 8, DIM, mean=0.3))
    fitted(OrthogonalGap, text, few, num_directions=8)
    assert not recwarn.list
    with pytest.raises(ValueError, match="8 target rows"):
        fitted(OrthogonalGap, text, few, num_directions=8, basis="joint")


def test_impossible_options_are_refused(text, image):
    with pytest.raises(ValueError, match=r"between 0 and 1, not 1\.5"):
        OrthogonalGap(strength=1.5)
    with pytest.raises(ValueError, match="must not be negative, not -1"):
        OrthogonalGap(num_directions=-1)
    with pytest.raises((ValueError, TypeError), match="'other'"):
        OrthogonalGap(basis="other")
    with pytest.raises(ValueError, match="128 principal directions asked of rows of width 10"):
        fitted(OrthogonalGap, text, image)
