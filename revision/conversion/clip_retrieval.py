"""The npy and parquet parts that clip-retrieval writes to two feature sets of the same records.

    <dir>/metadata/metadata_<k>.parquet   image_path, caption, key, url, ...   one line per row
    <dir>/img_emb/img_emb_<k>.npy         (rows, dim)                       -> <output_dir>/images
    <dir>/text_emb/text_emb_<k>.npy       (rows, dim)                       -> <output_dir>/texts

Format: rom1504/clip-retrieval@07d747b clip_retrieval/clip_inference/writer.py:63-105. One of the
two folders of rows may be missing, and part numbers may be padded with zeros.

Rows are kept bit for bit, in the order of the parts. A line of which anything cannot be used (id,
caption, path, either row) goes to the quarantine of both sets, so that row i of the one and row i
of the other stay a pair. Every part is cut into shards of `rows_per_shard`; a shard that exists is
not read again, only the ids of its lines are, to find duplicates.
"""

import math
import re
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from revision.files import claim, file_digest
from revision.progress import track
from revision.records import Record, Rejection, SeenIds
from revision.shards import (
    DTYPES,
    GRID_ROWS,
    Header,
    Kind,
    ShardWriter,
    check_rows,
    shard_name,
    write_header,
)

_FOLDERS: dict[Kind, str] = {"image": "img_emb", "text": "text_emb"}
_OUTPUTS: dict[Kind, str] = {"image": "images", "text": "texts"}
_CONTENT_COLUMNS: dict[Kind, str] = {"image": "image_path", "text": "caption"}
_ID_COLUMNS = ("id", "key", "image_path")  # the first that the metadata has


class _Line(NamedTuple):
    """A line of the metadata; the reason of its rejection is empty where it can be used."""

    record: Record
    rejection: Rejection


@dataclass(frozen=True)
class _Part:
    """One numbered part: its metadata and, for each modality, its rows mapped from the file."""

    metadata: Path
    features: Mapping[Kind, Path]

    @property
    def files(self) -> list[Path]:
        return [self.metadata, *self.features.values()]

    def rows(self, kind: Kind) -> np.ndarray:
        """The matrix of `kind`, not read yet; an object array is refused, never unpickled."""
        path = self.features[kind]
        try:
            rows = np.load(path, mmap_mode="r", allow_pickle=False)
        except (ValueError, EOFError) as error:
            raise ValueError(f"{path}: not a plain npy array ({error})") from error
        if rows.ndim != 2 or rows.dtype.name not in DTYPES:
            raise ValueError(
                f"{path}: an array of shape {rows.shape} and dtype {rows.dtype}, expected "
                f"(rows, dim) of {', '.join(DTYPES)}"
            )
        return rows


def import_clip_retrieval(
    input_dir: Path,
    output_dir: Path,
    *,
    encoder: str = "unknown",
    rows_per_shard: int = 65536,
) -> list[Header]:
    """Convert a directory of clip-retrieval; resumes at the first missing shard.

    Returns:
        The headers of the sets written: images, texts, or both.

    Raises:
        ValueError: a part is missing a file, its counts of rows and lines differ, parts differ in
            width or dtype, or another import owns `output_dir`.
    """
    parts = _parts(input_dir)
    kinds = tuple(parts[0].features)
    for part in parts:
        _check_part(part, parts[0])
    files = track([file for part in parts for file in part.files], "digest parts")
    digests = {str(file.relative_to(input_dir)): file_digest(file) for file in files}
    claim(output_dir, {"files": digests, "rows_per_shard": rows_per_shard})
    directories = {kind: output_dir / _OUTPUTS[kind] for kind in kinds}
    num_shards = _write_shards(parts, directories, rows_per_shard)
    return [
        write_header(
            directory,
            kind=kind,
            encoder={"name": encoder, "format": "clip_retrieval"},
            source={"input": str(input_dir), "sha256": digests},
            num_shards=num_shards,
        )
        for kind, directory in directories.items()
    ]


def _parts(directory: Path) -> list[_Part]:
    """The parts in numeric order, each with the same modalities."""
    metadata = _numbered(directory, "metadata", "parquet")
    if not metadata:
        raise ValueError(
            f"{directory}: no metadata/metadata_<number>.parquet in it; give the output folder of "
            "clip-retrieval inference"
        )
    features = {kind: _numbered(directory, name, "npy") for kind, name in _FOLDERS.items()}
    present = {kind: files for kind, files in features.items() if files}
    if not present:
        raise ValueError(f"{directory}: metadata but neither img_emb/ nor text_emb/ beside it")
    for kind, files in present.items():
        if odd := sorted(files.keys() ^ metadata.keys()):
            raise ValueError(
                f"{directory}: {len(files)} parts in {_FOLDERS[kind]} and {len(metadata)} in "
                f"metadata; numbers {odd[:5]} are in one of them only, so that rows would have no "
                "records; finish the inference, or move these files away"
            )
    return [
        _Part(metadata[k], {kind: files[k] for kind, files in present.items()})
        for k in sorted(metadata)
    ]


def _numbered(directory: Path, folder: str, suffix: str) -> dict[int, Path]:
    pattern = re.compile(rf"{folder}_(\d+)\.{suffix}")
    found: dict[int, Path] = {}
    for path in sorted((directory / folder).glob(f"*.{suffix}")):
        if match := pattern.fullmatch(path.name):
            number = int(match[1])
            if number in found:
                raise ValueError(f"{path} and {found[number].name} are the same part {number}")
            found[number] = path
    return found


def _check_part(part: _Part, first: _Part) -> None:
    from pyarrow import parquet

    try:
        file = parquet.ParquetFile(part.metadata)
    except Exception as error:  # pyarrow has its own family of errors
        raise ValueError(f"{part.metadata}: not a readable parquet file ({error})") from error
    lines, columns = file.metadata.num_rows, file.schema_arrow.names
    for kind in part.features:
        rows, expected = part.rows(kind), first.rows(kind)
        if len(rows) != lines:
            raise ValueError(
                f"{part.features[kind]} has {len(rows)} rows and {part.metadata.name} {lines} "
                "lines; rows would belong to the wrong records; fetch or compute this part again"
            )
        if (rows.shape[1], rows.dtype) != (expected.shape[1], expected.dtype):
            raise ValueError(
                f"{part.features[kind]}: rows of {rows.shape[1]} {rows.dtype} numbers, the first "
                f"part has {expected.shape[1]} of {expected.dtype}; they come from two encoders"
            )
        if _CONTENT_COLUMNS[kind] not in columns:
            raise ValueError(
                f"{part.metadata}: no column {_CONTENT_COLUMNS[kind]!r} among {columns}, which "
                f"says what the rows of {_FOLDERS[kind]} are"
            )


def _write_shards(parts: Sequence[_Part], directories: Mapping[Kind, Path], size: int) -> int:
    """Write the shards that are missing, those of one number together; returns their number."""
    seen, number = SeenIds(), 0
    for part in track(parts, "import parts"):
        lines = _lines(part.metadata, tuple(directories), seen)
        rows = {kind: part.rows(kind) for kind in directories}
        total = len(next(iter(rows.values())))
        for start in range(0, total, size):
            chunk = islice(lines, min(size, total - start))
            if all((d / shard_name(number)).exists() for d in directories.values()):
                deque(chunk, maxlen=0)  # only their ids are wanted
            else:
                here = {kind: matrix[start : start + size] for kind, matrix in rows.items()}
                _write_shard(directories, number, here, chunk)
            number += 1
    return number


def _write_shard(
    directories: Mapping[Kind, Path],
    number: int,
    rows: Mapping[Kind, np.ndarray],
    lines: Iterator[_Line],
) -> None:
    with ExitStack() as stack:
        writers = {}
        for kind, directory in directories.items():
            writer = ShardWriter(directory, number, rows[kind].shape[1], rows[kind].dtype.name)
            writers[kind] = stack.enter_context(writer)
        start = 0
        while block := list(islice(lines, GRID_ROWS)):
            here = {kind: matrix[start : start + len(block)] for kind, matrix in rows.items()}
            _write_block(writers, here, block)
            start += len(block)


def _write_block(
    writers: Mapping[Kind, ShardWriter], rows: Mapping[Kind, np.ndarray], lines: Sequence[_Line]
) -> None:
    """Add the lines that can be used to every writer, and the others to every quarantine."""
    bad = {k: check_rows(m, dim=m.shape[1], address=_FOLDERS[k]) for k, m in rows.items()}
    kept, records = [], []
    for i, (record, rejection) in enumerate(lines):
        directionless = [_FOLDERS[kind] for kind, mask in bad.items() if mask[i]]
        if directionless and not rejection.reason:
            reason = f"feature row of {' and '.join(directionless)} is zero or not finite"
            rejection = replace(rejection, reason=reason)
        if rejection.reason:
            for writer in writers.values():
                writer.reject(rejection)
        else:
            kept.append(i)
            records.append(record)
    for kind, writer in writers.items():
        writer.add_block(np.asarray(rows[kind][kept]), records)


def _lines(metadata: Path, kinds: Sequence[Kind], seen: SeenIds) -> Iterator[_Line]:
    """Every line as a record, with the reason for which it cannot be used, if there is one.

    An id counts as met even where its rows turn out bad: duplicates then follow from the metadata
    alone, and a resumed import, which reads no rows of finished shards, finds the same ones.
    """
    from pyarrow import parquet

    file = parquet.ParquetFile(metadata)
    id_column = next((name for name in _ID_COLUMNS if name in file.schema_arrow.names), None)
    number = 0
    for batch in file.iter_batches(batch_size=GRID_ROWS):
        for fields in batch.to_pylist():
            address = f"{metadata.name}:row {number}"
            id = fields.get(id_column, "") if id_column else f"{metadata.stem}/{number}"
            record = _record("" if _is_missing(id) else str(id), fields)
            yield _Line(record, Rejection(record.id, _problem(record, kinds, seen), address))
            number += 1


def _record(id: str, fields: dict[str, Any]) -> Record:
    kept = {key: value for key, value in fields.items() if not _is_missing(value)}
    caption, image_path = kept.pop("caption", None), kept.pop("image_path", None)
    for name in _ID_COLUMNS[:2]:
        if str(kept.get(name)) == id:
            del kept[name]
    images = () if image_path is None else (str(image_path),)
    return Record(id, text=caption, images=images, metadata=kept)


def _problem(record: Record, kinds: Sequence[Kind], seen: SeenIds) -> str:
    if not record.id:
        return "missing id"
    if not seen.add(record.id):
        return "duplicate id: an earlier line has it"
    if "text" in kinds and not (isinstance(record.text, str) and record.text.strip()):
        return "empty caption"
    if "image" in kinds and not record.images:
        return "empty image_path"
    return ""


def _is_missing(value: Any) -> bool:
    """None, an empty text, or the NaN by which pandas marks a missing value."""
    return value is None or value == "" or (isinstance(value, float) and math.isnan(value))
