"""Addresses of remote files: what is one, how it is shown, what lies below one.

    s3://bucket/a.tar  gs://...  https://...  memory://...    whatever fsspec has a driver for
    pipe:<command>                                            what a shell command prints

Drivers for s3 and gs are packages of their own: s3fs, which the extra `s3` installs, and gcsfs.
Credentials, endpoints and headers come from where fsspec finds them: the environment, or
`~/.config/fsspec/*.json`.

`pipe:` runs the command in a shell with the rights of this process, as webdataset does. It is
taken from what the user gave as an input and from nowhere else: never from the data.
"""

import re
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

PIPE = "pipe:"
_LOCAL = ("file", "local")
_USER = re.compile(r"(?<=://)[^/]*@")
_URL = re.compile(r"(?P<scheme>[a-zA-Z][a-zA-Z0-9+.-]+):/{1,2}(?=[^/])")


def is_pipe(address: str | Path) -> bool:
    """Whether it is `pipe:<command>`."""
    return str(address).startswith(PIPE)


def is_url(address: str | Path) -> bool:
    """Whether it names a remote file or a pipe, not a path of this machine."""
    match = _URL.match(str(address))
    return is_pipe(address) or (match is not None and match["scheme"].lower() not in _LOCAL)


def url_text(address: str | Path) -> str:
    """The URL as text; `pathlib` folds its two slashes into one, which is undone."""
    text = str(address)
    return text if is_pipe(text) else _URL.sub(r"\g<scheme>://", text, count=1)


def scheme(url: str) -> str:
    return url.partition(":")[0].lower()


def is_http(url: str) -> bool:
    return scheme(url) in ("http", "https")


def shown(url: str) -> str:
    """`url` for messages: without a password, and without a query, which may hold a signature."""
    if is_http(url):
        url = urlsplit(url)._replace(query="", fragment="").geturl()
    return url if is_pipe(url) else _USER.sub("", url)


def join(url: str, relative: str) -> str:
    """The address of the file `relative` below `url`.

    Raises:
        ValueError: it would leave `url`.
    """
    parts = relative.split("/")
    if relative.startswith("/") or ".." in parts or "\\" in relative or is_url(relative):
        raise ValueError(f"{relative}: refused, it leads outside {shown(url)}")
    return f"{url.rstrip('/')}/{quote(relative) if is_http(url) else relative}"


def filesystem(url: str) -> tuple[Any, str]:
    """The fsspec driver and its path; made anew in a forked process, which drivers need.

    Raises:
        ValueError: there is no such driver, or its package is not installed.
    """
    import fsspec

    try:
        return fsspec.core.url_to_fs(url)
    except ImportError as error:
        raise ValueError(f"{shown(url)}: {error}") from error
    except ValueError as error:
        raise ValueError(f"{shown(url)}: no address that can be read ({error})") from error


def listing(url: str, pattern: str = "*") -> list[str]:
    """URLs of the files right below `url` that match `pattern`, sorted.

    Raises:
        ValueError: web servers do not say what they hold.
    """
    if is_http(url) or is_pipe(url):
        raise ValueError(
            f"{shown(url)}: a web server does not list its files; name them, for example "
            "https://host/{00000..00099}.tar"
        )
    driver, path = filesystem(url)
    driver.invalidate_cache(path)
    found = driver.glob(f"{path.rstrip('/')}/{pattern}", detail=True)
    names = (name for name, facts in found.items() if facts["type"] == "file")
    return sorted(f"{url.rstrip('/')}/{name.rsplit('/', 1)[-1]}" for name in names)


def is_directory(url: str) -> bool:
    """Whether files lie below `url`; never for web servers and pipes, which do not say."""
    if is_http(url) or is_pipe(url):
        return False
    driver, path = filesystem(url)
    driver.invalidate_cache(path)
    return bool(driver.isdir(path))
