"""Write feature shards, and the header that declares a set complete."""

import hashlib
import io
import json
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import numpy as np

from revision.files import explained, remove_leftovers, replacing, write_bytes
from revision.records import Record, Rejection, json_line
from revision.shards.layout import (
    DTYPES,
    MOMENTS_NAME,
    SCHEMA_VERSION,
    UNIT_NORM_TOLERANCE,
    Header,
    Kind,
    Rows,
    ShardInfo,
    check_width,
    make_info,
    read_member,
    shard_name,
    tar_members,
)
from revision.shards.reader import shard_info
from revision.sums import MomentSums, Scan, scan

LARGE = 1 << 20  # bytes whose digest is worth a thread


class _DigestFile:
    """A file that keeps the digest of all that was written.

    A thread computes the digest of a large piece while the piece is written and the next is made.
    """

    def __init__(self, file: IO[bytes], path: Path, pool: ThreadPoolExecutor) -> None:
        self._file, self._path, self._pool = file, path, pool
        self._digest, self._position = hashlib.sha256(), 0
        self._pending: Future[None] | None = None

    def write(self, content: bytes | memoryview) -> None:
        self._wait()
        if len(content) >= LARGE:
            self._pending = self._pool.submit(self._digest.update, content)
        else:
            self._digest.update(content)
        with explained(self._path):
            self._file.write(content)
        self._position += len(content)

    def tell(self) -> int:
        return self._position

    def hexdigest(self) -> str:
        self._wait()
        return self._digest.hexdigest()

    def _wait(self) -> None:
        if self._pending is not None:
            self._pending.result()
            self._pending = None


class ShardWriter:
    """Write shard `index` of the feature set in `directory`; nothing appears on an exception.

    `num_truncated`, if the caller sets it, counts the texts that the encoder cut.

    Example:
        with ShardWriter(directory, 0, dim=256, dtype="float16") as writer:
            writer.add_block(rows, records)
        writer.info.num_rows
    """

    info: ShardInfo
    num_truncated: int | None = None

    def __init__(self, directory: str | Path, index: int, dim: int, dtype: str) -> None:
        if dtype not in DTYPES:
            raise ValueError(f"features are stored as one of {DTYPES}, got {dtype!r}")
        self.path = Path(directory) / shard_name(index)
        self.dim, self.dtype = dim, dtype
        self._blocks: list[tuple[int, int]] = []
        self._rejections: list[Rejection] = []
        self._norm_error, self._sums = 0.0, MomentSums.zero(dim)
        self._stack = ExitStack()

    def __enter__(self) -> "ShardWriter":
        raw = self._stack.enter_context(replacing(self.path))
        pool = self._stack.enter_context(ThreadPoolExecutor(1))
        self._file = _DigestFile(raw, self.path, pool)
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
        with np.errstate(over="ignore"):  # an overflow is found, and named, just below
            stored = np.ascontiguousarray(features, dtype=self.dtype)
        found = self._scan(stored, address)
        if found.bad.any():
            row = int(np.flatnonzero(found.bad)[0])
            owner = records[int(np.searchsorted(np.cumsum(counts), row, side="right"))]
            raise ValueError(
                f"{address}: {int(found.bad.sum())} of {len(stored)} rows are zero or not finite "
                f"as {self.dtype}, first row {row} of record {owner.id!r}; reject these records"
            )
        lines = (
            json_line(record.to_json() | ({} if count == 1 else {"num_rows": count}))
            for record, count in zip(records, counts, strict=True)
        )
        self._append([(stored, found)], len(stored), b"".join(lines), len(records))

    def copy_block(
        self, pieces: Iterable[np.ndarray], num_rows: int, lines: bytes, num_records: int
    ) -> None:
        """Append `num_rows` rows that come in pieces, with the record lines of another shard.

        Raises:
            ValueError: wrong width, other rows than that many, one that is not finite or zero.
        """
        address = f"{self.path} block {len(self._blocks)}"
        self._append(self._scanned(pieces, num_rows, address), num_rows, lines, num_records)

    def _scanned(
        self, pieces: Iterable[np.ndarray], num_rows: int, address: str
    ) -> Iterator[tuple[np.ndarray, Scan]]:
        count = 0
        for piece in pieces:
            stored = np.ascontiguousarray(piece, dtype=self.dtype)
            found = self._scan(stored, address)
            if found.bad.any():
                row = count + int(np.flatnonzero(found.bad)[0])
                raise ValueError(f"{address}: row {row} is zero or not finite; reject its record")
            count += len(stored)
            yield stored, found
        if count != num_rows:
            raise ValueError(f"{address}: {count} rows came, {num_rows} were announced")

    def _scan(self, stored: Rows, address: str) -> Scan:
        check_width(stored, dim=self.dim, address=address)
        return scan(stored)

    def _append(
        self,
        scanned: Iterable[tuple[np.ndarray, Scan]],
        num_rows: int,
        lines: bytes,
        num_records: int,
    ) -> None:
        number = f"{len(self._blocks):06d}"
        head = _npy_head(self.dtype, (num_rows, self.dim))
        num_bytes = num_rows * self.dim * np.dtype(self.dtype).itemsize
        self._begin(f"{number}.features.npy", len(head) + num_bytes)
        self._file.write(head)
        for rows, found in scanned:
            self._file.write(rows.reshape(-1).view(np.uint8).data)
            self._sums += found.sums
            self._norm_error = max(self._norm_error, found.norm_error)
        self._fill(tarfile.BLOCKSIZE)
        self._add(f"{number}.records.jsonl", lines)
        self._blocks.append((num_rows, num_records))

    def reject(self, rejection: Rejection) -> None:
        """Keep an entry that has no feature, for `quarantine.jsonl`."""
        self._rejections.append(rejection)

    def _add(self, name: str, content: bytes) -> None:
        self._begin(name, len(content))
        self._file.write(content)
        self._fill(tarfile.BLOCKSIZE)

    def _begin(self, name: str, num_bytes: int) -> None:
        member = tarfile.TarInfo(name)  # without time or owner: the same rows give the same bytes
        member.size = num_bytes
        self._file.write(member.tobuf(tarfile.USTAR_FORMAT))

    def _fill(self, size: int) -> None:
        self._file.write(bytes(-self._file.tell() % size))

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
        sums = self._sums.to_array()
        self._add(MOMENTS_NAME, _npy_head("int64", sums.shape) + sums.tobytes())
        summary = {
            "num_rows": sum(rows for rows, _ in self._blocks),
            "num_records": sum(records for _, records in self._blocks),
            "blocks": self._blocks,
            "num_rejected": len(self._rejections),
            "dim": self.dim,
            "dtype": self.dtype,
            "unit_norm": self._norm_error <= UNIT_NORM_TOLERANCE,
            "sha256": self._file.hexdigest(),
            "moments": MOMENTS_NAME,
        }
        if self.num_truncated is not None:
            summary["num_truncated"] = self.num_truncated
        self._add("shard.json", json_line(summary))
        self._file.write(bytes(2 * tarfile.BLOCKSIZE))
        self._fill(tarfile.RECORDSIZE)
        self.info = make_info(self.path.name, summary, self._file.tell())


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


def _npy_head(dtype: str, shape: tuple[int, ...]) -> bytes:
    """What `np.save` writes before the numbers."""
    descr = np.lib.format.dtype_to_descr(np.dtype(dtype))
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        buffer, {"descr": descr, "fortran_order": False, "shape": shape}
    )
    return buffer.getvalue()


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
    if num_shards < 1:
        raise ValueError(f"{directory}: a feature set of {num_shards} shards; its source is empty")
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
                file.write(read_member(path, *tar_members(path)["rejected.jsonl"]))
    write_bytes(directory / "header.json", json.dumps(asdict(header), indent=1).encode())
    return header
