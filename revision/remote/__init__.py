"""Files that lie elsewhere: object stores, web servers, commands; read as if they lay here.

`open_stream` reads one from any byte, over broken connections. `local_copy` keeps whole files in a
cache on this machine, which its processes share; `open_shared` reads there what several processes
read. `fingerprint` tells whether one has changed.
"""

from revision.remote.address import is_pipe, is_url, join, listing, shown, url_text
from revision.remote.cache import LocalCopy, local_copy, open_shared
from revision.remote.connection import RemoteError
from revision.remote.stream import Retry, exists, fingerprint, open_stream, read_all

__all__ = [
    "LocalCopy",
    "RemoteError",
    "Retry",
    "exists",
    "fingerprint",
    "is_pipe",
    "is_url",
    "join",
    "listing",
    "local_copy",
    "open_shared",
    "open_stream",
    "read_all",
    "shown",
    "url_text",
]
