"""Public ReVision and Unicorn pickles to feature sets (back: `revision_pkl_export.py`).

    <dir>/text_embeds_1.pkl ...     [{"id", "caption", "embed"}]      -> a feature set
    <dir>/image_embeds_1.pkl ...    [{"id", "image_path", "embed"}]   -> a feature set
    <dir>/trace/*_trace.pkl with <dir>/trace_stats.pkl                -> shards/ and alignment/

Formats: Yu-xm/ReVision@2d26f3a embed.py:321-331, embed_ReAlign.py:372-404. Rows are kept bit for
bit, so that a round trip gives back the same records; they are near unit norm, not of unit norm.
Departs from the public readers in that parts are read in numeric order, duplicate ids and bad rows
go to `quarantine.jsonl`, and no file that is not a list of records is taken for data.
"""

import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from revision.alignment.base import AlignmentMap
from revision.alignment.methods.realign import ReAlign
from revision.alignment.storage import alignment_digest, save_alignment
from revision.files import claim, file_digest
from revision.pickles import read_pickle
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

STATS_NAME = "trace_stats.pkl"
STATS_KEYS = {"mu_txt", "mu_img", "mu_hat", "scale", "trace_txt", "trace_img"}
CONTENT_KEYS: dict[Kind, str] = {"text": "caption", "image": "image_path"}

Embedded = tuple[Record, np.ndarray]


def import_pickles(
    input_dir: Path,
    output_dir: Path,
    *,
    kind: str = "auto",
    encoder: str = "unknown",
    aligned: str | None = None,
    rows_per_shard: int = 65536,
) -> Header:
    """Convert a directory of public pickles; resumes at the first missing shard.

    With `trace_stats.pkl` in `input_dir` the result is laid out as `align.py` does it: the map in
    `output_dir/alignment`, the rows in `output_dir/shards`. `aligned` names the map that the rows
    have been through where nothing else says it, as for Unicorn's mean-shifted pickles, whose
    names are those of the raw ones; `align.py` then refuses to align them a second time.

    Raises:
        ValueError: no record pickle, texts and images or raw and aligned rows mixed, or another
            import owns `output_dir`.
    """
    files = _record_files(input_dir)
    alignment = _imported_map(input_dir, files)
    parent = output_dir
    if alignment is not None:
        output_dir = parent / "shards"
    chosen = _kind_of(files[0]) if kind == "auto" else _as_kind(kind)
    digests = {file.name: file_digest(file) for file in track(files, "digest pickles")}
    claim(output_dir, {"files": digests, "kind": chosen, "rows_per_shard": rows_per_shard})
    if alignment is not None:  # only now: the directory is known to be of this import
        save_alignment(alignment, parent / "alignment", {"imported": STATS_NAME})
    entries = _entries(files, chosen)
    num_shards = 0
    while chunk := list(islice(entries, rows_per_shard)):
        if not (output_dir / shard_name(num_shards)).exists():
            _write_shard(output_dir, num_shards, chunk)
        num_shards += 1
    return write_header(
        output_dir,
        kind=chosen,
        encoder={"name": encoder, "format": "revision_pkl"},
        source={"input": str(input_dir), "sha256": digests},
        alignment=_identity(alignment, files, aligned),
        num_shards=num_shards,
    )


def _record_files(directory: Path) -> list[Path]:
    """The record pickles in numeric order of their parts (the public scripts sort 10 before 2)."""
    if not directory.is_dir():
        raise ValueError(f"{directory}: not a directory of public pickles")
    found = [*directory.glob("*.pkl"), *directory.glob("trace/*.pkl")]
    files = [file for file in found if file.name != STATS_NAME]
    if not files:
        raise ValueError(f"{directory}: no pickle of records (text_embeds_1.pkl, ...) in it")
    return sorted(files, key=lambda f: [int(p) if p.isdigit() else p for p in _parts(f.name)])


def _imported_map(directory: Path, files: list[Path]) -> ReAlign | None:
    """The map of `trace_stats.pkl`, where there is one.

    Raises:
        ValueError: not all rows have been through one map, though the set could say only one thing.
    """
    stats = directory / STATS_NAME
    alignment = alignment_of(stats) if stats.exists() else None
    num_traced = sum(_is_traced(file) for file in files)
    if num_traced not in (0, len(files)) or (alignment is not None and not num_traced):
        raise ValueError(
            f"{directory}: {num_traced} of {len(files)} pickles hold aligned rows (*_trace.pkl), "
            f"{STATS_NAME} is {'there' if alignment else 'not there'}: raw rows would pass for "
            f"aligned ones; give trace/ with {STATS_NAME} and raw pickles in two directories"
        )
    return alignment


def _is_traced(file: Path) -> bool:
    """Whether embed_ReAlign.py named the file."""
    return file.stem.endswith("_trace")


def _parts(name: str) -> list[str]:
    return re.split(r"(\d+)", name)


def _identity(
    alignment: AlignmentMap | None, files: list[Path], aligned: str | None
) -> dict[str, Any] | None:
    """What the header says about the map the rows have been through."""
    if alignment is not None:
        digest = alignment_digest(alignment)
        return {"name": alignment.name, "options": alignment.options(), "sha256": digest}
    if all(map(_is_traced, files)):
        aligned = aligned or "realign"
    return {"name": aligned, "options": {}, "sha256": "unknown"} if aligned else None


def _read_list(path: Path) -> list[dict[str, Any]]:
    content = read_pickle(path)
    if not isinstance(content, list) or not all(isinstance(item, dict) for item in content):
        raise ValueError(
            f"{path}: holds a {type(content).__name__}, not a list of records; move it away if it "
            "is not part of the data (the mean files of the public scripts are not needed: fitting "
            "a map computes the mean again, in float64)"
        )
    return content


def _as_kind(kind: str) -> Kind:
    for known in CONTENT_KEYS:
        if kind == known:
            return known
    raise ValueError(f"kind is auto, text or image, not {kind!r}")


def _kind_of(path: Path) -> Kind:
    first = next(iter(_read_list(path)), {})
    for kind, key in CONTENT_KEYS.items():
        if key in first:
            return kind
    raise ValueError(f"{path}: its first record has neither 'caption' nor 'image_path'; give kind=")


def _entries(files: list[Path], kind: Kind) -> Iterator[Embedded | Rejection]:
    """Every record of every file with its row, or why it has none."""
    seen = SeenIds()
    expected: np.ndarray | None = None
    for file in track(files, "import pickles"):
        for i, fields in enumerate(_read_list(file)):
            address = f"{file.name}:record {i}"
            try:
                record, row = _embedded(fields, kind, file)
                expected = row if expected is None else expected
                _check_row(row, expected)
                if not seen.add(record.id):
                    raise _Unusable("duplicate id: an earlier record has it")
                yield record, row
            except _Unusable as error:
                yield Rejection(str(fields.get("id", "")), str(error), address)


class _Unusable(Exception):
    """A record that is quarantined; unlike a ValueError it does not end the import."""


def _embedded(fields: dict[str, Any], kind: Kind, file: Path) -> Embedded:
    """A public record as ours: ids become text, other keys are carried in the metadata."""
    other = next(key for other, key in CONTENT_KEYS.items() if other != kind)
    if other in fields and CONTENT_KEYS[kind] not in fields:
        raise ValueError(
            f"{file}: records with {other!r} where {CONTENT_KEYS[kind]!r} is expected; texts and "
            "images are two feature sets: put their pickles into two directories"
        )
    rest = {key: _storable(value) for key, value in fields.items() if key != "embed"}
    id, content = rest.pop("id", None), rest.pop(CONTENT_KEYS[kind], None)
    if id is None or id == "":
        raise _Unusable("missing id")
    if not isinstance(content, str) or not content.strip():
        raise _Unusable(f"empty {CONTENT_KEYS[kind]}")
    if fields.get("embed") is None:
        raise _Unusable("no feature: 'embed' is missing")
    if not isinstance(id, str):
        rest["public_id"] = id  # its type, for the way back
    row = np.asarray(fields["embed"])
    if kind == "text":
        return Record(str(id), text=content, metadata=rest), row
    return Record(str(id), images=(content,), metadata=rest), row


def _storable(value: Any) -> Any:
    return value.tolist() if isinstance(value, np.ndarray) else value


def _check_row(row: np.ndarray, expected: np.ndarray) -> None:
    if row.ndim != 1 or row.dtype.name not in DTYPES:
        raise _Unusable(f"feature of shape {row.shape} and dtype {row.dtype}, expected a float row")
    if (len(row), row.dtype) != (len(expected), expected.dtype):
        raise _Unusable(
            f"feature of {len(row)} {row.dtype} numbers, the first record has {len(expected)} "
            f"of {expected.dtype}"
        )
    if check_rows(row[None], dim=len(row), address="")[0]:
        raise _Unusable("feature row is zero or not finite")


def _write_shard(directory: Path, index: int, chunk: list[Embedded | Rejection]) -> None:
    embedded = [entry for entry in chunk if not isinstance(entry, Rejection)]
    if not embedded:
        raise ValueError(
            f"{directory}: none of the {len(chunk)} records of shard {index} can be used; the "
            f"first: {next(e.reason for e in chunk if isinstance(e, Rejection))}"
        )
    row = embedded[0][1]
    with ShardWriter(directory, index, len(row), row.dtype.name) as writer:
        for start in range(0, len(embedded), GRID_ROWS):
            block = embedded[start : start + GRID_ROWS]
            writer.add_block(np.stack([row for _, row in block]), [record for record, _ in block])
        for entry in chunk:
            if isinstance(entry, Rejection):
                writer.reject(entry)


def alignment_of(stats_path: Path) -> ReAlign:
    """The map that `trace_stats.pkl` describes; its counts of rows are unknown and stand at 0."""
    stats = read_pickle(stats_path)
    missing = STATS_KEYS - set(stats if isinstance(stats, dict) else ())
    if missing:
        raise ValueError(f"{stats_path}: not ReAlign statistics, {sorted(missing)} are missing")
    alignment = ReAlign(mean_precision="float32")
    for name, value in {
        "source_mean": stats["mu_txt"],
        "target_mean": stats["mu_img"],
        "centroid": stats["mu_hat"],
        "scale": stats["scale"],
        "source_trace": stats["trace_txt"],
        "target_trace": stats["trace_img"],
    }.items():
        setattr(alignment, name, torch.tensor(np.asarray(value, np.float64)))
    alignment.source_count, alignment.target_count = torch.tensor(0), torch.tensor(0)
    return alignment
