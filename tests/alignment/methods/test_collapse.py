import numpy as np
import torch

from revision.alignment.methods.collapse import Collapse
from tests.alignment.methods.clouds import fitted, unit, unit_tensor


def test_formula_on_both_sides(text, image):
    alignment = fitted(Collapse(), text, image)
    texts = alignment(torch.tensor(text)).numpy()
    images = alignment.forward_images(torch.tensor(image)).numpy()
    assert np.abs(texts - unit(unit(text) - unit(text).mean(0))).max() < 1e-7
    assert np.abs(images - unit(unit(image) - unit(image).mean(0))).max() < 1e-7


def test_both_means_are_zero_before_projection(text, image):
    alignment = fitted(Collapse(), text, image)
    assert alignment.move(unit_tensor(text)).mean(0).abs().max() < 1e-13
    assert alignment.move_images(unit_tensor(image)).mean(0).abs().max() < 1e-13


def test_the_gap_closes_in_the_centred_frame_and_not_against_raw_images(text, image):
    """The protocol that makes collapse look bad: its texts beside images that were not moved."""
    alignment = fitted(Collapse(), text, image)
    texts = alignment.transform(unit_tensor(text)).mean(0)
    images = alignment.forward_images(torch.tensor(image)).double().mean(0)
    centred, raw = (texts - images).norm(), (texts - alignment.target_mean).norm()
    before = (alignment.source_mean - alignment.target_mean).norm()
    assert centred < 0.3 * before
    assert raw > 2 * centred
