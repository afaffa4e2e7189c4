import numpy as np
import torch

from revision.alignment import Cloud, NoAlignment
from tests.alignment.numbers import numbers_of


def test_rows_are_only_normalised(text, image):
    alignment = NoAlignment()
    alignment.fit(Cloud.of(text), Cloud.of(image))
    rows = text.astype(np.float64)
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    assert np.abs(alignment(torch.tensor(text)).numpy() - unit).max() < 1e-7
    numbers = numbers_of(alignment, text)
    assert abs(numbers.phi - 1) < 1e-12
    assert abs(numbers.phi_bound - 1) < 1e-12
