"""Feature shards: rows of features in webdataset tars, each block beside its records.

Written by `embed.py`, `align.py` and `scripts/convert.py`, read by `align.py` and `train.py`.

    header.json         written last: its presence says that the set is complete
    00000.tar ...       000000.features.npy (N x D), 000000.records.jsonl, 000001.features.npy, ...
                        rejected.jsonl, shard.json
    quarantine.jsonl    the rejections of all shards

A record line is `Record.to_json()` and, where it is not 1, `num_rows`: how many feature rows of
the block belong to it (0 for a text-only record, k for k images). Departs from "one line per row"
so that a record with several images is stored once. `shard.json` holds the counts and the digest
of everything before it, so that a resumed run asks a shard for its summary without reading it.

A shard is written to a temporary name, fsynced and renamed: it exists whole or not at all.
"""

import hashlib
import io
import json
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from revision.files import explained, remove_leftovers, replacing, write_bytes
from revision.records import Record, Rejection, json_line

SCHEMA_VERSION = 1
GRID_ROWS = 4096
MIN_NORM = 1e-6
# float16 rows of width 1280 have norms within 2e-4 of 1, bfloat16-divided public ones within 4e-3.
UNIT_NORM_TOLERANCE = 1e-3
DTYPES = ("float16", "float32", "float64")

Kind = Literal["image", "text"]
Rows = Float[np.ndarray, "rows dim"]


@dataclass(frozen=True)
class ShardInfo:
    """Summary of one shard. `sha256` covers the file up to its last member, `shard.json`."""

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


class BlockRef(NamedTuple):
    """Block `index` of the shard file `shard`, with its numbers of rows and records."""

    shard: str
    index: int
    rows: int
    records: int


def check_rows(rows: np.ndarray, *, dim: int, address: str) -> Bool[np.ndarray, " rows"]:
    """True for each row that no direction can be read from: not finite, or of norm below 1e-6.

    Raises:
        ValueError: the rows are not `dim` wide, which would pair them with another encoder's.
    """
    if rows.ndim != 2 or rows.shape[1] != dim:
        raise ValueError(
            f"{address}: features of shape {rows.shape}, expected (rows, {dim}); "
            "they come from another encoder or layer"
        )
    norms = np.linalg.norm(rows.astype(np.float64, copy=False), axis=1)
    return ~(norms >= MIN_NORM) | ~np.isfinite(norms)


def shard_name(index: int) -> str:
    """The file name of shard `index`."""
    return f"{index:05d}.tar"


class _DigestFile:
    """What `tarfile` needs of a file, keeping the digest of all that was written."""

    def __init__(self, file: IO[bytes], path: Path) -> None:
        self._file, self._path = file, path
        self._digest, self._position = hashlib.sha256(), 0

    def write(self, content: bytes) -> int:
        with explained(self._path):
            self._file.write(content)
        self._digest.update(content)
        self._position += len(content)
        return len(content)

    def tell(self) -> int:
        return self._position

    def hexdigest(self) -> str:
        return self._digest.hexdigest()


class ShardWriter:
    """Write shard `index` of the feature set in `directory`; nothing appears on an exception.

    Example:
        with ShardWriter(directory, 0, dim=256, dtype="float16") as writer:
            writer.add_block(rows, records)
        writer.info.num_rows
    """

    info: ShardInfo

    def __init__(self, directory: str | Path, index: int, dim: int, dtype: str) -> None:
        if dtype not in DTYPES:
            raise ValueError(f"features are stored as one of {DTYPES}, got {dtype!r}")
        self.path = Path(directory) / shard_name(index)
        self.dim, self.dtype = dim, dtype
        self._blocks: list[tuple[int, int]] = []
        self._rejections: list[Rejection] = []
        self._norm_error = 0.0
        self._stack = ExitStack()

    def __enter__(self) -> "ShardWriter":
        raw = self._stack.enter_context(replacing(self.path))
        self._file = _DigestFile(raw, self.path)
        # USTAR without times or owners: the same rows give the same bytes.
        self._tar = tarfile.TarFile(mode="w", fileobj=self._file, format=tarfile.USTAR_FORMAT)  # type: ignore[arg-type]
        return self

    def add_block(
        self,
        features: Rows,
        records: Sequence[Record],
        rows_per_record: Sequence[int] | None = None,
    ) -> None:
        """Append a block. `rows_per_record` (default: 1 each) must add up to the rows.

        Raises:
            ValueError: wrong width, counts that do not match, a row that is not finite or zero.
        """
        counts = (
            [1] * len(records) if rows_per_record is None else [int(n) for n in rows_per_record]
        )
        address = f"{self.path} block {len(self._blocks)}"
        _check_counts(features, records, counts, address)
        if not records:
            return
        stored = np.ascontiguousarray(features, dtype=self.dtype)
        self._check_rows(stored, records, counts, address)
        number = f"{len(self._blocks):06d}"
        lines = (
            json_line(record.to_json() | ({} if count == 1 else {"num_rows": count}))
            for record, count in zip(records, counts, strict=True)
        )
        self._add(f"{number}.features.npy", _npy_bytes(stored))
        self._add(f"{number}.records.jsonl", b"".join(lines))
        self._blocks.append((len(stored), len(records)))

    def _check_rows(
        self, stored: Rows, records: Sequence[Record], counts: list[int], address: str
    ) -> None:
        bad = check_rows(stored, dim=self.dim, address=address)
        if bad.any():
            row = int(np.flatnonzero(bad)[0])
            owner = records[int(np.searchsorted(np.cumsum(counts), row, side="right"))]
            raise ValueError(
                f"{address}: {int(bad.sum())} of {len(stored)} rows are zero or not finite as "
                f"{self.dtype}, first row {row} of record {owner.id!r}; reject these records"
            )
        if len(stored):
            norms = np.linalg.norm(stored.astype(np.float64), axis=1)
            self._norm_error = max(self._norm_error, float(np.abs(norms - 1).max()))

    def reject(self, rejection: Rejection) -> None:
        """Keep an entry that has no feature, for `quarantine.jsonl`."""
        self._rejections.append(rejection)

    def _add(self, name: str, content: bytes) -> None:
        member = tarfile.TarInfo(name)
        member.size = len(content)
        self._tar.addfile(member, io.BytesIO(content))

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._stack:
            if error is not None:
                raise error  # `replacing` sees it and removes the temporary file
            self._finish()

    def _finish(self) -> None:
        self._add("rejected.jsonl", b"".join(json_line(asdict(r)) for r in self._rejections))
        summary = {
            "num_rows": sum(rows for rows, _ in self._blocks),
            "num_records": sum(records for _, records in self._blocks),
            "blocks": self._blocks,
            "num_rejected": len(self._rejections),
            "dim": self.dim,
            "dtype": self.dtype,
            "unit_norm": self._norm_error <= UNIT_NORM_TOLERANCE,
            "sha256": self._file.hexdigest(),
        }
        self._add("shard.json", json_line(summary))
        self._tar.close()
        self.info = _info(self.path.name, summary, self._file.tell())


def _check_counts(
    features: np.ndarray, records: Sequence[Record], counts: list[int], address: str
) -> None:
    if len(counts) != len(records) or min(counts, default=0) < 0:
        raise ValueError(f"{address}: {len(counts)} row counts for {len(records)} records")
    if sum(counts) != len(features):
        raise ValueError(
            f"{address}: {len(features)} feature rows but {sum(counts)} rows claimed by "
            f"{len(records)} records; rows would belong to the wrong records"
        )


def _npy_bytes(rows: Rows) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, rows, allow_pickle=False)
    return buffer.getvalue()


def _info(name: str, summary: dict[str, Any], num_bytes: int) -> ShardInfo:
    blocks = tuple((int(rows), int(records)) for rows, records in summary["blocks"])
    return ShardInfo(**summary | {"name": name, "blocks": blocks, "num_bytes": num_bytes})


def _members(path: Path) -> dict[str, tuple[int, int]]:
    """Offset and size of every member.

    Raises:
        ValueError: the shard is missing, truncated, or not a feature shard.
    """
    try:
        with tarfile.open(path, "r:") as tar:
            members = {m.name: (m.offset_data, m.size) for m in tar}
    except FileNotFoundError as error:
        raise ValueError(f"{path}: missing shard; run the command that wrote the set") from error
    except tarfile.TarError as error:
        raise ValueError(_truncated(path, str(error))) from error
    if "shard.json" not in members:
        raise ValueError(_truncated(path, "no shard.json at its end"))
    return members


def _truncated(path: Path, reason: str) -> str:
    return (
        f"{path}: truncated or not a feature shard ({reason}); delete it and run the command that "
        "wrote it again"
    )


def _read_member(path: Path, offset: int, size: int) -> bytes:
    with open(path, "rb") as file:
        file.seek(offset)
        content = file.read(size)
    if len(content) != size:
        raise ValueError(_truncated(path, f"{len(content)} of {size} bytes at {offset}"))
    return content


def shard_info(path: str | Path) -> ShardInfo:
    """The summary that an existing shard carries; its rows are not read."""
    path = Path(path)
    offset, size = _members(path)["shard.json"]
    summary = json.loads(_read_member(path, offset, size))
    return _info(path.name, summary, path.stat().st_size)


def write_header(
    directory: str | Path,
    *,
    kind: Kind,
    encoder: dict[str, Any],
    source: dict[str, Any],
    num_shards: int,
    alignment: dict[str, Any] | None = None,
) -> Header:
    """Declare the set complete: write `quarantine.jsonl`, then `header.json`.

    Raises:
        ValueError: a shard is missing, or the shards differ in width or dtype.
    """
    directory = Path(directory)
    infos = tuple(shard_info(directory / shard_name(k)) for k in range(num_shards))
    formats = {(info.dim, info.dtype) for info in infos}
    if len(formats) != 1:
        raise ValueError(
            f"{directory}: shards of (dim, dtype) {sorted(formats)}, expected exactly one; "
            "write the set into an empty directory"
        )
    (dim, dtype) = formats.pop()
    remove_leftovers(directory)
    header = Header(
        schema_version=SCHEMA_VERSION,
        kind=kind,
        dim=dim,
        dtype=dtype,
        unit_norm=all(info.unit_norm for info in infos),
        num_rows=sum(info.num_rows for info in infos),
        num_records=sum(info.num_records for info in infos),
        num_rejected=sum(info.num_rejected for info in infos),
        shards=infos,
        encoder=encoder,
        source=source,
        alignment=alignment,
    )
    with replacing(directory / "quarantine.jsonl") as file:
        for info in infos:
            path = directory / info.name
            with explained(directory / "quarantine.jsonl"):
                file.write(_read_member(path, *_members(path)["rejected.jsonl"]))
    write_bytes(directory / "header.json", json.dumps(asdict(header), indent=1).encode())
    return header


def read_header(directory: str | Path) -> Header:
    """The header of a complete feature set.

    Raises:
        ValueError: `directory` is not a feature set, is unfinished, or has another schema.
    """
    directory = Path(directory)
    path = directory / "header.json"
    if not path.is_file():
        found = len(list(directory.glob("[0-9]*.tar")))
        state = f"unfinished: {found} shards, no header.json" if found else "not a feature set"
        raise ValueError(f"{directory}: {state}; run the command that writes it (embed.py, ...)")
    try:
        fields = json.loads(path.read_bytes())
        version = fields["schema_version"]
        shards = tuple(_info(s["name"], s, s["num_bytes"]) for s in fields.get("shards", ()))
        header = Header(**fields | {"shards": shards})
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: not a feature set header ({error!r})") from error
    if version != SCHEMA_VERSION:
        raise ValueError(f"{path}: schema version {version}, this code reads {SCHEMA_VERSION}")
    return header


class ShardReader:
    """A complete feature set; holds an index of it, never its rows. Can be pickled to workers."""

    def __init__(self, directory: str | Path) -> None:
        self.directory = Path(directory)
        self.header = read_header(self.directory)
        self.num_rows, self.num_records = self.header.num_rows, self.header.num_records
        self.dim = self.header.dim
        for info in self.header.shards:
            _check_size(self.directory / info.name, info.num_bytes)
        self.blocks = [
            BlockRef(info.name, index, rows, records)
            for info in self.header.shards
            for index, (rows, records) in enumerate(info.blocks)
        ]
        self._index: dict[str, dict[str, tuple[int, int]]] = {}

    def _locate(self, block: int, member: str) -> tuple[Path, int, int]:
        ref = self.blocks[block]
        path = self.directory / ref.shard
        if ref.shard not in self._index:
            self._index[ref.shard] = _members(path)
        return path, *self._index[ref.shard][f"{ref.index:06d}.{member}"]

    def features(self, block: int) -> Rows:
        """The rows of a block, mapped from the file and not copied."""
        path, offset, _ = self._locate(block, "features.npy")
        return _map_npy(path, offset, (self.blocks[block].rows, self.dim))

    def _lines(self, block: int) -> list[dict[str, Any]]:
        content = _read_member(*self._locate(block, "records.jsonl"))
        return [json.loads(line) for line in content.splitlines()]

    def records(self, block: int) -> list[Record]:
        """The records of a block, in the order of their rows."""
        return [Record.from_json(fields) for fields in self._lines(block)]

    def row_counts(self, block: int) -> Int[np.ndarray, " records"]:
        """How many consecutive rows of the block belong to each record."""
        return np.array([fields.get("num_rows", 1) for fields in self._lines(block)], np.int64)

    def iter_rows(self, batch_rows: int = GRID_ROWS) -> Iterator[Rows]:
        """All rows in order, in batches of `batch_rows` whatever the blocks are (the last less)."""
        pending: list[np.ndarray] = []
        num_pending = 0
        for block in range(len(self.blocks)):
            rows = self.features(block)
            while len(rows):
                piece, rows = rows[: batch_rows - num_pending], rows[batch_rows - num_pending :]
                pending.append(piece)
                num_pending += len(piece)
                if num_pending == batch_rows:
                    yield pending[0] if len(pending) == 1 else np.concatenate(pending)
                    pending, num_pending = [], 0
        if pending:
            yield np.concatenate(pending)


def _check_size(path: Path, num_bytes: int) -> None:
    size = path.stat().st_size if path.is_file() else None
    if size is None:
        raise ValueError(f"{path}: missing shard; run the command that wrote the set")
    if size != num_bytes:
        raise ValueError(_truncated(path, f"{size} bytes, the header says {num_bytes}"))


def _map_npy(path: Path, offset: int, shape: tuple[int, int]) -> Rows:
    with open(path, "rb") as file:
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


def verify(directory: str | Path) -> list[str]:
    """Read a whole feature set and list what is wrong with it; empty when nothing is."""
    reader = ShardReader(directory)
    problems: list[str] = []
    for info in reader.header.shards:
        problems += _verify_shard(reader.directory / info.name, info)
    for block, ref in enumerate(reader.blocks):
        address = f"{reader.directory / ref.shard} block {ref.index}"
        try:
            problems += _verify_block(reader, block, address)
        except ValueError as error:
            problems.append(str(error))
    return problems


def _verify_shard(path: Path, info: ShardInfo) -> list[str]:
    try:
        found = shard_info(path)
        end = _members(path)["shard.json"][0] - tarfile.BLOCKSIZE
    except ValueError as error:
        return [str(error)]
    digest = _digest(path, end)
    problems = [] if found == info else [f"{path}: its summary is not the one in header.json"]
    if digest != info.sha256:
        problems.append(f"{path}: sha256 {digest[:12]} of the content, header {info.sha256[:12]}")
    return problems


def _digest(path: Path, num_bytes: int) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while num_bytes > 0 and (piece := file.read(min(num_bytes, 2**20))):
            digest.update(piece)
            num_bytes -= len(piece)
    return digest.hexdigest()


def _verify_block(reader: ShardReader, block: int, address: str) -> list[str]:
    bad = check_rows(reader.features(block), dim=reader.dim, address=address)
    counts = reader.row_counts(block)
    ref = reader.blocks[block]
    problems = []
    if bad.any():
        problems.append(f"{address}: {int(bad.sum())} of {len(bad)} rows are zero or not finite")
    if (len(counts), int(counts.sum())) != (ref.records, ref.rows):
        problems.append(
            f"{address}: {len(counts)} records claiming {int(counts.sum())} rows, "
            f"header {ref.records} records and {ref.rows} rows"
        )
    return problems
