"""Unicorn: take the text mean away; pictures, if at all, lose their own mean at inference.

    z = Norm(y - mu_y)                      training, on text alone
    x' = Norm(x - mu_x)                     inference, with image_mean="train"

Source: arXiv:2503.22655v2, Eq. 3 and Sec. 4.2; Yu-xm/Unicorn@f89be62 data/embed_mean.py:33-105.
The code of the authors does not normalise z (`normalize=False`) and leaves pictures as they are
(`image_mean="none"`): its inference.py:44-57 has no subtraction.
Departs from the paper in the mean that pictures lose: the paper takes that of the TEST images,
which makes an answer depend on the other questions; ours is that of the images the map was fitted
on. For the paper's numbers, fit with the test images as target. Departs from its formula in
normalising x' as z is normalised; from the code in a mean of unit rows in float64, where it adds
the stored rows one by one in float32.
Cost: one pass over each modality, one addition per number.
Needs no pairs, and with image_mean="none" nothing from the images but their moments for reports.
Letters: x image row, y text row, mu_x image mean, mu_y text mean.
"""

from typing import Any, Literal, get_args

from jaxtyping import Float64
from torch import Tensor

from revision.alignment.base import AlignmentMap

ImageMean = Literal["none", "train"]


class Unicorn(AlignmentMap):
    """Text about its own mean; `image_mean="train"` does the same to images at inference."""

    name = "unicorn"

    def __init__(self, *, normalize: bool = True, image_mean: ImageMean = "none") -> None:
        super().__init__()
        if image_mean not in get_args(ImageMean):
            raise ValueError(
                f"image_mean is none or train, not {image_mean!r}; for the mean of the test "
                "images fit with them as target and image_mean=train"
            )
        self.normalize, self.image_mean = normalize, image_mean
        self.changes_images = image_mean == "train"

    @property
    def shift(self) -> Float64[Tensor, " dim"]:
        return -self.source_mean

    def options(self) -> dict[str, Any]:
        return {"normalize": self.normalize, "image_mean": self.image_mean}

    def move(self, rows: Float64[Tensor, "n dim"]) -> Float64[Tensor, "n dim"]:
        return rows.sub_(self.source_mean)

    def move_images(self, rows: Float64[Tensor, "n dim"]) -> Float64[Tensor, "n dim"]:
        return rows.sub_(self.target_mean) if self.changes_images else rows
