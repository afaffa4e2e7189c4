"""Feature sets, and what `align.py` wrote, as the pickles of the public ReVision scripts.

    <shards>                          -> <dir>/text_embeds_1.pkl ...
    <aligned>/shards, /alignment      -> <dir>/trace/text_embeds_1_trace.pkl ..., trace_stats.pkl

Formats: Yu-xm/ReVision@2d26f3a embed.py:321-331, embed_ReAlign.py:372-404. What
`revision_pkl.py` imported comes out as the same records.
"""

import pickle
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from revision.alignment.methods.realign import ReAlign
from revision.alignment.storage import load_alignment
from revision.conversion.revision_pkl import CONTENT_KEYS, STATS_NAME
from revision.files import claim, explained, replacing
from revision.progress import track
from revision.records import Record
from revision.shards import ShardReader

RECORDS_PER_FILE = 200_000  # embed.py --records_per_pkl


def export_pickles(
    input_dir: Path, output_dir: Path, *, records_per_file: int = RECORDS_PER_FILE
) -> list[Path]:
    """Write a feature set, or what `align.py` wrote, as the public scripts would have.

    Raises:
        ValueError: a record has several rows (the public format has one), or other pickles are
            in `output_dir`, where the public scripts would take them for data.
    """
    stats = _export_stats(input_dir, output_dir)
    reader = ShardReader(input_dir / "shards" if (input_dir / "shards").is_dir() else input_dir)
    header = reader.header
    digests = {shard.name: shard.sha256 for shard in header.shards}
    claim(output_dir, {"shards": digests, "records_per_file": records_per_file})
    aligned = header.alignment is not None
    folder, suffix = (output_dir / "trace", "_trace") if aligned else (output_dir, "")
    records = _public_records(reader)
    paths: list[Path] = []
    while chunk := list(islice(records, records_per_file)):
        paths.append(folder / f"{header.kind}_embeds_{len(paths) + 1}{suffix}.pkl")
        _write_pickle(paths[-1], chunk)
    return paths + stats


def _public_records(reader: ShardReader) -> Iterator[dict[str, Any]]:
    key = CONTENT_KEYS[reader.header.kind]
    for block in track(range(len(reader.blocks)), "export pickles"):
        rows = np.array(reader.features(block))
        position = 0
        for record, count in zip(reader.records(block), reader.row_counts(block), strict=True):
            if count > 1:
                raise ValueError(
                    f"record {record.id!r} has {count} feature rows, the public format has one"
                )
            if count == 1:  # a text-only record has no place in a file of features
                yield _public_record(record, key, rows[position])
                position += 1


def _public_record(record: Record, key: str, row: np.ndarray) -> dict[str, Any]:
    metadata = dict(record.metadata)
    content = record.text if key == "caption" else record.images[0]
    id = metadata.pop("public_id", record.id)
    return {"id": id, key: content} | metadata | {"embed": row.copy()}


def _export_stats(input_dir: Path, output_dir: Path) -> list[Path]:
    if not (input_dir / "alignment").is_dir():
        return []
    alignment = load_alignment(input_dir / "alignment")
    if not isinstance(alignment, ReAlign):
        return []
    mean = {"mu_txt": "source_mean", "mu_img": "target_mean", "mu_hat": "centroid"}
    number = {"scale": "scale", "trace_txt": "source_trace", "trace_img": "target_trace"}
    stats: dict[str, Any] = {
        key: getattr(alignment, name).float().numpy() for key, name in mean.items()
    }
    stats |= {key: float(getattr(alignment, name)) for key, name in number.items()}
    _write_pickle(output_dir / STATS_NAME, stats | {"strict_finite": True})
    return [output_dir / STATS_NAME]


def _write_pickle(path: Path, content: Any) -> None:
    with replacing(path) as file, explained(path):
        pickle.dump(content, file, protocol=4)
