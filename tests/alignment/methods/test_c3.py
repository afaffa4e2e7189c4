import math

import numpy as np
import pytest
import torch

from revision.alignment.methods.c3 import C3
from revision.alignment.methods.collapse import Collapse
from revision.alignment.methods.mean_shift import MeanShift
from revision.alignment.noise import row_keys
from tests.alignment.methods.clouds import fitted, unit, unit_tensor
from tests.feature_sets import cloud

KEYS = row_keys([str(i) for i in range(230)], 0)


@pytest.mark.parametrize(("variant", "clean"), [("origin", Collapse), ("target", MeanShift)])
def test_without_noise_it_is_collapse_or_mean_shift(text, image, variant, clean):
    alignment = fitted(C3(variant=variant, std=0.0), text, image)
    expected = fitted(clean(), text, image)
    rows = torch.tensor(text)
    assert torch.equal(alignment(rows, KEYS), expected(rows))
    assert alignment.changes_images is expected.changes_images
    images = torch.tensor(image)
    assert torch.equal(alignment.forward_images(images), expected.forward_images(images))


@pytest.mark.parametrize("variant", ["origin", "target"])
def test_noise_has_mean_zero_and_the_std_that_was_asked_for(text, image, variant):
    alignment = fitted(C3(variant=variant, std=0.2), text, image)
    keys = row_keys([str(i) for i in range(20_000)], 0)
    rows = unit_tensor(np.repeat(text[:1], 20_000, axis=0))
    noise = alignment.disturb(rows, keys) - rows
    assert noise.mean(0).abs().max() < 4.5 * 0.2 / math.sqrt(20_000)
    assert (noise.std(0) / 0.2 - 1).abs().max() < 4.5 / math.sqrt(2 * 20_000)


def test_the_noise_comes_before_the_projection(text, image):
    alignment = fitted(C3(std=0.3, seed=2), text, image)
    expected = alignment.move(unit_tensor(text)) + alignment.noise.draw(KEYS, 24)
    assert np.abs(alignment(torch.tensor(text), KEYS).numpy() - unit(expected.numpy())).max() < 1e-7


@pytest.mark.parametrize("dim", [64, 512])
def test_the_default_has_the_norm_of_the_public_code_at_every_width(dim):
    text, image = cloud(1, 300, dim), cloud(2, 300, dim)
    alignment = fitted(C3(), text, image)
    drawn = alignment.noise.draw(row_keys([str(i) for i in range(300)], 0), dim)
    assert float(drawn.square().sum(1).mean().sqrt()) == pytest.approx(2.862, rel=0.02)
    if dim == 512:
        assert float(drawn.std()) == pytest.approx(math.sqrt(0.016), rel=0.01)


@pytest.mark.parametrize("size", [{}, {"std": 0.1}])
def test_another_seed_is_another_noise(text, image, size):
    rows = torch.tensor(text)
    first, second = (fitted(C3(seed=seed, **size), text, image)(rows, KEYS) for seed in (0, 1))
    assert (first - second).abs().max() > 0.1


def test_an_unprojected_gap_is_the_sampling_error_of_the_noise():
    text, image = cloud(1, 4000, 64), cloud(2, 4000, 64)
    alignment = fitted(C3(std=0.1), text, image)
    keys = row_keys([str(i) for i in range(4000)], 0)
    moved = alignment.disturb(alignment.move(unit_tensor(text)), keys)
    gap = float((moved.mean(0) - alignment.target_mean).norm())
    assert gap == pytest.approx(0.1 * math.sqrt(64 / 4000), rel=0.25)


def test_refusals():
    with pytest.raises(Exception, match="middle"):
        C3(variant="middle")
    with pytest.raises(ValueError, match="exactly one"):
        C3(std=0.1, variance=0.01)
