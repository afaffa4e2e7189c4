"""Feature sets for tests: synthetic clouds with a gap, written to disk, damaged and read back."""

import json
from pathlib import Path

import numpy as np

from revision.records import Record
from revision.shards import ShardReader, ShardWriter, write_header

ENCODER = {"name": "synthetic", "revision": "1"}


def cloud(seed: int, count: int, dim: int = 24, *, mean: float = 0.5) -> np.ndarray:
    """Anisotropic float32 rows around a random point, not unit norm."""
    rng = np.random.default_rng(seed)
    center = rng.standard_normal(dim)
    center *= mean / np.linalg.norm(center)
    spread = np.arange(1, dim + 1) ** -0.6 / 2
    rows = center + spread * rng.standard_normal((count, dim))
    return (rows * np.exp(0.3 * rng.standard_normal((count, 1)))).astype(np.float32)


def write_set(
    directory: Path,
    rows: np.ndarray,
    kind: str,
    *,
    shard_rows: int = 50,
    block_rows: int = 20,
    encoder: dict = ENCODER,
) -> Path:
    """A feature set with one record per row; ids are row numbers."""
    starts = range(0, len(rows), shard_rows)
    for index, start in enumerate(starts):
        stop = min(start + shard_rows, len(rows))
        with ShardWriter(directory, index, rows.shape[1], str(rows.dtype)) as writer:
            for first in range(start, stop, block_rows):
                ids = range(first, min(first + block_rows, stop))
                records = [Record(id=str(i), text=f"text {i}") for i in ids]
                writer.add_block(rows[ids.start : ids.stop], records)
    write_header(
        directory, kind=kind, encoder=encoder, source={"input": "test"}, num_shards=len(starts)
    )
    return directory


def forget_moments(directory: Path) -> None:
    """Make a set look like one that was written before shards held moments."""
    path = directory / "header.json"
    fields = json.loads(path.read_bytes())
    path.write_text(
        json.dumps(fields | {"shards": [s | {"moments": None} for s in fields["shards"]]})
    )


def damage(directory: Path, position: int, value: float) -> None:
    """Overwrite one stored row with a constant, as no writer of ours would have stored it."""
    forget_moments(directory)
    reader = ShardReader(directory)
    for block, place in enumerate(reader.blocks):
        if position < place.rows:
            rows = reader.features(block)
            stored = np.memmap(rows.filename, rows.dtype, "r+", rows.offset, rows.shape)
            stored[position] = value
            stored.flush()
            return
        position -= place.rows


def read_rows(directory: Path) -> np.ndarray:
    return np.concatenate(list(ShardReader(directory).iter_rows()))
