"""Apply a fitted map to text shards, one output shard per input shard, resumable.

The result is a feature set like its input (same records, same blocks, float32 unit rows) whose
header names the alignment. Applying on the fly instead, `alignment(rows)`, gives the same bits; a
random map draws the noise of epoch 0. Threads and processes write different shards.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from torch import Tensor

from revision import parallel
from revision.alignment.base import AlignmentMap
from revision.alignment.noise import noise_card, row_keys
from revision.alignment.passes import block_rows, one_thread
from revision.alignment.storage import alignment_digest
from revision.files import claim
from revision.progress import track
from revision.records import Record, Rejection
from revision.shards import Header, ShardReader, ShardWriter, read_header, shard_name, write_header
from revision.sums import from_numpy

NO_DIRECTION = "feature row is zero or not finite"


@one_thread()
def apply_alignment(
    alignment: AlignmentMap,
    source_dir: Path,
    output_dir: Path,
    *,
    num_workers: int = 1,
) -> Header:
    """Write the aligned rows of the feature set `source_dir` as the feature set `output_dir`.

    Shards that exist are kept. A record with a bad feature row goes to quarantine as a whole.
    `num_workers` threads write shards side by side; rows are mapped where the map is.

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
        "noise": noise_card(alignment.noise),
        "sha256": alignment_digest(alignment),
    }
    if parallel.rank() == 0:
        claim(output_dir, {"alignment": identity, "source": _digests(reader.header)})
    if parallel.from_first(_is_complete(output_dir, len(reader.header.shards))):
        return read_header(output_dir)
    _write_shards(alignment, reader, output_dir, num_workers)
    parallel.barrier()
    if parallel.rank() == 0:
        write_header(
            output_dir,
            kind=reader.header.kind,
            encoder=reader.header.encoder,
            source=reader.header.source,
            alignment=identity,
            num_shards=len(reader.header.shards),
        )
    parallel.barrier()
    return read_header(output_dir)


def _is_complete(directory: Path, num_shards: int) -> bool:
    """Whether nothing is left to write; a shard that was set aside as broken is."""
    names = ["header.json", *map(shard_name, range(num_shards))]
    return all((directory / name).exists() for name in names)


def _write_shards(
    alignment: AlignmentMap, reader: ShardReader, directory: Path, num_workers: int
) -> None:
    """Write the missing ones of the shards of this process."""
    indices = range(parallel.rank(), len(reader.header.shards), parallel.world_size())
    missing = [index for index in indices if not (directory / shard_name(index)).exists()]

    def write(index: int) -> None:
        _align_shard(alignment, reader, directory, index)

    written = parallel.in_order(write, missing, num_workers)
    for _ in track(written, f"align ({alignment.name})", total=len(missing)):
        pass


def rejections_at(reader: ShardReader, positions: Iterable[int]) -> Iterator[Rejection]:
    """Which records the rows at these positions of a feature set belong to, and where they are."""
    ends = np.cumsum([block.rows for block in reader.blocks])
    for position in positions:
        block = int(np.searchsorted(ends, position, side="right"))
        row = position - int(ends[block]) + reader.blocks[block].rows
        owner = int(np.searchsorted(np.cumsum(reader.row_counts(block)), row, side="right"))
        yield _rejection(reader, block, row, reader.records(block)[owner])


def _align_shard(alignment: AlignmentMap, reader: ShardReader, directory: Path, index: int) -> None:
    """Write one shard. Blocks that may hold bad rows are mapped as a whole, to find these first."""
    info = reader.header.shards[index]
    with ShardWriter(directory, index, reader.dim, "float32") as writer:
        for block in reader.blocks_of(info.name):
            if info.moments is None:
                _add_good_records(writer, alignment, reader, block)
            else:
                place, pieces = reader.blocks[block], _pieces(alignment, reader, block)
                lines = reader.record_bytes(block)
                writer.copy_block(pieces, place.rows, lines, place.records)


def _pieces(alignment: AlignmentMap, reader: ShardReader, block: int) -> Iterator[np.ndarray]:
    """The aligned rows of a block that was written without a bad row, few at a time.

    Raises:
        ValueError: there is one; it was damaged since.
    """
    ref, keys = reader.blocks[block], _keys(alignment, reader, block)
    size = block_rows(alignment.source_mean.device)
    for start in range(0, ref.rows, size):
        rows = reader.read_features(block, start, start + size)
        own = None if keys is None else keys[start : start + size]
        aligned, bad = _aligned(alignment, rows, own)
        if bad.any():
            raise ValueError(
                f"{reader.directory / ref.shard} block {ref.index}: row "
                f"{start + int(np.flatnonzero(bad)[0])} is zero or not finite, but was not when "
                "it was written; see what else is damaged with "
                f"python scripts/verify_shards.py input={reader.directory}"
            )
        yield aligned


def _aligned(
    alignment: AlignmentMap, rows: np.ndarray, keys: Tensor | None
) -> tuple[np.ndarray, np.ndarray]:
    """Aligned rows, and which of them are bad."""
    aligned, bad = alignment.map_good(from_numpy(rows).to(alignment.source_mean.device), keys)
    return aligned.cpu().numpy(), bad.cpu().numpy()


def _keys(alignment: AlignmentMap, reader: ShardReader, block: int) -> Tensor | None:
    """Noise keys of the rows of a block, where the map is random."""
    if not alignment.is_random:
        return None
    return row_keys(reader.block_row_ids(block), epoch=0)


def _add_good_records(
    writer: ShardWriter, alignment: AlignmentMap, reader: ShardReader, block: int
) -> None:
    """Add a block without the records that have a bad row, and reject these."""
    keys = _keys(alignment, reader, block)
    aligned, bad = _aligned(alignment, reader.features(block), keys)
    records, counts = reader.records(block), reader.row_counts(block)
    owners = np.repeat(np.arange(len(records)), counts)
    found = np.flatnonzero(bad).tolist()
    for row in found:
        writer.reject(_rejection(reader, block, row, records[owners[row]]))
    kept = np.setdiff1d(np.arange(len(records)), owners[found])
    good = aligned[np.isin(owners, kept)]
    writer.add_block(good, [records[k] for k in kept], counts[kept].tolist())


def _rejection(reader: ShardReader, block: int, row: int, record: Record) -> Rejection:
    place = reader.blocks[block]
    address = f"{place.shard}/{place.index:06d}.features.npy row {row}"
    return Rejection(id=record.id, reason=NO_DIRECTION, address=address)


def _digests(header: Header) -> dict[str, str]:
    return {shard.name: shard.sha256 for shard in header.shards}
