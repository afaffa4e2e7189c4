import numpy as np
import pytest
import torch

from revision.alignment.methods.diag_std import DiagStd
from tests.alignment.methods.clouds import fitted, unit, unit_tensor


def test_every_coordinate_has_the_mean_and_variance_of_the_images(text, image):
    placed = fitted(DiagStd(), text, image).place(unit_tensor(text)).numpy()
    assert np.abs(placed.mean(0) - unit(image).mean(0)).max() < 1e-13
    assert np.abs(placed.std(0) - unit(image).std(0)).max() < 1e-9
    trace = ((placed - placed.mean(0)) ** 2).sum(1).mean()
    spread = ((unit(text) - unit(text).mean(0)) ** 2).sum(1).mean()
    gain = fitted(DiagStd(), text, image).gain
    assert gain == pytest.approx(np.sqrt(trace / spread), rel=1e-9)


def test_without_the_centroid_step_it_is_the_formula(text, image):
    alignment = fitted(DiagStd(centroid=False), text, image)
    source, target = unit(text), unit(image)
    scale = target.std(0) / (source.std(0) + 1e-10)
    expected = unit(target.mean(0) + (source - source.mean(0)) * scale)
    assert np.abs(alignment(torch.tensor(text)).numpy() - expected).max() < 1e-7


def test_permutations_and_sign_flips_of_coordinates_are_followed_and_rotations_not(text, image):
    text, image = text.astype(np.float64), image.astype(np.float64)
    rng = np.random.default_rng(0)
    dim = text.shape[1]
    signed = np.eye(dim)[rng.permutation(dim)] * rng.choice([-1.0, 1.0], dim)
    rotation = np.linalg.qr(rng.standard_normal((dim, dim)))[0]
    expected = fitted(DiagStd(), text, image).transform(unit_tensor(text)).numpy()
    differences = []
    for matrix in (signed, rotation):
        alignment = fitted(DiagStd(), text @ matrix, image @ matrix)
        result = alignment.transform(unit_tensor(text @ matrix)).numpy()
        differences.append(np.abs(result - expected @ matrix).max())
    assert differences[0] < 1e-12
    assert differences[1] > 1e-3


def test_a_constant_coordinate_stays_finite(text, image):
    unit_text = unit(text)
    unit_text[:, 3] = 0.0
    assert fitted(DiagStd(), unit_text, image)(torch.tensor(unit_text)).isfinite().all()
