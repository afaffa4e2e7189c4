"""Image sources to RGB pixels: files, members of tars, encoded bytes."""

import io
import re
from pathlib import Path

from PIL import Image

from revision.records.record import ImageSource

_TAR_ADDRESS = re.compile(r"(?P<tar>.*\.tar)#(?P<member>.+)@(?P<offset>\d+)\+(?P<size>\d+)")


def load_image(source: ImageSource, *, image_root: Path | None = None) -> Image.Image:
    """Decode to RGB; transparent pixels are composited on white.

    A relative path is taken from `image_root` (default: the working directory).

    Raises:
        ValueError: missing, unreadable, truncated or absurdly large, with the address.
    """
    address = f"{len(source)} bytes" if isinstance(source, bytes) else source
    try:
        content = source if isinstance(source, bytes) else _read_source(source, image_root)
        with Image.open(io.BytesIO(content)) as image:
            return _opaque(image)
    except FileNotFoundError as error:
        raise ValueError(f"{address}: missing image, no file {error.filename}") from error
    except Exception as error:  # decoders raise anything: OSError, SyntaxError, struct.error ...
        raise ValueError(
            f"{address}: unreadable image ({type(error).__name__}: {error})"
        ) from error


def _read_source(source: str, image_root: Path | None) -> bytes:
    match = _TAR_ADDRESS.fullmatch(source)
    path = (image_root or Path()) / (match["tar"] if match else source)
    if match is None:
        return path.read_bytes()
    with path.open("rb") as file:
        file.seek(int(match["offset"]))
        return file.read(int(match["size"]))


def _opaque(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):  # 16-bit grey: keep the high byte, convert() would clip
        image = image.point(lambda value: value / 256).convert("L")
    if not image.has_transparency_data:
        return image.convert("RGB")
    layer = image.convert("RGBA")
    canvas = Image.new("RGBA", layer.size, "white")
    return Image.alpha_composite(canvas, layer).convert("RGB")
