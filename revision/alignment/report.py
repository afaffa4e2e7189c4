"""The gap report of a fitted map on disk: `gap.json`, `gap.png` and `quarantine.jsonl`."""

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from revision.alignment.apply import rejections_at
from revision.alignment.base import AlignmentMap
from revision.alignment.figure import draw_gap
from revision.alignment.fit import FeatureSets, are_pairs, passing
from revision.alignment.geometry import (
    HeldOut,
    aligned_moments,
    gap_numbers,
    held_out,
    held_out_pairs,
)
from revision.alignment.moments import bad_rows, unit_rows
from revision.alignment.storage import alignment_digest, read_card
from revision.files import write_bytes
from revision.records import Rejection, json_line
from revision.shards import ShardReader

MAP_NAME = "alignment"
GAP_NAME, FIGURE_NAME, QUARANTINE_NAME = "gap.json", "gap.png", "quarantine.jsonl"
DRAWN_ROWS = 1000


def write_report(
    alignment: AlignmentMap, fitting: FeatureSets, unseen: FeatureSets | None, directory: Path
) -> dict[str, Any]:
    """Measure, draw and write everything, unless `directory` has the report of these inputs.

    Returns:
        The content of `gap.json`.
    """
    inputs = _inputs(alignment, fitting, unseen)
    if (finished := _finished(directory, inputs)) is not None:
        return finished
    fitted = aligned_moments(alignment, passing(fitting.source, "in-sample gap"))
    measured = None if unseen is None else measure_held_out(alignment, unseen)
    numbers = gap_numbers(alignment, fitted, measured)
    rejections = list(_rejections(directory, fitting, unseen, measured))
    lines = b"".join(json_line(asdict(rejection)) for rejection in rejections)
    numbers |= {"num_quarantined": len(rejections), "inputs": inputs}
    write_bytes(directory / QUARANTINE_NAME, lines)
    _draw(alignment, fitting, numbers, directory / FIGURE_NAME)
    write_bytes(directory / GAP_NAME, json.dumps(numbers, indent=2).encode() + b"\n")
    return numbers


def measure_held_out(alignment: AlignmentMap, sets: FeatureSets) -> HeldOut:
    """The held-out gap; rows count as pairs where the record ids of both sets agree in order."""
    measure = held_out_pairs if are_pairs(sets) else held_out
    text, image = (passing(r, f"held-out {side} rows") for side, r in sets._asdict().items())
    return measure(alignment, text, image)


def summary(numbers: dict[str, Any]) -> str:
    """The report in one line."""
    line = f"gap {numbers['raw_gap']:.4g} raw, {numbers['in_sample_gap']:.3g} in-sample"
    if unseen := numbers["held_out"]:
        line += (
            f"; held-out {unseen['raw_gap']:.4g} raw, {unseen['gap']:.3g} aligned "
            f"({unseen['ratio']:.2f} x the sampling floor {unseen['floor']:.3g})"
        )
    if numbers["num_quarantined"]:
        line += f"; {numbers['num_quarantined']} rows rejected, listed in {QUARANTINE_NAME}"
    return line


def sample_rows(reader: ShardReader, count: int) -> np.ndarray:
    """About `count` good rows at even distances over the whole set."""
    step = max(1, reader.num_rows // count)
    first, pieces = 0, []
    for block, place in enumerate(reader.blocks):
        pieces.append(np.asarray(reader.features(block)[first::step]))
        first = (first - place.rows) % step
    rows = np.concatenate(pieces)
    return rows[~bad_rows(rows)]


def _draw(alignment: AlignmentMap, sets: FeatureSets, numbers: dict[str, Any], path: Path) -> None:
    text = sample_rows(sets.source, DRAWN_ROWS)
    image = unit_rows(sample_rows(sets.target, DRAWN_ROWS))
    gaps = {"raw": numbers["raw_gap"], "in-sample": numbers["in_sample_gap"]}
    if unseen := numbers["held_out"]:
        gaps |= {"held-out": unseen["gap"], "floor": unseen["floor"]}
    aligned = alignment(torch.tensor(text)).numpy()
    title = f"modality gap, alignment = {alignment.name}"
    draw_gap(path, image=image, text=unit_rows(text), aligned=aligned, gaps=gaps, title=title)


def _rejections(
    directory: Path, fitting: FeatureSets, unseen: FeatureSets | None, measured: HeldOut | None
) -> Iterator[Rejection]:
    fit = read_card(directory / MAP_NAME)["provenance"]
    for side, reader in fitting._asdict().items():
        yield from rejections_at(reader, fit[side]["rejected_rows"])
    if unseen is not None and measured is not None:
        yield from rejections_at(unseen.source, measured.rejected_source)
        yield from rejections_at(unseen.target, measured.rejected_target)


def _inputs(
    alignment: AlignmentMap, fitting: FeatureSets, unseen: FeatureSets | None
) -> dict[str, Any]:
    sets = {**fitting._asdict(), **_prefixed(unseen)}
    digests = {side: [s.sha256 for s in r.header.shards] for side, r in sets.items()}
    return {"alignment": alignment_digest(alignment), **digests}


def _prefixed(unseen: FeatureSets | None) -> dict[str, ShardReader]:
    return {f"holdout_{k}": r for k, r in unseen._asdict().items()} if unseen else {}


def _finished(directory: Path, inputs: dict[str, Any]) -> dict[str, Any] | None:
    path = directory / GAP_NAME
    if not path.exists():
        return None
    numbers = json.loads(path.read_text())
    return numbers if numbers["inputs"] == inputs else None
