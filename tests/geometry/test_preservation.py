import numpy as np
import pytest
import torch

from revision.alignment import Cloud, ReAlign
from revision.geometry.angles import random_pairs
from revision.geometry.neighbours import nearest_others, neighbour_overlap
from revision.geometry.preservation import pearson, phi, phi_bound, psi
from tests.geometry.clouds import pairs, rotation, unit


def omega_rows(text: np.ndarray, aligned: np.ndarray, size: int) -> np.ndarray:
    return neighbour_overlap(nearest_others(text, size), nearest_others(aligned, size), size)


def test_identity_keeps_everything():
    text = pairs(0, 60)[0]
    assert phi(text, text) == pytest.approx(1)
    assert psi(text, text) == pytest.approx(1)
    assert (omega_rows(text, text, 10) == 1).all()


def test_a_rotation_of_all_outputs_keeps_psi_and_omega_and_not_phi():
    text = pairs(1, 60)[0]
    turned = text @ rotation(3)
    assert psi(text, turned) == pytest.approx(1)
    assert (omega_rows(text, turned, 10) == 1).all()
    assert phi(text, turned) < 0.7


def test_psi_is_the_correlation_of_cosines():
    text, image = pairs(2, 60)
    i, j = random_pairs(60).T
    expected = np.corrcoef((text @ text.T)[i, j], (image @ image.T)[i, j])[0, 1]
    assert psi(text, image) == pytest.approx(expected)
    assert psi(text, image, count=500, seed=1) == pytest.approx(expected, abs=0.1)


def test_weights_of_pairs_are_repetitions():
    rng = np.random.default_rng(0)
    one, two = rng.random((2, 50))
    counts = rng.integers(0, 4, 50)
    expected = np.corrcoef(np.repeat(one, counts), np.repeat(two, counts))[0, 1]
    assert pearson(one, two, counts.astype(float)) == pytest.approx(expected)


def test_rows_made_equal_have_no_psi():
    text = pairs(0, 20)[0]
    with pytest.raises(ValueError, match="cosines of 190 pairs do not vary on one side"):
        psi(text, np.tile(text[:1], (20, 1)))


def test_phi_stays_below_its_bound_for_any_shift():
    text, image = pairs(3, 90)
    rng = np.random.default_rng(0)
    for aligned in (text, image, text @ rotation(1), unit(text + image.mean(0))):
        for scale in (0.0, 0.3, 2.0):
            shift = scale * rng.standard_normal(16)
            assert phi(text, aligned) <= phi_bound(text, aligned, shift) + 1e-12


def test_a_shift_on_the_sphere_reaches_the_bound():
    """No map with the same centroid keeps more of the text: Norm(y + v) has the largest Phi."""
    text, image = pairs(4, 90)
    shift = image.mean(0) - text.mean(0)
    aligned = unit(text + shift)
    assert phi(text, aligned) == pytest.approx(phi_bound(text, aligned, shift), abs=1e-14)
    assert phi(text, image) < phi_bound(text, image, shift) - 0.01


def test_realign_is_near_its_bound():
    text, image = pairs(5, 200)
    alignment = ReAlign()
    alignment.fit(Cloud.of(text), Cloud.of(image))
    aligned = alignment(torch.tensor(text)).double().numpy()
    slack = phi_bound(text, aligned, alignment.shift.numpy()) - phi(text, aligned)
    assert 0 <= slack < 1e-3  # measured 4e-4, the price of the centroid step


def test_omega_of_unrelated_rows_is_chance():
    text, other = pairs(6, 100)[0], pairs(7, 100)[0]
    assert omega_rows(text, other, 10).mean() == pytest.approx(10 / 99, abs=0.04)
