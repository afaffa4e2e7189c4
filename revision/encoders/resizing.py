"""How torchvision resizes and cuts: the pixel path of OpenCLIP checkpoints and of timm's towers.

Place in the pipeline: a decoded picture -> **bytes (3, c, c)** -> device -> numbers -> tower, as in
`pixels.py`, whose numbers it shares. What differs from the processors of `transformers` is whole
pixels:

    shortest    the shorter side becomes s, the longer int(s * long / short)
    longest     the longer side becomes s, the shorter round(s * short / long); the rest is `fill`
    squash      both sides become s
    cut         starts at round((side - c) / 2), where a processor takes the floor

so that the cut lies one pixel further where side - c is 3, 7, 11, ...

Source: mlfoundations/open_clip v3.3.0 src/open_clip/transform.py:image_transform and
huggingface/pytorch-image-models v1.0.31 timm/data/transforms_factory.py:transforms_imagenet_eval,
on torchvision's transforms of Pillow pictures. Departs from them in speed alone, and in that
pictures arrive as RGB: theirs are resized first and converted afterwards.

Letters: s `size`, c `crop`.
"""

from collections.abc import Sequence
from typing import Literal

from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from revision.encoders.base import Decode
from revision.encoders.pixels import PixelPath, bytes_of, resize

ResizeMode = Literal["shortest", "longest", "squash"]

RESAMPLING = {
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
    "nearest": Image.Resampling.NEAREST,
    "lanczos": Image.Resampling.LANCZOS,
}


class TorchvisionPath(PixelPath):
    """Resize to `size` as `mode` says, then cut or fill to a square of `crop`.

    `settings` is what it was made of, so that a directory can hold it.
    """

    def __init__(
        self,
        *,
        size: int,
        crop: int,
        mode: ResizeMode,
        mean: Sequence[float],
        std: Sequence[float],
        interpolation: str = "bicubic",
        fill: int = 0,
        decode: Decode = "exact",
    ) -> None:
        if interpolation not in RESAMPLING:
            raise ValueError(
                f"interpolation {interpolation!r} is unknown; it is one of {', '.join(RESAMPLING)}"
            )
        if mode not in ("shortest", "longest", "squash"):
            raise ValueError(f"resize mode {mode!r} is not one of shortest, longest, squash")
        super().__init__(
            size=(size, size) if mode == "squash" else size,
            crop=(crop, crop),
            resample=int(RESAMPLING[interpolation]),
            mean=mean,
            std=std,
            decode=decode,
        )
        self.mode, self.fill = mode, fill
        self.settings = {
            "size": size,
            "crop": crop,
            "mode": mode,
            "mean": list(mean),
            "std": list(std),
            "interpolation": interpolation,
            "fill": fill,
        }

    def resized(self, width: int, height: int) -> tuple[int, int]:
        if self.mode != "longest":
            return super().resized(width, height)
        ratio = max(width, height) / self.settings["size"]
        return max(1, round(width / ratio)), max(1, round(height / ratio))

    def to_bytes(self, image: Image.Image) -> UInt8[Tensor, "3 c c"]:
        image = image if image.mode == "RGB" else image.convert("RGB")
        image = resize(image, self.resized(*image.size), self.resample, self.decode)
        crop = self.settings["crop"]
        if image.size == (crop, crop):
            return bytes_of(image)
        canvas = Image.new("RGB", (crop, crop), (self.fill,) * 3)
        left, top = (_start(side, crop) for side in image.size)
        canvas.paste(image, (-left, -top))
        return bytes_of(canvas)


def _start(side: int, crop: int) -> int:
    """Where the cut starts; negative where the picture is smaller."""
    return round((side - crop) / 2) if side >= crop else -((crop - side) // 2)
