"""The pixel path: what an image processor does, as bytes in the worker and numbers on the device.

Place in the pipeline: a decoded picture -> **uint8 (3, H, W)** -> device -> **float32** -> tower.

    x = ((p / 255) - mean) / std        p the bytes after resizing and cutting

A worker resizes and cuts; bytes travel, a quarter of what numbers take; the device computes x. The
numbers are those of the Pillow image processors of `transformers`, bit for bit: those round p / 255
from float64 to float32, and the float32 quotient is the same for each of the 256 bytes (compared
when a path is made; a processor with another factor is left to do its work itself).

Departs from the processors in speed alone: they turn a picture into an array and back before they
resize it, and compute in float64 on one core of the host.

`decode="fast"` may read a JPEG at 1/2, 1/4 or 1/8 of its size, never below the size that it is
resized to, and resizes by torch's kernel for bytes, which rounds its weights to 16 bits where
Pillow keeps 22. Its pixels differ (docs/LOG.md says by how much), so it is part of an encoder's
identity.

Letters: n pictures, H and W the size of the tower's input.
"""

import inspect
import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.image_processing_backends import PilBackend

from revision.encoders.base import Decode

_BYTES = np.arange(256, dtype=np.float64)
_INTERPOLATION = {
    Image.Resampling.BILINEAR: "bilinear",
    Image.Resampling.BICUBIC: "bicubic",
}
_log = logging.getLogger(__name__)


class PixelPath(nn.Module):
    """Resize to `size`, cut `crop` around the centre, divide, subtract `mean`, divide by `std`.

    `size` is (height, width), or the length of the shorter side; what `crop` = (height, width)
    takes beyond the picture is black. `scale` multiplies the bytes. `settings` is what the path was
    made of.

    Raises:
        ValueError: float32 on the device would not give the processor's numbers for this `scale`.
    """

    divisor: Tensor
    mean: Tensor
    std: Tensor

    def __init__(
        self,
        *,
        size: int | tuple[int, int] | None,
        crop: tuple[int, int] | None,
        resample: int = int(Image.Resampling.BICUBIC),
        scale: float = 1 / 255,
        mean: Sequence[float] = (0.0, 0.0, 0.0),
        std: Sequence[float] = (1.0, 1.0, 1.0),
        decode: Decode = "exact",
    ) -> None:
        super().__init__()
        check_decode(decode)
        self.size, self.crop, self.resample = size, crop, Image.Resampling(resample)
        self.decode = decode
        self.settings: dict[str, Any] = {
            "size": size,
            "crop": crop,
            "resample": int(resample),
            "scale": scale,
            "mean": list(mean),
            "std": list(std),
        }
        for name, values in (("divisor", [1 / scale]), ("mean", mean), ("std", std)):
            column = torch.tensor(values, dtype=torch.float32).view(-1, 1, 1)
            self.register_buffer(name, column, persistent=False)
        _check_numbers(self, scale, mean, std)

    def resized(self, width: int, height: int) -> tuple[int, int]:
        """The width and height that a picture of this size is resized to, before it is cut."""
        if self.size is None:
            return width, height
        if isinstance(self.size, tuple):
            return self.size[1], self.size[0]
        short, long = sorted((width, height))
        longer = int(self.size * long / short)
        return (self.size, longer) if width <= height else (longer, self.size)

    def to_bytes(self, image: Image.Image) -> UInt8[Tensor, "3 H W"]:
        """In the worker."""
        image = image if image.mode == "RGB" else image.convert("RGB")
        if self.size is not None:
            image = resize(image, self.resized(*image.size), self.resample, self.decode)
        if self.crop is not None:
            top, left = ((a - b) // 2 for a, b in zip(image.size[::-1], self.crop, strict=True))
            image = image.crop((left, top, left + self.crop[1], top + self.crop[0]))
        return bytes_of(image)

    def forward(self, pixels: UInt8[Tensor, "n 3 H W"]) -> Float[Tensor, "n 3 H W"]:
        """On the device. The divisions are by tensors: by a number, CUDA would multiply by the
        reciprocal, which rounds differently."""
        return as_numbers(pixels).div_(self.divisor).sub_(self.mean).div_(self.std)


def resize(
    image: Image.Image, size: tuple[int, int], resample: Image.Resampling, decode: Decode
) -> Image.Image:
    """An RGB picture of this width and height, by Pillow or, fast, by torch where it knows how."""
    if decode == "exact" or resample not in _INTERPOLATION:
        return image.resize(size, resample)
    mode = _INTERPOLATION[resample]
    resized = F.interpolate(bytes_of(image)[None], size[::-1], mode=mode, antialias=True)
    return Image.fromarray(resized[0].permute(1, 2, 0).numpy())


def bytes_of(image: Image.Image) -> UInt8[Tensor, "3 H W"]:
    """The bytes of an RGB picture, stored as in the picture, channels last."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def as_numbers(pixels: UInt8[Tensor, "n 3 H W"]) -> Float[Tensor, "n 3 H W"]:
    """Bytes as float32.

    Raises ValueError for numbers: they would be normalised twice.
    """
    if pixels.dtype != torch.uint8:
        raise ValueError(
            f"pixels of dtype {pixels.dtype}, expected uint8; give what image_inputs returns, "
            "the encoder normalises it itself"
        )
    return pixels.float()


def check_decode(decode: str) -> None:
    if decode not in ("exact", "fast"):
        raise ValueError(f"decode is exact or fast, got {decode!r}")


def pixel_path(processor: Any, decode: Decode = "exact") -> PixelPath | None:
    """The path that gives the numbers of `processor`, an image processor of `transformers`.

    A path is its own. None for one that does anything else than a path can do; it is then called
    itself, and the log says why.

    Raises:
        ValueError: such a processor and decode="fast": nobody knows what size it needs.
    """
    check_decode(decode)
    if isinstance(processor, PixelPath):
        return processor
    reason = _peculiarity(processor)
    if reason is None:
        try:
            return PixelPath(**_settings(processor), decode=decode)
        except ValueError as error:
            reason = str(error)
    name = type(processor).__name__
    if decode == "fast":
        raise ValueError(f"decode=fast is not possible with {name}: {reason}; use decode=exact")
    _log.warning("%s prepares its pictures itself, at its own speed: %s", name, reason)
    return None


def _settings(processor: Any) -> dict[str, Any]:
    size = dict(processor.size) if processor.do_resize else {}
    crop = dict(processor.crop_size) if getattr(processor, "do_center_crop", None) else None
    normalizes = processor.do_normalize
    return {
        "size": (size.get("shortest_edge") or (size["height"], size["width"])) if size else None,
        "crop": None if crop is None else (crop["height"], crop["width"]),
        "resample": int(processor.resample) if size else int(Image.Resampling.BICUBIC),
        "scale": float(processor.rescale_factor) if processor.do_rescale else 1.0,
        "mean": _channels(processor.image_mean) if normalizes else (0.0, 0.0, 0.0),
        "std": _channels(processor.image_std) if normalizes else (1.0, 1.0, 1.0),
    }


def _channels(value: Any) -> list[float]:
    """One number for each channel, of a list or of one number for all."""
    return [float(number) for number in (value if isinstance(value, Sequence) else [value] * 3)]


def _peculiarity(processor: Any) -> str | None:
    """What `processor` does that a path does not; None if nothing."""
    kinds = type(processor).__mro__
    if PilBackend not in kinds:
        return "it is no Pillow processor of transformers"
    for kind in kinds[: kinds.index(PilBackend)]:
        own = [k for k, v in vars(kind).items() if inspect.isfunction(v) and k != "__init__"]
        if own:
            return f"{kind.__name__} defines {', '.join(own)}"
    if getattr(processor, "do_pad", None):
        return "it pads pictures"
    size = {k for k, v in dict(processor.size or {}).items() if v} if processor.do_resize else None
    if size not in (None, {"shortest_edge"}, {"height", "width"}):
        return f"its size is given by {', '.join(sorted(size)) or 'nothing'}"
    if processor.do_resize and not isinstance(processor.resample, int):
        return f"its resampling is {processor.resample!r}"
    return None


def _check_numbers(
    path: PixelPath, scale: float, mean: Sequence[float], std: Sequence[float]
) -> None:
    """Compare with the arithmetic of the processors for each byte."""
    rescaled = (_BYTES * scale).astype(np.float32)[:, None]
    expected = (rescaled - np.array(mean, np.float32)) / np.array(std, np.float32)
    every = torch.arange(256, dtype=torch.uint8)[:, None, None, None].expand(256, 3, 1, 1)
    if not np.array_equal(path(every)[:, :, 0, 0].numpy(), expected):
        raise ValueError(
            f"bytes times {scale!r} in float64 are not bytes / {1 / scale!r} in float32"
        )
