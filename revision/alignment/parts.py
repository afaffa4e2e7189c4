"""The two sides of a split in memory, and the map's effect on them: what a report measures.

A part is a sample of the text and the image rows of one pair of feature sets. Parts that are pairs
hold the same records in the same order. `halves` cuts a part in two by alternating rows, for sets
that come without held-out rows and without a map that was fitted on them.

    fit noise   T_x / N_x + s^2 T_y / N_y      or  tr Cov(x - z) / N  where the fit was on pairs

Letters: x image, y text, z mapped text row; T trace, N fitting rows, s scale of the map.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from revision.alignment.base import AlignmentMap, Cloud
from revision.alignment.fit import FeatureSets, are_pairs
from revision.alignment.samples import Sample, mapped_rows, same_records, sample_of
from revision.alignment.selection import RowSource, Subset, select
from revision.geometry.floor import paired_noise, unpaired_noise
from revision.geometry.measure import MIN_ROWS, Split, check_size


@dataclass(frozen=True)
class Part:
    """A sample of text and image rows, and the sets that it came from.

    `among` are the positions that the sample was drawn from, on both sides; None means all.
    """

    sets: FeatureSets
    text: Sample
    image: Sample
    paired: bool
    among: tuple[np.ndarray, np.ndarray] | None = None


def part_of(
    sets: FeatureSets,
    num_rows: int,
    *,
    paired: bool | None = None,
    among: tuple[np.ndarray, np.ndarray] | None = None,
) -> Part:
    """Sample both sides; `paired=None` finds out from the records' ids.

    Raises:
        ValueError: `paired` sets of different length, or too few good rows.
    """
    if paired and sets.source.num_rows != sets.target.num_rows:
        raise ValueError(
            f"paired=true, but {sets.source.directory} has {sets.source.num_rows} rows and "
            f"{sets.target.directory} {sets.target.num_rows}: row i of both must be a pair; give "
            "the sets that one run of embed.py wrote, or paired=false"
        )
    paired = are_pairs(sets) if paired is None else paired
    text, image = (
        sample_of(reader, num_rows, rows)
        for reader, rows in zip(sets, among or (None, None), strict=True)
    )
    if paired:
        text, image = same_records(text, image)
    check_size(len(text.rows), len(image.rows))
    return Part(sets, text, image, paired, among)


def fitted_parts(
    sets: FeatureSets, fit: Mapping[str, Any], num_rows: int, *, paired: bool | None = None
) -> tuple[Part, Part | None]:
    """Rows that a map was fitted on, and others of the same sets where `fit` took only some.

    `fit` is that of a map's provenance: the sample or the domain that it was fitted on. `paired`
    is that of `part_of`.
    """
    if "rows" not in fit and "where" not in fit:
        return part_of(sets, num_rows, paired=paired), None
    chosen = [
        select(reader, count=fit.get("rows"), seed=fit.get("seed", 0), where=fit.get("where", {}))
        for reader in sets
    ]
    used = [_positions(rows) for rows in chosen]
    rest = [
        np.setdiff1d(np.arange(reader.num_rows), positions)
        for reader, positions in zip(sets, used, strict=True)
    ]
    paired = (are_pairs(sets) if paired is None else paired) and np.array_equal(used[0], used[1])
    fitting = part_of(sets, num_rows, paired=paired, among=(used[0], used[1]))
    if min(map(len, rest)) < MIN_ROWS:
        return fitting, None
    return fitting, part_of(sets, num_rows, paired=paired, among=(rest[0], rest[1]))


def halves(part: Part) -> tuple[Part, Part]:
    """Every other row, and the rest."""
    first, second = (
        replace(part, text=_every_other(part.text, k), image=_every_other(part.image, k))
        for k in (0, 1)
    )
    return first, second


def fit_in_memory(alignment: AlignmentMap, part: Part) -> AlignmentMap:
    """The map fitted on the rows of a part.

    Raises:
        ValueError: a method that needs pairs, and rows that are none.
    """
    if alignment.needs_pairs and not part.paired:
        raise ValueError(
            f"alignment '{alignment.name}' is fitted on pairs, but the rows of "
            f"{part.sets.source.directory} and {part.sets.target.directory} are no pairs"
        )
    alignment.fit(Cloud.of(part.text.rows), Cloud.of(part.image.rows))
    return alignment


def split_of(part: Part, alignment: AlignmentMap | None, fitting: Part | None) -> Split:
    """The rows of a part before and after the map, which was fitted on the rows `fitting`."""
    text, image = part.text.rows, part.image.rows
    if alignment is None:
        return Split(text, image, part.paired)
    return Split(
        text=text,
        image=image,
        paired=part.paired,
        mapped=mapped_rows(alignment, part.sets.source, part.text),
        moved=moved_images(alignment, image) if alignment.changes_images else None,
        fit_noise=_fit_noise(alignment, fitting),
        shift=alignment.shift.numpy(),
    )


def moved_images(alignment: AlignmentMap, rows: np.ndarray) -> np.ndarray:
    """Image rows as the map wants them, in float64."""
    moved: np.ndarray = alignment.forward_images(torch.from_numpy(rows)).double().numpy()
    return moved


def _fit_noise(alignment: AlignmentMap, fitting: Part | None) -> float:
    """What the sampling error of the fit adds to a squared held-out gap."""
    if fitting is not None and fitting.paired:
        mapped = mapped_rows(alignment, fitting.sets.source, fitting.text)
        sampled = len(mapped) / int(alignment.source_count)
        return paired_noise(mapped, fitting.image.rows) * sampled
    return unpaired_noise(
        float(alignment.target_trace),
        int(alignment.target_count),
        float(alignment.source_trace),
        int(alignment.source_count),
        alignment.gain,
    )


def _positions(rows: RowSource) -> np.ndarray:
    return rows.positions() if isinstance(rows, Subset) else np.arange(rows.num_rows)


def _every_other(sample: Sample, first: int) -> Sample:
    return Sample(sample.rows[first::2], sample.positions[first::2])
