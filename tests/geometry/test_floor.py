import numpy as np
import pytest

from revision.geometry.floor import paired_noise, predicted_gap, sampling_floor, unpaired_noise
from tests.geometry.clouds import pairs


@pytest.mark.parametrize(("count", "floor"), [(10_000, 0.0112), (100_000, 0.0036)])
def test_published_residual_gives_the_published_held_out_gap(count, floor):
    """0.012 at 10 000 pairs is the floor; 2.64e-4 at 100 000 is far below it: in-sample."""
    assert sampling_floor(1.264, count) == pytest.approx(floor, abs=5e-5)
    assert sampling_floor(1.264, 100_000) > 10 * 2.64e-4


def test_sampling_floor_is_the_error_of_a_mean():
    rows = np.random.default_rng(0).standard_normal((400, 50, 8))
    measured = np.sqrt((rows.mean(1) ** 2).sum(1).mean())
    assert sampling_floor(8.0, 50) == pytest.approx(measured, rel=0.05)
    with pytest.raises(ValueError, match="mean of 0 rows"):
        sampling_floor(1.0, 0)


def test_noise_of_injected_gaussians_is_a_floor_too():
    """sigma sqrt(d / N): 0.0203 at 1280 dimensions and 1e5 rows gives the 0.0023 reported of C3."""
    assert sampling_floor(1280 * 0.0203**2, 100_000) == pytest.approx(0.0023, abs=5e-5)


@pytest.mark.parametrize("fitted", [40, 400])
@pytest.mark.parametrize("paired", [True, False])
def test_prediction_is_the_gap_of_a_matched_mean(fitted, paired):
    """Means and scale from `fitted` rows, tried on 100 others; within 15 % over 200 draws."""
    rng = np.random.default_rng(fitted + paired)
    scale, squares = 0.7, []
    for _ in range(200):
        shared = rng.standard_normal((fitted + 100, 12)) * paired
        text, image = (shared + rng.standard_normal((fitted + 100, 12)) for _ in range(2))
        shift = image[:fitted].mean(0) - scale * text[:fitted].mean(0)
        aligned = scale * text[fitted:] + shift
        squares.append(((aligned.mean(0) - image[fitted:].mean(0)) ** 2).sum())
    trace = 12.0 * (1 + paired)
    if paired:
        residual = 12 * (2 + (1 - scale) ** 2 - 1 + scale**2)
        assert paired_noise(scale * text, image) * len(text) == pytest.approx(residual, rel=0.2)
        expected = predicted_gap(residual / 100, residual / fitted)
    else:
        test = unpaired_noise(trace, 100, scale**2 * trace, 100)
        expected = predicted_gap(test, unpaired_noise(trace, fitted, trace, fitted, scale))
    assert np.sqrt(np.mean(squares)) == pytest.approx(expected, rel=0.15)


def test_pairs_have_less_noise_than_other_records():
    text, image = pairs(0, 90)
    apart = unpaired_noise(float(image.var(0).sum()), 90, float(text.var(0).sum()), 90)
    assert paired_noise(text, image) < apart
    covariance = ((text - text.mean(0)) * image).sum(1).mean()
    assert paired_noise(text, image) == pytest.approx(apart - 2 * covariance / 90)


def test_text_is_stretched_before_its_noise_counts():
    assert unpaired_noise(1.0, 10, 2.0, 20, 3.0) == pytest.approx(0.1 + 9 * 0.1)
    assert predicted_gap(0.09, 0.16) == pytest.approx(0.5)
