"""Rows of feature sets that a study draws: all, some at random, or those of some records.

A `Pool` names rows of one set by their positions and reads them when asked to. Draws of pools of
equal size by one seed choose the same places, so pairs that are drawn together stay pairs. Without
held-out sets the records themselves are split: those whose id hashes to an even number are fitted
on, the others are unseen, the same ones in every run and on both sides of a pair.
"""

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Float, Float64, Int64

from revision.alignment.fit import read_sets
from revision.alignment.moments import bad_rows, unit_rows
from revision.alignment.passes import GRID_ROWS
from revision.shards import ShardReader

Part = Literal["all", "fitted", "unseen"]


@dataclass(frozen=True)
class Pool:
    """Rows of `reader` at `positions`, in this order."""

    reader: ShardReader
    positions: Int64[np.ndarray, " n"]

    def __len__(self) -> int:
        return len(self.positions)

    def draw(self, count: int, seed: int | tuple[int, ...], *, repeat: bool = False) -> "Pool":
        """`count` of the rows at random, each at most once unless they may `repeat`.

        Raises:
            ValueError: there are fewer rows and they may not repeat.
        """
        if count > len(self) and not repeat:
            raise ValueError(
                f"{count} rows wanted of {len(self)} in {self.reader.directory}; ask for fewer, "
                "or set resample=true to draw rows more than once"
            )
        generator = np.random.default_rng(seed)
        if repeat:
            return replace(self, positions=generator.choice(self.positions, count))
        kept = np.sort(generator.permutation(len(self))[:count])
        return replace(self, positions=self.positions[kept])

    def batches(self) -> Iterator[np.ndarray]:
        """The rows as they are stored, `GRID_ROWS` at a time."""
        starts = np.cumsum([0, *(block.rows for block in self.reader.blocks)])
        for first in range(0, len(self), GRID_ROWS):
            wanted = self.positions[first : first + GRID_ROWS]
            blocks = np.searchsorted(starts, wanted, side="right") - 1
            rows = np.empty((len(wanted), self.reader.dim), self.reader.header.dtype)
            for block in np.unique(blocks):
                here = blocks == block
                rows[here] = self.reader.features(int(block))[wanted[here] - starts[block]]
            yield rows

    def ids(self) -> list[str]:
        """The ids of the records that the rows belong to."""
        ids = _row_ids(self.reader)
        return [ids[position] for position in self.positions]


def pool_of(directory: Path, *, ids: str | None = None, part: Part = "all") -> Pool:
    """Rows of a feature set whose record ids match the pattern `ids` and lie in this `part`.

    Raises:
        ValueError: not a feature set, or no row is left.
    """
    reader = ShardReader(directory)
    pool = Pool(reader, np.arange(reader.num_rows))
    if ids is None and part == "all":
        return pool
    pattern = re.compile(ids or "")
    wanted = [
        bool(pattern.search(id)) and (part == "all" or _is_unseen(id) == (part == "unseen"))
        for id in _row_ids(reader)
    ]
    pool = replace(pool, positions=np.flatnonzero(wanted))
    if not len(pool):
        raise ValueError(
            f"{directory}: none of {reader.num_rows} rows has an id that matches {ids!r} and lies "
            f"in the {part} part"
        )
    return pool


@dataclass(frozen=True)
class Domain:
    """Where texts (source) and images (target) come from: feature sets, and a pattern of ids.

    Without held-out sets the unseen half of the fitting sets takes their place.
    """

    source: Path
    target: Path
    holdout_source: Path | None = None
    holdout_target: Path | None = None
    ids: str | None = None

    def __post_init__(self) -> None:
        if (self.holdout_source is None) != (self.holdout_target is None):
            raise ValueError(
                f"holdout_source={self.holdout_source} and holdout_target={self.holdout_target}: "
                "give both held-out sets, or neither to hold out half of the records"
            )

    def fitting(self) -> tuple[Pool, Pool]:
        """Texts and images to fit on."""
        part: Part = "fitted" if self.holdout_source is None else "all"
        return self._pools(self.source, self.target, part)

    def unseen(self) -> tuple[Pool, Pool]:
        """Texts and images that took no part in any fit."""
        if self.holdout_source is None or self.holdout_target is None:
            return self._pools(self.source, self.target, "unseen")
        return self._pools(self.holdout_source, self.holdout_target, "all")

    def _pools(self, source: Path, target: Path, part: Part) -> tuple[Pool, Pool]:
        read_sets(source, target)  # refuses swapped, aligned and foreign sets
        return pool_of(source, ids=self.ids, part=part), pool_of(target, ids=self.ids, part=part)


def mean_words(pool: Pool) -> float | None:
    """Words per text of the records that the rows belong to; None where no record has a text."""
    words = _row_words(pool.reader)
    known = [count for count in (words[i] for i in pool.positions) if count is not None]
    return float(np.mean(known)) if known else None


def good_rows(
    text: Pool, image: Pool, *, paired: bool
) -> tuple[Float64[np.ndarray, "n_y dim"], Float64[np.ndarray, "n_x dim"]]:
    """Unit rows of both pools in memory; of pairs, those of which both rows have a direction."""
    rows = [np.concatenate(list(pool.batches())) for pool in (text, image)]
    good = [~bad_rows(side) for side in rows]
    if paired:
        good = [good[0] & good[1]] * 2
    return _unit(rows[0][good[0]]), _unit(rows[1][good[1]])


def _unit(rows: Float[np.ndarray, "n dim"]) -> Float64[np.ndarray, "n dim"]:
    return unit_rows(rows)


def _row_ids(reader: ShardReader) -> tuple[str, ...]:
    return _ids_of(reader.directory, _digests(reader))


@lru_cache(maxsize=16)
def _ids_of(directory: Path, digests: tuple[str, ...]) -> tuple[str, ...]:
    """The ids of a set, parsed once for all jobs of a sweep; `digests` say which set it is."""
    return tuple(ShardReader(directory).row_ids())


def _row_words(reader: ShardReader) -> tuple[int | None, ...]:
    return _words_of(reader.directory, _digests(reader))


@lru_cache(maxsize=16)
def _words_of(directory: Path, digests: tuple[str, ...]) -> tuple[int | None, ...]:
    reader = ShardReader(directory)
    counts: list[int | None] = []
    for block in range(len(reader.blocks)):
        for record, rows in zip(reader.records(block), reader.row_counts(block), strict=True):
            counts += [None if record.text is None else len(record.text.split())] * int(rows)
    return tuple(counts)


def _digests(reader: ShardReader) -> tuple[str, ...]:
    return tuple(shard.sha256 for shard in reader.header.shards)


def _is_unseen(id: str) -> bool:
    return bool(hashlib.blake2b(id.encode(), digest_size=1).digest()[0] % 2)
