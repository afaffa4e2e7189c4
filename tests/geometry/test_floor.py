import numpy as np
import pytest

from revision.geometry.floor import paired_noise, predicted_gap, unpaired_noise
from tests.geometry.clouds import pairs


@pytest.mark.parametrize(("count", "floor"), [(10_000, 0.0112), (100_000, 0.0036)])
def test_published_residual_gives_the_published_held_out_gap(count, floor):
    """0.012 at 10 000 pairs is the floor; 2.64e-4 at 100 000 is far below it: in-sample."""
    half = np.full((count // 2, 1), np.sqrt(1.264))
    noise = paired_noise(np.zeros((count, 1)), np.concatenate([half, -half]))
    assert predicted_gap(noise, 0.0) == pytest.approx(floor, abs=5e-5)
    assert floor > 10 * 2.64e-4


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
