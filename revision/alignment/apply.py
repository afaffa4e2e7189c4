"""Apply a fitted map to text shards, one output shard per input shard, resumable.

The result is a feature set like its input (same records, same blocks, float32 unit rows) whose
header names the alignment. Applying on the fly instead, `alignment(rows)`, gives the same bits.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch

from revision.alignment.base import AlignmentMap
from revision.alignment.moments import bad_rows, one_thread
from revision.alignment.storage import alignment_digest
from revision.files import claim
from revision.progress import track
from revision.records import Record, Rejection
from revision.shards import Header, ShardReader, ShardWriter, read_header, shard_name, write_header

NO_DIRECTION = "feature row is zero or not finite"


@one_thread()
def apply_alignment(alignment: AlignmentMap, source_dir: Path, output_dir: Path) -> Header:
    """Write the aligned rows of the feature set `source_dir` as the feature set `output_dir`.

    Shards that exist are kept. A record with a bad feature row goes to quarantine as a whole.

    Raises:
        ValueError: `output_dir` holds rows of another map or of another source.
    """
    reader = ShardReader(source_dir)
    if reader.header.alignment is not None:
        raise ValueError(
            f"{source_dir} is already aligned ({reader.header.alignment['name']}); aligning twice "
            "would overshoot the image distribution: give the original text shards"
        )
    identity = {
        "name": alignment.name,
        "options": alignment.options(),
        "sha256": alignment_digest(alignment),
    }
    claim(output_dir, {"alignment": identity, "source": _digests(reader.header)})
    if (output_dir / "header.json").exists():
        return read_header(output_dir)
    for index, shard in enumerate(track(reader.header.shards, f"align ({alignment.name})")):
        if not (output_dir / shard_name(index)).exists():
            _align_shard(alignment, reader, shard.name, output_dir, index)
    return write_header(
        output_dir,
        kind=reader.header.kind,
        encoder=reader.header.encoder,
        source=reader.header.source,
        alignment=identity,
        num_shards=len(reader.header.shards),
    )


def rejections_at(reader: ShardReader, positions: Iterable[int]) -> Iterator[Rejection]:
    """Which records the rows at these positions of a feature set belong to, and where they are."""
    ends = np.cumsum([block.rows for block in reader.blocks])
    for position in positions:
        block = int(np.searchsorted(ends, position, side="right"))
        row = position - int(ends[block]) + reader.blocks[block].rows
        owner = int(np.searchsorted(np.cumsum(reader.row_counts(block)), row, side="right"))
        yield _rejection(reader, block, row, reader.records(block)[owner])


def _align_shard(
    alignment: AlignmentMap, reader: ShardReader, shard: str, directory: Path, index: int
) -> None:
    with ShardWriter(directory, index, reader.dim, "float32") as writer:
        for block in (b for b, place in enumerate(reader.blocks) if place.shard == shard):
            rows, records, counts, rejections = _good_records(reader, block)
            for rejection in rejections:
                writer.reject(rejection)
            writer.add_block(alignment(torch.tensor(rows)).numpy(), records, counts.tolist())


def _good_records(
    reader: ShardReader, block: int
) -> tuple[np.ndarray, list[Record], np.ndarray, list[Rejection]]:
    """Rows, records and row counts of a block without the records that have a bad row."""
    rows, records, counts = reader.features(block), reader.records(block), reader.row_counts(block)
    bad = bad_rows(rows)
    if not bad.any():
        return rows, records, counts, []
    owners = np.repeat(np.arange(len(records)), counts)
    found = np.flatnonzero(bad).tolist()
    rejections = [_rejection(reader, block, row, records[owners[row]]) for row in found]
    kept = np.setdiff1d(np.arange(len(records)), owners[found])
    return rows[np.isin(owners, kept)], [records[k] for k in kept], counts[kept], rejections


def _rejection(reader: ShardReader, block: int, row: int, record: Record) -> Rejection:
    place = reader.blocks[block]
    address = f"{place.shard}/{place.index:06d}.features.npy row {row}"
    return Rejection(id=record.id, reason=NO_DIRECTION, address=address)


def _digests(header: Header) -> dict[str, str]:
    return {shard.name: shard.sha256 for shard in header.shards}
