"""A feature set on a server: its shards come to a cache of this machine when they are read.

Every shard is compared with the header when it arrives: size, and SHA-256 of its content. The cache
(`revision.remote.cache`) is shared by the processes of the machine. A copy that is open here, or of
which rows are mapped, is not removed from it.
"""

import hashlib
import tarfile
from pathlib import Path

from revision.remote import LocalCopy, RemoteError, local_copy, read_all, shown, url_text
from revision.shards.layout import ShardInfo, tar_members

_MAX_TEXT_BYTES = 2**30


class RemoteSet:
    """The files of a set below `url`. Can be pickled to workers, without what is held open."""

    def __init__(self, url: str | Path) -> None:
        self.url = url_text(url).rstrip("/")
        self._held: tuple[str, LocalCopy] | None = None  # the last shard; its file stays

    def __reduce__(self) -> tuple[type["RemoteSet"], tuple[str]]:
        return RemoteSet, (self.url,)

    def shard(self, info: ShardInfo) -> LocalCopy:
        """A complete and verified copy of a shard.

        Raises:
            ValueError: the shard is gone, is not the one in the header, or its server fails.
        """
        if self._held is None or self._held[0] != info.name:
            self._held = None  # before the next one comes, which may need its place
            self._held = info.name, self._fetched(info)
        return self._held[1]

    def _fetched(self, info: ShardInfo) -> LocalCopy:
        try:
            return local_copy(
                f"{self.url}/{info.name}",
                num_bytes=info.num_bytes,
                check=lambda path: copy_problem(path, info),
                version=info.sha256,
            )
        except ValueError as error:
            raise ValueError(
                f"shard {info.name} of {shown(self.url)} cannot be read: {error}; set that right "
                "and run the same command again"
            ) from error

    def content(self, name: str) -> bytes:
        """A small file of the set.

        Raises:
            ValueError: it is not there, or its server fails.
        """
        try:
            return read_all(f"{self.url}/{name}", max_bytes=_MAX_TEXT_BYTES)
        except RemoteError as error:
            raise ValueError(str(error)) from error


def copy_problem(path: Path, info: ShardInfo) -> str:
    """How a file differs from the shard that the header tells of; empty when it does not."""
    try:
        end = tar_members(path)["shard.json"][0] - tarfile.BLOCKSIZE
    except ValueError:
        return "truncated, or not a feature shard"
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for start in range(0, end, 2**20):
            digest.update(file.read(min(2**20, end - start)))
    if digest.hexdigest() == info.sha256:
        return ""
    return f"sha256 {digest.hexdigest()[:12]} of the content, the header says {info.sha256[:12]}"
