"""What a feature set consists of: its header, shards, blocks, members, and which rows are good."""

import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
from jaxtyping import Bool, Float

from revision.sums import MIN_NORM

SCHEMA_VERSION = 1
GRID_ROWS = 4096
# float16 rows of width 1280 have norms within 2e-4 of 1, bfloat16-divided public ones within 4e-3.
UNIT_NORM_TOLERANCE = 1e-3
DTYPES = ("float16", "float32", "float64")
MOMENTS_NAME = "moments.npy"

Kind = Literal["image", "text"]
Rows = Float[np.ndarray, "rows dim"]


@dataclass(frozen=True)
class ShardInfo:
    """Summary of one shard. `sha256` covers the file up to its last member, `shard.json`.

    `moments` names the member with the exact sums over the rows; older shards have none.
    `num_truncated` texts were longer than the encoder reads; None where nobody counted.
    """

    name: str
    num_rows: int
    num_records: int
    blocks: tuple[tuple[int, int], ...]
    num_rejected: int
    dim: int
    dtype: str
    unit_norm: bool
    sha256: str
    num_bytes: int
    moments: str | None = None
    num_truncated: int | None = None


@dataclass(frozen=True)
class Header:
    """What a feature set is: written once every shard is there."""

    schema_version: int
    kind: Kind
    dim: int
    dtype: str
    unit_norm: bool
    num_rows: int
    num_records: int
    num_rejected: int
    shards: tuple[ShardInfo, ...]
    encoder: dict[str, Any]
    source: dict[str, Any]
    alignment: dict[str, Any] | None


@dataclass(frozen=True)
class BlockRef:
    """Block `index` of the shard file `shard`, with its numbers of rows and records."""

    shard: str
    index: int
    rows: int
    records: int


def check_width(rows: np.ndarray, *, dim: int, address: str) -> None:
    """Refuse rows of another width, which would pair them with another encoder's."""
    if rows.ndim != 2 or rows.shape[1] != dim:
        raise ValueError(
            f"{address}: features of shape {rows.shape}, expected (rows, {dim}); "
            "they come from another encoder or layer"
        )


def check_rows(rows: np.ndarray, *, dim: int, address: str) -> Bool[np.ndarray, " rows"]:
    """True for each row that no direction can be read from: not finite, or of norm below 1e-6.

    Raises:
        ValueError: the rows are not `dim` wide.
    """
    check_width(rows, dim=dim, address=address)
    norms = np.linalg.norm(rows.astype(np.float64, copy=False), axis=1)
    return ~(norms >= MIN_NORM) | ~np.isfinite(norms)


def shard_name(index: int) -> str:
    """The file name of shard `index`."""
    return f"{index:05d}.tar"


def make_info(name: str, summary: dict[str, Any], num_bytes: int) -> ShardInfo:
    blocks = tuple((int(rows), int(records)) for rows, records in summary["blocks"])
    return ShardInfo(**summary | {"name": name, "blocks": blocks, "num_bytes": num_bytes})


def tar_members(path: Path) -> dict[str, tuple[int, int]]:
    """Offset and size of every member.

    Raises:
        ValueError: the shard is missing, truncated, or not a feature shard.
    """
    try:
        with tarfile.open(path, "r:") as tar:
            members = {m.name: (m.offset_data, m.size) for m in tar}
    except FileNotFoundError as error:
        raise ValueError(missing(path)) from error
    except tarfile.TarError as error:
        raise ValueError(truncated(path, str(error))) from error
    if "shard.json" not in members:
        raise ValueError(truncated(path, "no shard.json at its end"))
    return members


def truncated(path: Path, reason: str) -> str:
    return (
        f"{path}: truncated or not a feature shard ({reason}); delete it and run the command that "
        "wrote it again"
    )


def open_shard(path: Path) -> BinaryIO:
    """Open a shard to read it; it may have vanished since the set was opened.

    Raises:
        ValueError: it is not there.
    """
    try:
        return path.open("rb")
    except FileNotFoundError as error:
        raise ValueError(missing(path)) from error


def missing(path: Path) -> str:
    return f"{path}: missing shard; run the command that wrote the set"


def read_member(path: Path, offset: int, size: int) -> bytes:
    with open_shard(path) as file:
        file.seek(offset)
        content = file.read(size)
    if len(content) != size:
        raise ValueError(truncated(path, f"{len(content)} of {size} bytes at {offset}"))
    return content
