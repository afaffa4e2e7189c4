"""Which rows of a feature set a map is fitted on: all, a sample of them, or those of a domain.

A sampled row is chosen by the hash of (seed, record id, number of the row in its record): the
`count` smallest hashes win. The choice depends on neither the order nor the shards, and sides with
the same ids keep the same records, so pairs stay pairs.

A subset is held as one bit per row of the set.
"""

import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from hashlib import blake2b
from typing import Any

import numpy as np
from jaxtyping import Int64, UInt64

from revision.progress import track
from revision.shards import ShardReader
from revision.shards.layout import Rows

SHOWN_VALUES = 5


class Subset:
    """Some rows of a set, read by their places among themselves."""

    def __init__(self, reader: ShardReader, positions: Int64[np.ndarray, " n"]) -> None:
        """`positions` of the rows in the set, ascending."""
        self.reader = reader
        self._starts = np.cumsum([0, *(block.rows for block in reader.blocks)], dtype=np.int64)
        self._ends = np.searchsorted(positions, self._starts[1:])
        self._bits = [self._packed(block, positions) for block in range(len(reader.blocks))]

    @property
    def num_rows(self) -> int:
        return int(self._ends[-1])

    def rows(self, start: int, stop: int) -> Rows:
        """Rows `start` to `stop` of the subset."""
        pieces = []
        block = int(np.searchsorted(self._ends, start, side="right"))
        while start < stop:
            first = int(self._ends[block - 1]) if block else 0
            places = self._places(block)[start - first : stop - first]
            pieces.append(self.reader.features(block)[places])
            start += len(places)
            block += 1
        return np.concatenate(pieces)

    def positions(self) -> Int64[np.ndarray, " n"]:
        """Where the rows stand in the set."""
        blocks = range(len(self._bits))
        return np.concatenate([self._starts[block] + self._places(block) for block in blocks])

    def _packed(self, block: int, positions: np.ndarray) -> np.ndarray:
        mask = np.zeros(self.reader.blocks[block].rows, bool)
        first = int(self._ends[block - 1]) if block else 0
        mask[positions[first : self._ends[block]] - self._starts[block]] = True
        return np.packbits(mask)

    def _places(self, block: int) -> np.ndarray:
        count = self.reader.blocks[block].rows
        return np.flatnonzero(np.unpackbits(self._bits[block], count=count))


RowSource = ShardReader | Subset


def select(
    reader: ShardReader, *, count: int | None, seed: int, where: Mapping[str, Any]
) -> RowSource:
    """The rows whose records have the metadata `where`, at most `count` of them; all by default.

    Raises:
        ValueError: no record has this metadata.
    """
    if count is None and not where:
        return reader
    chosen = [(np.zeros(0, np.uint64), np.zeros(0, np.int64))]
    for candidates in track(_candidates(reader, seed, where), f"choose {reader.header.kind} rows"):
        chosen.append(candidates)
        if count is not None and sum(len(positions) for _, positions in chosen) > 2 * count:
            chosen = [_nearest(chosen, count)]
    _, positions = _nearest(chosen, count)
    if not len(positions):
        raise ValueError(
            f"no row of {reader.directory} comes from a record with metadata {dict(where)}; "
            f"{_known(reader, where)}"
        )
    if count is not None and len(positions) < count:
        warnings.warn(
            f"{count} rows of {reader.directory} were asked for, it has {len(positions)}: all of "
            "them are used, and none is left to measure on",
            stacklevel=2,
        )
    return Subset(reader, np.sort(positions))


def evenly(rows: RowSource, count: int) -> RowSource:
    """`count` rows at even distances; all where there are no more."""
    if count >= rows.num_rows:
        return rows
    places = np.arange(count, dtype=np.int64) * rows.num_rows // count
    if isinstance(rows, Subset):
        return Subset(rows.reader, rows.positions()[places])
    return Subset(rows, places)


def _candidates(
    reader: ShardReader, seed: int, where: Mapping[str, Any]
) -> Iterator[tuple[UInt64[np.ndarray, " n"], Int64[np.ndarray, " n"]]]:
    """Hashes and positions of the rows of each block whose records have this metadata."""
    start = 0
    for block, place in enumerate(reader.blocks):
        lines = [json.loads(line) for line in reader.record_lines(block)]
        digests: list[bytes] = []
        places: list[int] = []
        row = start
        for fields in lines:
            count = fields.get("num_rows", 1)
            if _matches(fields.get("metadata", {}), where):
                digests += [_digest(seed, fields["id"], index) for index in range(count)]
                places += range(row, row + count)
            row += count
        start += place.rows
        yield np.frombuffer(b"".join(digests), "<u8"), np.array(places, np.int64)


def _nearest(
    chosen: Sequence[tuple[np.ndarray, np.ndarray]], count: int | None
) -> tuple[np.ndarray, np.ndarray]:
    """Those with the `count` smallest hashes, or all."""
    hashes, positions = (np.concatenate(parts) for parts in zip(*chosen, strict=True))
    first = np.lexsort([positions, hashes])[:count]
    return hashes[first], positions[first]


def _digest(seed: int, id: str, index: int) -> bytes:
    content = f"{index} {id}".encode("utf-8", "surrogatepass")
    return blake2b(content, digest_size=8, salt=(seed % 2**64).to_bytes(8, "little")).digest()


def _matches(metadata: Mapping[str, Any], where: Mapping[str, Any]) -> bool:
    return all(key in metadata and str(metadata[key]) == str(where[key]) for key in where)


def _known(reader: ShardReader, where: Mapping[str, Any]) -> str:
    """Some of the values of the keys in the first records, or the keys that there are."""
    metadata = [record.metadata for record in reader.records(0)] if reader.blocks else []
    found = []
    for key in where:
        values = sorted({str(m[key]) for m in metadata if key in m})
        if values:
            found.append(f"there are {key} in {values[:SHOWN_VALUES]}")
        else:
            keys = sorted({name for m in metadata for name in m})
            found.append(
                f"none of the first {len(metadata)} records has the key {key!r}, "
                f"they have {', '.join(keys) or 'no metadata at all'}"
            )
    return "; ".join(found)
