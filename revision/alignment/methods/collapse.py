"""Collapse: take each modality's own mean away, so that both clouds lie around the origin.

    z = Norm(y - mu_y),   x' = Norm(x - mu_x)

Both centroids are 0 before the projection. Images have to be moved wherever they enter a model, in
training and at inference, so mu_x travels in the model directory: a model trained on z is wrong
without it. The gap is to be measured against x', never against x.
Source: "collapse" of arXiv:2401.08567; arXiv:2412.14384, xfactlab/I0T@b06fa45
src/features.py:35-58; arXiv:2507.19054; arXiv:2602.03098.
Departs from the last two in what is taken away: the means are of all fitting rows, where TextME
takes 5,000 by default, and rows are of one modality, where GR-CLIP also mixes both in a document.
Cost: one pass over each modality, one addition per number of texts and images.
Needs no pairs.
Letters: x image row, y text row, mu_x image mean, mu_y text mean.
"""

from jaxtyping import Float64
from torch import Tensor

from revision.alignment.base import AlignmentMap


class Collapse(AlignmentMap):
    """Both modalities about their own means."""

    name = "collapse"
    changes_images = True

    @property
    def shift(self) -> Float64[Tensor, " dim"]:
        return -self.source_mean

    def move(self, rows: Float64[Tensor, "n dim"]) -> Float64[Tensor, "n dim"]:
        return rows.sub_(self.source_mean)

    def move_images(self, rows: Float64[Tensor, "n dim"]) -> Float64[Tensor, "n dim"]:
        return rows.sub_(self.target_mean)
