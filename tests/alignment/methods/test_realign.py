from pathlib import Path

import numpy as np
import pytest
import torch

from revision.alignment import Cloud, MeanShift, NoAlignment, ReAlign, moments_of
from revision.alignment.moments import moments_of_transformed
from tests.alignment.numbers import numbers_of

GOLDEN = Path(__file__).parents[2] / "data" / "golden_realign.npz"


def fitted(text, image, **options) -> ReAlign:
    alignment = ReAlign(**options)
    alignment.fit(Cloud.of(text), Cloud.of(image))
    return alignment


def unit(rows: np.ndarray) -> np.ndarray:
    rows = rows.astype(np.float64)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    return dict(np.load(GOLDEN))


@pytest.mark.parametrize("mean_precision", ["float64", "float32"])
def test_public_script_within_the_stated_tolerances(golden, mean_precision):
    alignment = fitted(golden["text"], golden["image"], mean_precision=mean_precision)
    aligned = alignment(torch.tensor(golden["text"])).numpy()
    assert np.abs(aligned - golden["aligned"]).max() <= 1e-7
    assert np.abs(alignment.source_mean.numpy() - golden["mu_txt"]).max() <= 2e-8
    assert np.abs(alignment.target_mean.numpy() - golden["mu_img"]).max() <= 2e-8
    assert np.abs(alignment.centroid.numpy() - golden["mu_hat"]).max() <= 2e-8
    assert alignment.gain == pytest.approx(float(golden["scale"]), rel=1e-12)
    assert float(alignment.source_trace) == pytest.approx(float(golden["trace_txt"]), rel=1e-12)
    assert float(alignment.target_trace) == pytest.approx(float(golden["trace_img"]), rel=1e-12)


def test_float32_means_reproduce_every_value_of_the_public_script(golden):
    alignment = fitted(golden["text"], golden["image"], mean_precision="float32")
    aligned = alignment(torch.tensor(golden["text"])).numpy()
    assert np.mean(aligned == golden["aligned"]) == 1.0
    assert np.array_equal(alignment.source_mean.numpy().astype(np.float32), golden["mu_txt"])


def test_golden_gaps_and_phi(golden):
    """Raw 0.707147, final 0.00118753; Phi 0.73839 against a bound of 0.73847."""
    alignment = fitted(golden["text"], golden["image"])
    numbers = numbers_of(alignment, golden["text"])
    assert numbers.raw_gap == pytest.approx(0.707147, abs=1e-6)
    assert numbers.in_sample_gap == pytest.approx(0.00118753, abs=1e-7)
    assert (numbers.phi, numbers.phi_bound) == pytest.approx((0.73839, 0.73847), abs=5e-6)


def test_affine_step_has_mean_and_trace_of_the_images(text, image):
    alignment = fitted(text, image)
    offset = alignment.target_mean - alignment.scale * alignment.source_mean
    affine = alignment.gain * unit(text) + offset.numpy()
    assert np.abs(affine.mean(0) - unit(image).mean(0)).max() < 1e-14
    trace = float(((affine - affine.mean(0)) ** 2).sum(1).mean())
    assert trace == pytest.approx(moments_of([image]).trace, rel=1e-9)


def test_first_projection_is_a_mean_shift_to_the_rescaled_target(text, image):
    alignment = fitted(text, image)
    projected = alignment.project(torch.tensor(unit(text))).numpy()
    assert np.abs(projected - unit(unit(text) + alignment.shift.numpy())).max() < 1e-14


def test_first_projection_has_the_largest_possible_phi(text, image):
    alignment = fitted(text, image)
    alignment.centroid = alignment.target_mean.clone()  # switches the centroid step off
    numbers = numbers_of(alignment, text)
    assert abs(numbers.phi - numbers.phi_bound) < 1e-12


def test_without_trace_and_centroid_step_it_is_the_mean_shift(text, image):
    alignment = fitted(text, image, trace=False, centroid=False)
    shifted = MeanShift()
    shifted.fit(Cloud.of(text), Cloud.of(image))
    assert abs(fitted(text, image).gain - 1) > 1e-3  # so that the trace step would be seen
    rows = torch.tensor(unit(text))
    expected = shifted.transform(rows.clone())
    assert (alignment.transform(rows) - expected).abs().max() < 1e-14


def test_centroid_step_moves_the_mean_onto_the_image_mean_before_projection(text, image):
    alignment = fitted(text, image)
    step = alignment.target_mean - alignment.centroid
    moved = moments_of_transformed([text], lambda rows: alignment.project(rows).add_(step))
    assert np.abs(moved.mean - alignment.target_mean.numpy()).max() < 1e-14  # sums to 2^-44


def test_in_sample_gap_is_below_the_length_of_the_centroid_step(text, image):
    alignment = fitted(text, image)
    step = float((alignment.target_mean - alignment.centroid).norm())
    assert numbers_of(alignment, text).in_sample_gap <= step


def test_the_in_sample_gap_is_smaller_than_that_of_mean_shift_and_of_none(text, image):
    gaps = []
    for alignment in (ReAlign(), MeanShift(), NoAlignment()):
        alignment.fit(Cloud.of(text), Cloud.of(image))
        gaps.append(numbers_of(alignment, text).in_sample_gap)
    assert gaps[0] < gaps[1] / 3 < gaps[2] / 9


def test_scale_follows_from_the_norms_of_the_means(text, image):
    alignment = fitted(text, image)
    image_norm, text_norm = alignment.target_mean.norm(), alignment.source_mean.norm()
    expected = ((1 - image_norm**2) / (1 - text_norm**2)).sqrt()
    assert alignment.gain == pytest.approx(float(expected), rel=1e-9)


def test_unknown_precision_is_refused():
    with pytest.raises((ValueError, TypeError), match="'float16'"):
        ReAlign(mean_precision="float16")
