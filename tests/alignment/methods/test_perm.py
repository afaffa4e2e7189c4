import numpy as np
import pytest
import torch

from revision.alignment.methods.perm import Permutation
from revision.alignment.noise import row_keys
from tests.alignment.methods.clouds import fitted, unit


def test_every_text_becomes_an_image(text, image):
    alignment = fitted(Permutation(), text, image)
    keys = row_keys([str(i) for i in range(230)], 0)
    result = alignment(torch.tensor(text), keys).numpy()
    distances = np.abs(result[:, None] - unit(image)[None]).max(2).min(1)
    assert distances.max() < 1e-7
    assert len(np.unique(result[:, 0])) > 0.6 * 170  # 1 - exp(-230 / 170) of them on average


def test_the_text_itself_is_forgotten(text, image):
    alignment = fitted(Permutation(), text, image)
    keys = row_keys([str(i) for i in range(230)], 0)
    rows = torch.tensor(text)
    assert torch.equal(alignment(rows, keys), alignment(rows.flip(0), keys))


def test_few_images_are_kept_where_few_are_asked_for(text, image):
    alignment = fitted(Permutation(num_rows=10), text, image)
    assert alignment.images.shape == (10, 24)
    assert np.abs(alignment.images.numpy() - unit(image)[::17]).max() < 1e-12
    with pytest.raises(ValueError, match="num_rows=1 images"):
        Permutation(num_rows=1)


def test_another_seed_draws_other_images(text, image):
    keys = row_keys([str(i) for i in range(len(text))], 0)
    rows = torch.tensor(text)
    first, second = (fitted(Permutation(seed=seed), text, image)(rows, keys) for seed in (0, 1))
    assert (first != second).any(1).float().mean() > 0.9
