"""A sample of a feature set in memory: rows at even distances, their texts, and the mapped rows.

Rows are taken by position, so two sets of pairs give the same records, and the same call gives the
same rows. Texts come from whole blocks at even distances instead, because reading one record costs
as much as reading its block.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64

from revision.alignment.base import AlignmentMap
from revision.alignment.moments import bad_rows, unit_rows
from revision.alignment.noise import row_keys
from revision.shards import ShardReader

Positions = Int64[np.ndarray, " n"]


@dataclass(frozen=True)
class Sample:
    """Good rows of a set, of norm 1, and where they stand in it."""

    rows: Float64[np.ndarray, "n dim"]
    positions: Positions


def even_positions(num_rows: int, count: int) -> Positions:
    """`count` positions of `num_rows` at even distances; all of them where there are no more."""
    count = min(count, num_rows)
    return np.arange(count, dtype=np.int64) * num_rows // max(count, 1)


def sample_of(reader: ShardReader, count: int, among: Positions | None = None) -> Sample:
    """About `count` rows of a set, or `among` some of its rows, without those that are bad."""
    if among is None:
        positions = even_positions(reader.num_rows, count)
    else:
        positions = among[even_positions(len(among), count)]
    rows = _rows_at(reader, positions)
    good = ~bad_rows(rows)
    return Sample(unit_rows(rows[good]), positions[good])


def same_records(one: Sample, two: Sample) -> tuple[Sample, Sample]:
    """The rows of two samples of paired sets that are good on both sides."""
    shared = np.intersect1d(one.positions, two.positions, assume_unique=True)
    first, second = (s.rows[np.searchsorted(s.positions, shared)] for s in (one, two))
    return Sample(first, shared), Sample(second, shared)


def mapped_rows(
    alignment: AlignmentMap, reader: ShardReader, sample: Sample
) -> Float64[np.ndarray, "n dim"]:
    """What the map makes of sampled text rows, with the noise of their records in epoch 0."""
    keys = None
    if alignment.is_random:
        keys = row_keys(ids_at(reader, sample.positions), epoch=0)
    return alignment(torch.from_numpy(sample.rows), keys).double().numpy()


def sample_batches(reader: ShardReader, among: Positions | None = None) -> Iterator[Sample]:
    """All good rows of a set, or of those `among` them, block by block."""
    start = 0
    for block, place in enumerate(reader.blocks):
        rows = np.asarray(reader.features(block))
        good = ~bad_rows(rows)
        if among is not None:
            first, last = np.searchsorted(among, [start, start + place.rows])
            good &= np.isin(np.arange(place.rows), among[first:last] - start)
        if good.any():
            yield Sample(unit_rows(rows[good]), start + np.flatnonzero(good))
        start += place.rows


def texts_of(reader: ShardReader, count: int) -> list[str | None]:
    """Texts of the records of about `count` rows, in blocks at even distances."""
    wanted = -(-len(reader.blocks) * min(count, reader.num_rows) // max(reader.num_rows, 1))
    blocks = even_positions(len(reader.blocks), wanted)
    return [record.text for block in blocks for record in reader.records(int(block))][:count]


def _rows_at(reader: ShardReader, positions: Positions) -> Float[np.ndarray, "n dim"]:
    pieces, start = [], 0
    for block, place in enumerate(reader.blocks):
        first, last = np.searchsorted(positions, [start, start + place.rows])
        if last > first:
            pieces.append(np.asarray(reader.features(block)[positions[first:last] - start]))
        start += place.rows
    return np.concatenate(pieces)


def ids_at(reader: ShardReader, positions: Positions) -> list[str]:
    """Ids of the records that rows at ascending positions belong to."""
    ids: list[str] = []
    start = 0
    for block, place in enumerate(reader.blocks):
        first, last = np.searchsorted(positions, [start, start + place.rows])
        if last > first:
            owners = reader.block_row_ids(block)
            ids += [owners[p] for p in positions[first:last] - start]
        start += place.rows
    return ids
