"""The size that a gap has by sampling noise alone.

A centroid gap is a difference of two sample means. On n rows that took no part in a fit on N others

    E|mean(z) - mean(x)|^2  =  test noise + fit noise        (first order, projection ignored)
    test noise   tr Cov(x - z) / n                 pairs          T_x / n_x + T_z / n_z   otherwise
    fit noise    tr S_r / N                        pairs          T_x / N_x + s^2 T_y / N_y

and on average no map that matches means makes it smaller, so centroid gaps do not rank maps that
have a centroid step. With tr S_r = 1.264 the floor is 0.0112 for 10 000 pairs and 0.0036 for
100 000: gaps of 2e-4 reported at 100 000 rows can only be in-sample.

Source: elementary; the variance of a mean.

Letters: x image, y text, z aligned text; T trace of a covariance, S_r covariance of x - y, s scale.
"""

from math import sqrt

import numpy as np
from jaxtyping import Float64


def unpaired_noise(
    target_trace: float, num_target: int, source_trace: float, num_source: int, scale: float = 1.0
) -> float:
    """Mean square of the difference of two means of different records; text is stretched first.

    With aligned rows and scale 1 the test noise, with text rows and the map's scale the fit noise.
    """
    return target_trace / num_target + scale**2 * source_trace / num_source


def paired_noise(
    source: Float64[np.ndarray, "n dim"], target: Float64[np.ndarray, "n dim"]
) -> float:
    """Mean square of the difference of two means of the same records: tr Cov(x - z) / n."""
    return float((target - source).var(0).sum()) / len(source)


def predicted_gap(test_noise: float, fit_noise: float) -> float:
    """Expected held-out gap (root mean square) of a map that matches the means it was fitted on."""
    return sqrt(test_noise + fit_noise)
