import numpy as np
import pytest
import torch

from revision.alignment.methods.collapse import Collapse
from revision.alignment.methods.unicorn import Unicorn
from tests.alignment.methods.clouds import fitted, unit, unit_tensor


def test_texts_are_those_of_collapse_and_images_stay(text, image):
    alignment = fitted(Unicorn(), text, image)
    collapse = fitted(Collapse(), text, image)
    rows = torch.tensor(text)
    assert torch.equal(alignment(rows), collapse(rows))
    assert not alignment.changes_images
    images = alignment.forward_images(torch.tensor(image)).numpy()
    assert np.abs(images - unit(image)).max() < 1e-7


def test_the_mean_is_zero_before_projection(text, image):
    alignment = fitted(Unicorn(), text, image)
    assert alignment.move(unit_tensor(text)).mean(0).abs().max() < 1e-12


def test_the_image_mean_is_taken_from_images_where_it_is_asked_for(text, image):
    alignment = fitted(Unicorn(image_mean="train"), text, image)
    assert alignment.changes_images
    images = alignment.forward_images(torch.tensor(image)).numpy()
    assert np.abs(images - unit(unit(image) - unit(image).mean(0))).max() < 1e-7


def test_the_code_of_the_authors_does_not_normalise(text, image):
    alignment = fitted(Unicorn(normalize=False), text, image)
    expected = unit(text) - unit(text).mean(0)
    assert np.abs(alignment(torch.tensor(text)).numpy() - expected).max() < 1e-7
    assert np.abs(np.linalg.norm(expected, axis=1) - 1).max() > 0.1


def test_the_test_images_are_no_option():
    with pytest.raises(Exception, match="test"):
        Unicorn(image_mean="test")
