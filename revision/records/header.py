"""Size and mode of an image from its header, without decoding a pixel."""

from typing import NamedTuple

from revision.records.image import check_pixels, open_image
from revision.records.image_source import ImageRoot, read_source
from revision.records.record import ImageSource
from revision.remote import RemoteError


class ImageHeader(NamedTuple):
    """Sizes in pixels as stored, before any EXIF orientation; `encoding` is "PNG", "JPEG", ..."""

    width: int
    height: int
    mode: str
    encoding: str


def image_header(source: ImageSource, *, image_root: ImageRoot = None) -> ImageHeader:
    """The header of `source`, which is found where `load_image` finds it.

    Raises:
        ValueError: missing, refused, not an image or with too many pixels, with the address.
    """
    address = f"{len(source)} bytes" if isinstance(source, bytes) else source
    try:
        content = source if isinstance(source, bytes) else read_source(source, image_root)
        with open_image(content) as image:
            check_pixels(image)
            return ImageHeader(image.width, image.height, image.mode, str(image.format))
    except FileNotFoundError as error:
        raise ValueError(f"{address}: missing image, no file {error.filename}") from error
    except RemoteError:
        raise
    except Exception as error:  # decoders raise anything: OSError, SyntaxError, struct.error ...
        reason = f"{type(error).__name__}: {error}"
        raise ValueError(f"{address}: unreadable image ({reason})") from error
