"""Where the bytes of a picture are: files, members of tars, the same on a server.

With an image root nothing outside it is read: a path that leaves it, by `..`, by being absolute or
through a symbolic link, is refused before it is opened. Without one, paths are taken as they stand,
from the working directory, as paths on a command line are: give a root for data of strangers.

The root may be a URL; pictures are then names below it. A URL in the data is opened only below such
a root: data of strangers could otherwise send requests wherever this machine reaches.
"""

import io
import re
from pathlib import Path
from urllib.parse import unquote

from revision.remote import RemoteError, is_pipe, is_url, join, read_all, url_text

ImageRoot = Path | str | None
_TAR_ADDRESS = re.compile(r"(?P<tar>.*\.tar)#(?P<member>.+)@(?P<offset>\d+)\+(?P<size>\d+)", re.S)
_MAX_REMOTE_BYTES = 2**28


class OutsideRoot(ValueError):
    """A picture that data of strangers may not name."""


def is_member(address: str) -> bool:
    """Whether this is the address of a tar member, `<tar>#<member>@<offset>+<size>`."""
    return _TAR_ADDRESS.fullmatch(address) is not None


def image_file(source: str, image_root: ImageRoot) -> Path:
    """The file that holds `source`: itself, or the tar of a member's address.

    Raises:
        ValueError: the file lies outside `image_root`, which would read what nobody gave out.
    """
    match = _TAR_ADDRESS.fullmatch(source)
    path = Path(image_root or "") / (match["tar"] if match else source)
    if image_root is None:
        return path
    resolved, root = path.resolve(), Path(image_root).resolve()
    if not resolved.is_relative_to(root):
        raise OutsideRoot(
            f"{source}: refused, it leads to {resolved}, outside the image root {root}; move the "
            "file there, or set image_root to a directory that holds all images"
        )
    return resolved


def read_source(source: str, image_root: ImageRoot) -> bytes:
    """The encoded bytes of a file or of a tar member.

    Raises:
        ValueError: outside `image_root`, no regular file, or a member that was cut off.
        FileNotFoundError: there is none.
        RemoteError: the server does not answer; that says nothing about the picture.
    """
    if is_url(source) or (image_root is not None and is_url(image_root)):
        return _remote_bytes(source, image_root)
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


def remote_file(source: str, image_root: ImageRoot) -> str:
    """The URL that holds `source`: itself, or the tar of a member's address.

    Raises:
        ValueError: no URL as `image_root`, or `source` lies outside it.
    """
    match = _TAR_ADDRESS.fullmatch(source)
    name = match["tar"] if match else source
    if image_root is None or not is_url(image_root) or is_pipe(image_root):
        raise OutsideRoot(
            f"{source[:200]}: refused, an address in the data is opened only below an image_root "
            "that is a URL; set it, or fetch the pictures"
        )
    root = url_text(image_root).rstrip("/")
    inside = name.removeprefix(f"{root}/")
    try:
        url = join(root, inside)
        if inside != name:  # a URL, in which any character may be written as %..
            join(root, unquote(inside))
    except ValueError as error:
        raise OutsideRoot(f"{error}; set image_root to one that holds all images") from None
    return url if inside == name else name


def _remote_bytes(source: str, image_root: ImageRoot) -> bytes:
    url, match = remote_file(source, image_root), _TAR_ADDRESS.fullmatch(source)
    offset, size = (int(match["offset"]), int(match["size"])) if match else (0, _MAX_REMOTE_BYTES)
    try:
        content = read_all(url, offset=offset, max_bytes=size)
    except RemoteError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            raise FileNotFoundError(2, "no such file", source) from error
        raise
    if match and len(content) != size:
        raise ValueError(f"the member has {len(content)} of {size} bytes; the tar was cut")
    if not match and len(content) == size:
        raise ValueError(f"{size} bytes or more, which is no picture")
    return content
