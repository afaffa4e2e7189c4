"""Image sources to RGB pixels: files, members of tars, encoded bytes.

The format is told from the content, never from the suffix. Of an animation (GIF, WebP, APNG) the
first frame is taken. An orientation in the EXIF data is applied, transparency lies on white, and
16-bit grey is scaled to 8 bits.

Where pictures lie, and which may be opened, is said in `revision.records.image_source`.

Departs from haotian-liu/LLaVA, which ignores the orientation (`Image.open(...).convert("RGB")`).
"""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from revision.records.image_source import ImageRoot, OutsideRoot, read_source
from revision.records.record import ImageSource
from revision.remote import RemoteError

# Not every format that Pillow knows: some start other programs (EPS) or mean no picture.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF", "ICO")

Needed = Callable[[int, int], tuple[int, int]]
"""Of the width and height of a picture those that will be used of it."""


def load_image(
    source: ImageSource, *, image_root: ImageRoot = None, needed: Needed | None = None
) -> Image.Image:
    """Decode to RGB.

    A relative path is taken from `image_root` (default: the working directory). With `needed` a
    JPEG is decoded at 1/2, 1/4 or 1/8 of its size where that is not below what is needed of it.

    Raises:
        ValueError: missing, outside `image_root`, unreadable, truncated or with more pixels than
            `PIL.Image.MAX_IMAGE_PIXELS`; with the address.
        RemoteError: its server does not answer, which is no fault of the picture.
    """
    address = f"{len(source)} bytes" if isinstance(source, bytes) else source
    try:
        content = source if isinstance(source, bytes) else read_source(source, image_root)
        return _decode(content, needed)
    except FileNotFoundError as error:
        raise ValueError(f"{address}: missing image, no file {error.filename}") from error
    except (OutsideRoot, RemoteError):
        raise
    except Exception as error:  # decoders raise anything: OSError, SyntaxError, struct.error ...
        raise ValueError(
            f"{address}: unreadable image ({type(error).__name__}: {error})"
        ) from error


def check_header(path: Path) -> None:
    """Raise what a decoder raises where the header alone shows that a file cannot be read."""
    with Image.open(path, formats=FORMATS) as image:
        check_pixels(image)


def open_image(content: bytes) -> Image.Image:
    """The image of `content`, of which only the header has been read."""
    if not content:
        raise ValueError("it is empty, 0 bytes")
    try:
        return Image.open(io.BytesIO(content), formats=FORMATS)
    except UnidentifiedImageError:
        raise ValueError(
            f"no image of a known format, it begins with {content[:12]!r}; the formats are "
            f"{', '.join(FORMATS)}"
        ) from None


def _decode(content: bytes, needed: Needed | None) -> Image.Image:
    with open_image(content) as image:
        check_pixels(image)
        if needed is not None:
            image.draft(None, needed(*image.size))
        image.load()
        return _opaque(_eight_bits(_upright(image), image.format))


def check_pixels(image: Image.Image) -> None:
    """Pillow only warns up to twice its limit, and a batch holds many images."""
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and image.width * image.height > limit:
        raise ValueError(
            f"DecompressionBomb: {image.width} x {image.height} = {image.width * image.height} "
            f"pixels, the limit is {limit}; scale it down, or raise PIL.Image.MAX_IMAGE_PIXELS"
        )


def _upright(image: Image.Image) -> Image.Image:
    try:
        if image.getexif().get(ExifTags.Base.Orientation, 1) == 1:
            return image  # Pillow would copy it
        return ImageOps.exif_transpose(image)
    except Exception:  # damaged EXIF data raises anything, and the pixels are good
        return image


def _eight_bits(image: Image.Image, format: str | None) -> Image.Image:
    """16-bit grey keeps its high byte, as Pillow does for 16-bit colour; convert() would clip."""
    if image.mode == "F" or (image.mode == "I" and format != "PPM"):
        raise ValueError(
            f"32-bit grey (mode {image.mode}) has no defined white; save it with 8 or 16 bits"
        )
    if not image.mode.startswith("I"):
        return image
    values = np.asarray(image)
    grey = Image.fromarray((values >> 8).astype(np.uint8))
    transparent = image.info.get("transparency")
    if transparent is not None:
        grey.putalpha(Image.fromarray(np.where(values == transparent, 0, 255).astype(np.uint8)))
    return grey


def _opaque(image: Image.Image) -> Image.Image:
    """On white where it is transparent."""
    if not image.has_transparency_data:
        return image if image.mode == "RGB" else image.convert("RGB")
    layer = image.convert("RGBA")
    canvas = Image.new("RGBA", layer.size, "white")
    return Image.alpha_composite(canvas, layer).convert("RGB")
