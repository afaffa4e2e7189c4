"""Image sources to RGB pixels: files, members of tars, encoded bytes.

The format is told from the content, never from the suffix. Of an animation (GIF, WebP, APNG) the
first frame is taken. An orientation in the EXIF data is applied, transparency lies on white, and
16-bit grey is scaled to 8 bits.

With an image root nothing outside it is read: a path that leaves it, by `..`, by being absolute or
through a symbolic link, is refused before it is opened. Without one, paths are taken as they stand,
from the working directory, as paths on a command line are: give a root for data of strangers.

Departs from haotian-liu/LLaVA, which ignores the orientation (`Image.open(...).convert("RGB")`).
"""

import io
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from revision.records.record import ImageSource

# Not every format that Pillow knows: some start other programs (EPS) or mean no picture.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF", "ICO")

Needed = Callable[[int, int], tuple[int, int]]
"""Of the width and height of a picture those that will be used of it."""

_TAR_ADDRESS = re.compile(r"(?P<tar>.*\.tar)#(?P<member>.+)@(?P<offset>\d+)\+(?P<size>\d+)", re.S)


def load_image(
    source: ImageSource, *, image_root: Path | None = None, needed: Needed | None = None
) -> Image.Image:
    """Decode to RGB.

    A relative path is taken from `image_root` (default: the working directory). With `needed` a
    JPEG is decoded at 1/2, 1/4 or 1/8 of its size where that is not below what is needed of it.

    Raises:
        ValueError: missing, outside `image_root`, unreadable, truncated or with more pixels than
            `PIL.Image.MAX_IMAGE_PIXELS`; with the address.
    """
    address = f"{len(source)} bytes" if isinstance(source, bytes) else source
    try:
        content = source if isinstance(source, bytes) else read_source(source, image_root)
        return _decode(content, needed)
    except FileNotFoundError as error:
        raise ValueError(f"{address}: missing image, no file {error.filename}") from error
    except _OutsideRoot:
        raise
    except Exception as error:  # decoders raise anything: OSError, SyntaxError, struct.error ...
        raise ValueError(
            f"{address}: unreadable image ({type(error).__name__}: {error})"
        ) from error


class _OutsideRoot(ValueError):
    pass


def is_member(address: str) -> bool:
    """Whether this is the address of a tar member, `<tar>#<member>@<offset>+<size>`."""
    return _TAR_ADDRESS.fullmatch(address) is not None


def check_header(path: Path) -> None:
    """Raise what a decoder raises where the header alone shows that a file cannot be read."""
    with Image.open(path, formats=FORMATS) as image:
        _check_pixels(image)


def image_file(source: str, image_root: Path | None) -> Path:
    """The file that holds `source`: itself, or the tar of a member's address.

    Raises:
        ValueError: the file lies outside `image_root`, which would read what nobody gave out.
    """
    match = _TAR_ADDRESS.fullmatch(source)
    path = (image_root or Path()) / (match["tar"] if match else source)
    if image_root is None:
        return path
    resolved, root = path.resolve(), image_root.resolve()
    if not resolved.is_relative_to(root):
        raise _OutsideRoot(
            f"{source}: refused, it leads to {resolved}, outside the image root {root}; move the "
            "file there, or set image_root to a directory that holds all images"
        )
    return resolved


def read_source(source: str, image_root: Path | None) -> bytes:
    """The encoded bytes of a file or of a tar member.

    Raises:
        ValueError: outside `image_root`, no regular file, or a member that was cut off.
    """
    path = image_file(source, image_root)
    if path.exists() and not path.is_file():  # a pipe or a device would never end
        raise ValueError("not a file")
    match = _TAR_ADDRESS.fullmatch(source)
    if match is None:
        return path.read_bytes()
    offset, size = int(match["offset"]), int(match["size"])
    with path.open("rb") as file:
        num_bytes = file.seek(0, io.SEEK_END)
        if offset + size > num_bytes:
            raise ValueError(
                f"the member ends at byte {offset + size} of a tar of {num_bytes} bytes; "
                "it was cut or replaced"
            )
        file.seek(offset)
        return file.read(size)


def _decode(content: bytes, needed: Needed | None) -> Image.Image:
    if not content:
        raise ValueError("it is empty, 0 bytes")
    try:
        image = Image.open(io.BytesIO(content), formats=FORMATS)
    except UnidentifiedImageError:
        raise ValueError(
            f"no image of a known format, it begins with {content[:12]!r}; the formats are "
            f"{', '.join(FORMATS)}"
        ) from None
    with image:
        _check_pixels(image)
        if needed is not None:
            image.draft(None, needed(*image.size))
        image.load()
        return _opaque(_eight_bits(_upright(image), image.format))


def _check_pixels(image: Image.Image) -> None:
    """Pillow only warns up to twice its limit, and a batch holds many images."""
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and image.width * image.height > limit:
        raise ValueError(
            f"DecompressionBomb: {image.width} x {image.height} = {image.width * image.height} "
            f"pixels, the limit is {limit}; scale it down, or raise PIL.Image.MAX_IMAGE_PIXELS"
        )


def _upright(image: Image.Image) -> Image.Image:
    try:
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
        return image.convert("RGB")
    layer = image.convert("RGBA")
    canvas = Image.new("RGBA", layer.size, "white")
    return Image.alpha_composite(canvas, layer).convert("RGB")
