"""Read feature shards: rows mapped from the file, records parsed on demand.

A set may lie on a server (`s3://`, `https://` ...): see `revision.shards.remote_set`.
"""

import io
import json
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from revision.records import Record
from revision.remote import exists, is_pipe, is_url, url_text
from revision.shards.layout import (
    GRID_ROWS,
    MOMENTS_NAME,
    SCHEMA_VERSION,
    BlockRef,
    Header,
    Rows,
    ShardInfo,
    make_info,
    missing,
    open_shard,
    read_member,
    tar_members,
    truncated,
)
from revision.shards.remote_set import RemoteSet
from revision.sums import MomentSums


def shard_info(path: str | Path) -> ShardInfo:
    """The summary that an existing shard carries; its rows are not read."""
    path = Path(path)
    offset, size = tar_members(path)["shard.json"]
    summary = json.loads(read_member(path, offset, size))
    return make_info(path.name, summary, path.stat().st_size)


def shard_sums(path: str | Path) -> MomentSums:
    """The exact sums over its rows that a shard carries.

    Raises:
        ValueError: the shard was written before there were any.
    """
    path = Path(path)
    members = tar_members(path)
    if MOMENTS_NAME not in members:
        raise ValueError(f"{path}: no {MOMENTS_NAME}; its rows must be read to know their moments")
    stored = np.load(io.BytesIO(read_member(path, *members[MOMENTS_NAME])), allow_pickle=False)
    return MomentSums.from_array(stored)


def is_feature_set(directory: str | Path) -> bool:
    """Whether a complete feature set lies in `directory`, here or on a server."""
    if not is_url(directory):
        return (Path(directory) / "header.json").is_file()
    return not is_pipe(directory) and exists(f"{url_text(directory).rstrip('/')}/header.json")


def read_header(directory: str | Path) -> Header:
    """The header of a complete feature set.

    Raises:
        ValueError: `directory` is not a feature set, is unfinished, or has another schema.
    """
    path = f"{directory}/header.json"
    content = _header_content(directory)
    try:
        fields = json.loads(content)
        version = fields["schema_version"]
        shards = tuple(make_info(s["name"], s, s["num_bytes"]) for s in fields.get("shards", ()))
        header = Header(**fields | {"shards": shards})
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: not a feature set header ({error!r})") from error
    if version != SCHEMA_VERSION:
        raise ValueError(f"{path}: schema version {version}, this code reads {SCHEMA_VERSION}")
    return header


def _header_content(directory: str | Path) -> bytes:
    if is_url(directory):
        return RemoteSet(directory).content("header.json")
    path = Path(directory) / "header.json"
    if not path.is_file():
        found = len(list(path.parent.glob("[0-9]*.tar")))
        state = f"unfinished: {found} shards, no header.json" if found else "not a feature set"
        raise ValueError(f"{directory}: {state}; run the command that writes it (embed.py, ...)")
    return path.read_bytes()


class ShardReader:
    """A complete feature set; holds an index of it, never its rows. Can be pickled to workers.

    `directory` may be a URL. Its shards are then fetched one by one, when they are read.
    """

    def __init__(self, directory: str | Path) -> None:
        self.directory = Path(directory)
        self._remote = RemoteSet(directory) if is_url(directory) else None
        self.header = read_header(directory)
        self.num_rows, self.num_records = self.header.num_rows, self.header.num_records
        self.dim = self.header.dim
        self._infos = {info.name: info for info in self.header.shards}
        if self._remote is None:
            for info in self.header.shards:
                _check_size(self.directory / info.name, info.num_bytes)
        self.blocks = [
            BlockRef(info.name, index, rows, records)
            for info in self.header.shards
            for index, (rows, records) in enumerate(info.blocks)
        ]
        self._ends = np.cumsum([block.rows for block in self.blocks], dtype=np.int64)
        ends = accumulate(len(info.blocks) for info in self.header.shards)
        self._shard_blocks = {
            info.name: range(end - len(info.blocks), end)
            for info, end in zip(self.header.shards, ends, strict=True)
        }
        self._index: dict[str, dict[str, tuple[int, int]]] = {}
        self._places: dict[int, tuple[int, np.dtype]] = {}

    def blocks_of(self, shard: str) -> range:
        """The numbers of the blocks in the shard file `shard`."""
        return self._shard_blocks[shard]

    def shard_path(self, shard: str) -> Path:
        """The shard file `shard` on this machine; of a remote set a copy, until the next ones."""
        if self._remote is None:
            return self.directory / shard
        return self._remote.shard(self._infos[shard]).path

    def quarantine(self) -> bytes:
        """`quarantine.jsonl`: what was refused when the set was made, one JSON object a line."""
        if self._remote is None:
            return (self.directory / "quarantine.jsonl").read_bytes()
        return self._remote.content("quarantine.jsonl")

    def _locate(self, block: int, member: str) -> tuple[Path, int, int]:
        ref = self.blocks[block]
        path = self.shard_path(ref.shard)
        if ref.shard not in self._index:
            self._index[ref.shard] = tar_members(path)
        return path, *self._index[ref.shard][f"{ref.index:06d}.{member}"]

    def features(self, block: int) -> Rows:
        """The rows of a block, mapped from the file and not copied."""
        path, offset, _ = self._locate(block, "features.npy")
        mapped = _map_npy(path, offset, (self.blocks[block].rows, self.dim))
        if self._remote is not None and isinstance(mapped, np.memmap):
            shard = self._infos[self.blocks[block].shard]
            mapped.copy_in_use = self._remote.shard(shard)  # type: ignore[attr-defined]
        return mapped

    def rows(self, start: int, stop: int) -> Rows:
        """Rows `start` to `stop` of the set, read into memory: a mapped file would stay in it."""
        pieces = []
        block = int(np.searchsorted(self._ends, start, side="right"))
        while start < stop:
            first = int(self._ends[block]) - self.blocks[block].rows
            pieces.append(self.read_features(block, start - first, stop - first))
            start += len(pieces[-1])
            block += 1
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)

    def read_features(self, block: int, start: int, stop: int) -> Rows:
        """Rows `start` to `stop` of a block (or to its end), read into memory."""
        if block not in self._places:
            mapped = self.features(block)
            self._places[block] = getattr(mapped, "offset", 0), mapped.dtype
        ref, (offset, dtype) = self.blocks[block], self._places[block]
        count = min(stop, ref.rows) - start
        skipped = start * self.dim * dtype.itemsize
        path = self.shard_path(ref.shard)
        with open_shard(path) as file:
            numbers = np.fromfile(file, dtype, count * self.dim, offset=offset + skipped)
        if len(numbers) != count * self.dim:
            found = f"{len(numbers)} of {count * self.dim} numbers at {offset + skipped}"
            raise ValueError(truncated(path, found))
        return numbers.reshape(count, self.dim)

    def sums(self) -> MomentSums | None:
        """Exact sums over all rows, as they were stored; None for sets that store none."""
        shards = self.header.shards
        if any(info.moments is None for info in shards):
            return None
        stored = (shard_sums(self.shard_path(info.name)) for info in shards)
        return sum(stored, MomentSums.zero(self.dim))

    def record_bytes(self, block: int) -> bytes:
        """The records of a block as they are stored: one line each."""
        return read_member(*self._locate(block, "records.jsonl"))

    def record_lines(self, block: int) -> list[bytes]:
        """The lines of `record_bytes`, for callers that need a few of them."""
        return self.record_bytes(block).splitlines()

    def _lines(self, block: int) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.record_lines(block)]

    def records(self, block: int) -> list[Record]:
        """The records of a block, in the order of their rows."""
        return [Record.from_json(fields) for fields in self._lines(block)]

    def row_counts(self, block: int) -> Int[np.ndarray, " records"]:
        """How many consecutive rows of the block belong to each record."""
        return np.array([fields.get("num_rows", 1) for fields in self._lines(block)], np.int64)

    def row_ids(self) -> Iterator[str]:
        """The id of the record that each row belongs to, in the order of the rows."""
        for block in range(len(self.blocks)):
            yield from self.block_row_ids(block)

    def block_row_ids(self, block: int) -> list[str]:
        """The ids of `row_ids` for the rows of one block."""
        counted = zip(self.records(block), self.row_counts(block), strict=True)
        return [record.id for record, count in counted for _ in range(count)]

    def iter_rows(self, batch_rows: int = GRID_ROWS) -> Iterator[Rows]:
        """All rows in order, in batches of `batch_rows` whatever the blocks are (the last less)."""
        for start in range(0, self.num_rows, batch_rows):
            yield self.rows(start, min(start + batch_rows, self.num_rows))


def _check_size(path: Path, num_bytes: int) -> None:
    size = path.stat().st_size if path.is_file() else None
    if size is None:
        raise ValueError(missing(path))
    if size != num_bytes:
        raise ValueError(truncated(path, f"{size} bytes, the header says {num_bytes}"))


def _map_npy(path: Path, offset: int, shape: tuple[int, int]) -> Rows:
    with open_shard(path) as file:
        file.seek(offset)
        if np.lib.format.read_magic(file) != (1, 0):
            raise ValueError(f"{path}: unknown npy version at byte {offset}, expected (1, 0)")
        found, fortran, dtype = np.lib.format.read_array_header_1_0(file)
        start = file.tell()
    if found != shape or fortran:
        raise ValueError(f"{path}: features of shape {found} at byte {offset}, expected {shape}")
    if not shape[0]:
        return np.empty(shape, dtype)
    return np.memmap(path, dtype, mode="r", offset=start, shape=shape)
