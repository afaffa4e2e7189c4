import numpy as np
import pytest
import torch

from revision.alignment import Cloud, MeanShift, NoAlignment, ReAlign, moments_of
from revision.alignment.geometry import (
    aligned_moments,
    gap_numbers,
    held_out,
    held_out_pairs,
    in_sample_gap,
)
from tests.feature_sets import cloud


def unit(rows: np.ndarray) -> np.ndarray:
    rows = rows.astype(np.float64)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def fitted(cls, text, image):
    alignment = cls()
    alignment.fit(Cloud.of(text), Cloud.of(image))
    return alignment


def pairs(seed: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Text and image rows that share half of their variation."""
    rng = np.random.default_rng(seed)
    shared = rng.standard_normal((count, 24))
    text, image = (
        center + 0.15 * (shared + rng.standard_normal((count, 24)))
        for center in (np.eye(24)[0] * 0.5, np.eye(24)[1] * 0.4)
    )
    return text.astype(np.float32), image.astype(np.float32)


def test_moments_of_both_sides_equal_their_definition(text, image):
    alignment = fitted(ReAlign, text, image)
    numbers = aligned_moments(alignment, np.array_split(text, 3))
    aligned = alignment.transform(torch.tensor(unit(text))).numpy()
    assert np.abs(numbers.source.mean - unit(text).mean(0)).max() < 1e-12
    assert np.abs(numbers.aligned.mean - aligned.mean(0)).max() < 1e-12
    assert numbers.aligned.trace == pytest.approx(float(aligned.var(0).sum()), abs=1e-12)
    assert numbers.phi == pytest.approx(float((unit(text) * aligned).sum(1).mean()), abs=1e-12)


def test_realign_has_a_smaller_gap_in_sample_than_mean_shift_than_none(text, image):
    gaps = []
    for cls in (ReAlign, MeanShift, NoAlignment):
        alignment = fitted(cls, text, image)
        gaps.append(in_sample_gap(alignment, aligned_moments(alignment, [text])))
    assert gaps[0] < gaps[1] / 3 < gaps[2] / 9
    assert gaps[2] == pytest.approx(np.linalg.norm(unit(text).mean(0) - unit(image).mean(0)))


def test_held_out_gap_is_about_its_floor():
    """Mean square over draws, as the floor predicts an expectation; measured 0.95."""
    ratios = []
    for seed in range(12):
        alignment = fitted(ReAlign, cloud(seed, 400), cloud(50 + seed, 300, mean=0.4))
        unseen = held_out(
            alignment, [cloud(seed, 900)[400:]], [cloud(50 + seed, 700, mean=0.4)[300:]]
        )
        ratios.append(unseen.ratio**2)
        assert unseen.gap < 0.2 * unseen.raw_gap
        assert unseen.paired_cosine is None
    assert 0.6 < np.mean(ratios) < 1.6


def test_floor_is_the_noise_of_four_means(text, image):
    alignment = fitted(ReAlign, text, image)
    other_text, other_image = cloud(1, 90), cloud(2, 120, mean=0.35)
    unseen = held_out(alignment, [other_text], [other_image])
    aligned = aligned_moments(alignment, [other_text]).aligned.trace
    expected = (
        aligned / 90
        + moments_of([other_image]).trace / 120
        + moments_of([image]).trace / 170
        + alignment.gain**2 * moments_of([text]).trace / 230
    )
    assert unseen.floor == pytest.approx(np.sqrt(expected), rel=1e-9)
    assert (unseen.num_source, unseen.num_target) == (90, 120)


def test_pairs_have_a_lower_floor_and_a_cosine():
    text, image = pairs(0, 600)
    alignment = fitted(ReAlign, text[:300], image[:300])
    apart = held_out(alignment, [text[300:]], [image[300:]])
    together = held_out_pairs(alignment, np.split(text[300:], 3), np.split(image[300:], 3))
    assert together.gap == pytest.approx(apart.gap, abs=1e-12)
    assert together.raw_gap == pytest.approx(apart.raw_gap, abs=1e-12)
    assert together.phi == pytest.approx(apart.phi, abs=1e-12)
    assert together.floor < apart.floor
    x, y = unit(image[300:]), unit(text[300:])
    assert together.paired_cosine_raw == pytest.approx(float((x * y).sum(1).mean()), abs=1e-12)
    assert together.paired_cosine > together.paired_cosine_raw


def test_paired_noise_is_the_trace_of_the_covariance_of_differences():
    text, image = pairs(1, 200)
    alignment = fitted(NoAlignment, text, image)
    unseen = held_out_pairs(alignment, [text], [image])
    differences = unit(image) - unit(text)
    fit = moments_of([image]).trace / 200 + moments_of([text]).trace / 200
    expected = float(differences.var(0).sum()) / 200 + fit
    assert unseen.floor == pytest.approx(np.sqrt(expected), rel=1e-9)


def test_a_pair_with_one_bad_row_is_left_out():
    text, image = pairs(2, 40)
    alignment = fitted(ReAlign, text, image)
    expected = held_out_pairs(alignment, [np.delete(text, 7, 0)], [np.delete(image, 7, 0)])
    image[7] = np.nan
    unseen = held_out_pairs(alignment, [text], [image])
    assert unseen.gap == pytest.approx(expected.gap, abs=1e-12)
    assert unseen.rejected_source == unseen.rejected_target == (7,)


def test_numbers_are_one_flat_json_object_beside_the_held_out_part(text, image):
    alignment = fitted(ReAlign, text, image)
    numbers = gap_numbers(alignment, aligned_moments(alignment, [text]), None)
    assert numbers["held_out"] is None
    assert numbers["raw_gap"] > numbers["in_sample_gap"]
    unseen = held_out(alignment, [text], [image])
    numbers = gap_numbers(alignment, aligned_moments(alignment, [text]), unseen)
    assert numbers["held_out"]["ratio"] == unseen.ratio
