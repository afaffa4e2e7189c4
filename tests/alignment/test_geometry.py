import numpy as np
import pytest
import torch

from revision.alignment import Cloud, MeanShift, NoAlignment, ReAlign
from revision.alignment.geometry import aligned_moments, in_sample_gap


def unit(rows: np.ndarray) -> np.ndarray:
    rows = rows.astype(np.float64)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def fitted(cls, text, image):
    alignment = cls()
    alignment.fit(Cloud.of(text), Cloud.of(image))
    return alignment


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
