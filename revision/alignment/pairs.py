"""Moments of pairs: row i of the texts and row i of the images come from the same record.

    cross covariance      E[(x - mu_x) (y - mu_y)^T]
    residual covariance   Cov(x - y)

A pair of which one row has no direction is left out, so means are those of the good pairs. The sums
have the order of the grid of `revision.alignment.moments`: batches change no bit.
Source: arXiv:2605.07825, Sec. 3.2 (the residual).
Letters: x image row, y text row, mu mean.
"""

from itertools import zip_longest

import numpy as np
from jaxtyping import Float64
from torch import Tensor

from revision.alignment.base import Cloud
from revision.alignment.passes import Batches, accumulate, grid

MISMATCH = "are to be pairs, but one side has more rows; embed both from the same records"


def cross_covariance(source: Cloud, target: Cloud) -> Float64[np.ndarray, "dim dim"]:
    """E[(x - mu_x)(y - mu_y)^T] over the good pairs: images are rows, texts columns."""

    def statistic(pairs: Float64[Tensor, "n 2 dim"]) -> tuple[Tensor, ...]:
        text, image = pairs.unbind(1)
        return image.T @ text, image.sum(0), text.sum(0)

    sums, count, _ = accumulate(stacked(source, target), statistic)
    product, image, text = (total.numpy() / count for total in sums)
    return product - np.outer(image, text)


def residual_moments(
    source: Cloud, target: Cloud
) -> tuple[Float64[np.ndarray, " dim"], Float64[np.ndarray, "dim dim"]]:
    """Mean and population covariance of x - y over the good pairs."""

    def statistic(pairs: Float64[Tensor, "n 2 dim"]) -> tuple[Tensor, ...]:
        text, image = pairs.unbind(1)
        difference = image - text
        return difference.sum(0), difference.T @ difference

    (total, products), count, _ = accumulate(stacked(source, target), statistic)
    mean = total.numpy() / count
    return mean, products.numpy() / count - np.outer(mean, mean)


def stacked(source: Cloud, target: Cloud) -> Batches:
    """Batches (n, 2, dim) of text and image rows.

    Raises:
        ValueError: the sides have different numbers of rows.
    """
    for text, image in zip_longest(grid(source.rows()), grid(target.rows())):
        if text is None or image is None or len(text) != len(image):
            counts = source.moments.num_rows, target.moments.num_rows
            raise ValueError(f"{counts[0]} texts and {counts[1]} images {MISMATCH}")
        yield np.stack([text, image], axis=1)
