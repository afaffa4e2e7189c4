"""Whitening and colouring: give the text cloud the mean and the whole covariance of the images.

    z~ = mu_x + W (y - mu_y),   W = Sigma_x^(1/2) Sigma_y^(-1/2);   z = Norm(z~), centroid step

W Sigma_y W^T = Sigma_x, so before the projection z~ has exactly the first two moments of the image
cloud (at ridge 0). Of all matrices that do this, W is not the gentlest: `gauss_ot` is.

Source: the whole-space form of arXiv:2602.07026v3, App. F, without its frame and its first
projection; the transform itself is known from style transfer (arXiv:1705.08086).
Departs from it in the ridge rho, Sigma + rho (tr Sigma / d) I on both sides (none is printed).
Costs 3 passes over text (moments, centroid, apply) and 1 over images; 3 d x d matrices (13 MB each
at d = 1280), two eigendecompositions (d^3), d^2 multiplications a row. Needs no pairs, but d + 1
rows a side at least and 10 d to be trusted.
Letters: y text row, mu_x, mu_y image and text mean, Sigma_x, Sigma_y covariances, d width.
"""

import numpy as np
from jaxtyping import Float64

from revision.alignment.covariance import CovarianceMap, colouring


class WhiteningColouring(CovarianceMap):
    """Match mean and covariance by the product of the two symmetric roots."""

    name = "wct"

    def linear(
        self,
        source_cov: Float64[np.ndarray, "dim dim"],
        target_cov: Float64[np.ndarray, "dim dim"],
    ) -> Float64[np.ndarray, "dim dim"]:
        return colouring(source_cov, target_cov)
