"""From parts to the JSON object of the geometry report: rows first, then geometry, then verdict.

    fitting   rows that the map and the frame come from        unseen   rows that neither has seen

Either may be missing: sets that a map was not fitted on are unseen, and a map alone with its
fitting rows has no unseen ones. Numbers of both are in the same frame, that of the fitting rows
where there are any.
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from revision.alignment.apply import rejections_at
from revision.alignment.base import AlignmentMap
from revision.alignment.fit import FeatureSets, passing
from revision.alignment.moments import Moments, moments_of
from revision.alignment.parts import (
    Part,
    fit_in_memory,
    fitted_parts,
    halves,
    moved_images,
    part_of,
    split_of,
)
from revision.alignment.samples import Sample, ids_at, mapped_rows, sample_batches, texts_of
from revision.alignment.storage import load_alignment, read_card
from revision.geometry.domain import mismatch
from revision.geometry.measure import Split, frame_of, measure_split
from revision.geometry.measure_cosines import evenly
from revision.geometry.neighbours import nearest_others
from revision.geometry.options import MeasureOptions
from revision.geometry.quality import Scan, sample_quality, scan, shared_rows
from revision.geometry.texts import text_quality
from revision.geometry.verdict import verdict
from revision.progress import track
from revision.records import Rejection
from revision.shards import ShardReader

Json = dict[str, Any]
SPLITS = ("in_sample", "held_out")
MODALITIES = {"source": "text", "target": "image"}
FITTED = ("gap", "pmb", "cob", "pmb_share", "cob_share")
KEPT = ("count", "mean", "trace")  # by a map, of either side


@dataclass(frozen=True)
class Survey:
    """Everything that a report says about two sets of parts and a map."""

    fitting: Part | None
    unseen: Part | None
    alignment: AlignmentMap | None
    options: MeasureOptions
    mapped_domain: Mapping[str, Any] = field(default_factory=dict)  # of the fit's provenance

    @cached_property
    def parts(self) -> dict[str, Part]:
        """The parts that there are, by the name of their split."""
        both = zip(SPLITS, (self.fitting, self.unseen), strict=True)
        return {name: part for name, part in both if part is not None}

    @cached_property
    def splits(self) -> dict[str, Split]:
        return {
            name: split_of(part, self.alignment, self.fitting) for name, part in self.parts.items()
        }

    @property
    def clouds(self) -> dict[str, np.ndarray]:
        """The rows to draw: held-out ones where there are any."""
        return list(self.splits.values())[-1].clouds

    @cached_property
    def readers(self) -> dict[str, ShardReader]:
        """Every feature set once, under the name of its side."""
        found: dict[str, ShardReader] = {}
        for name, part in self.parts.items():
            if part is self.unseen and self.fitting and part.sets is self.fitting.sets:
                continue  # halves of the same sets
            prefix = "holdout_" if name == "held_out" and self.fitting else ""
            found |= {prefix + side: reader for side, reader in part.sets._asdict().items()}
        return found

    @cached_property
    def scans(self) -> dict[str, Scan]:
        """One pass over every row of every set."""
        return {
            side: scan(passing(reader, f"scan {side} rows"))
            for side, reader in self.readers.items()
        }

    def rejections(self, sets: FeatureSets) -> list[Rejection]:
        """The records of bad rows of these sets."""
        return [
            rejection
            for side, reader in self.readers.items()
            if any(reader is each for each in sets)
            for rejection in rejections_at(reader, self.scans[side].bad_positions)
        ]

    def report(self) -> Json:
        """The JSON object without its inputs."""
        measured = dict(self._measured())
        report: Json = {
            "alignment": self._map_card(),
            "dim": next(iter(self.readers.values())).dim,
            "encoder": next(iter(self.readers.values())).header.encoder,
            "options": asdict(self.options),
            "sets": {s: str(r.directory) for s, r in self.readers.items()},
            "quality": {side: self._quality(side) for side in self.readers},
            "domain": self._domain(),
            "seen_before": self._seen_before(),
            **{name: measured.get(name) for name in SPLITS},
        }
        report["summary"] = self._summary(report)
        report["verdict"] = verdict(report)
        return report

    def _measured(self) -> Iterator[tuple[str, Json]]:
        frame = frame_of(next(iter(self.splits.values())), self.options)
        for name, split in track(self.splits.items(), "geometry"):
            found = measure_split(split, frame, self.options)
            if name == "in_sample" and found["after"]:
                for key in FITTED:  # draws do not fit the map again
                    found["after"][key] |= {"low": None, "high": None}
            sets = self.parts[name].sets
            totals = {"all_text": sets.source.num_rows, "all_image": sets.target.num_rows}
            found["rows"] |= totals
            found["frame"] = {"rank": frame.rank, "energy": frame.energy}
            yield name, found

    def _map_card(self) -> Json | None:
        if self.alignment is None:
            return None
        return {
            "name": self.alignment.name,
            "options": self.alignment.options(),
            "num_source": int(self.alignment.source_count),
            "num_target": int(self.alignment.target_count),
            "scale": self.alignment.gain,
            "changes_images": self.alignment.changes_images,
        }

    def _quality(self, side: str) -> Json:
        reader, sample = self.readers[side], self._sample(side)
        rows = evenly(sample.rows, self.options.neighbour_rows)
        found = nearest_others(rows, min(self.options.neighbours, len(rows) - 1))
        nearest, distant = (np.einsum("nd,nd->n", rows, rows[found[:, k]]) for k in (0, -1))
        seen = sample_quality(rows, nearest, distant)
        odd = np.sort(evenly(sample.positions, len(rows))[seen["outlier_positions"]])
        is_text = reader.header.kind == "text"
        texts = texts_of(reader, self.options.num_rows) if is_text else []
        return {
            "unit_norm": reader.header.unit_norm,
            "scan": self.scans[side].to_json(),
            "sample": seen
            | {"outlier_positions": odd.tolist(), "outlier_ids": ids_at(reader, odd)},
            "texts": text_quality(texts),
        }

    def _sample(self, side: str) -> Sample:
        part = self.unseen if side.startswith("holdout_") else next(iter(self.parts.values()))
        assert part is not None
        return part.text if side.endswith("source") else part.image

    def _domain(self) -> Json:
        """Fitting rows against those that the map was made for and against unseen ones."""
        found = {f"mapped {MODALITIES[side]}": test for side, test in self.mapped_domain.items()}
        if not self.unseen or not (self.fitting or self.alignment):
            return found
        for side, sample in (("source", self.unseen.text), ("target", self.unseen.image)):
            here = moments_of([sample.rows], second="covariance")
            test = mismatch(self._fitted_moments(side, here), here)
            found[f"held-out {MODALITIES[side]}"] = asdict(test) | {"ratio": test.ratio}
        return found

    def _fitted_moments(self, side: str, here: Moments) -> Moments:
        """Of the sampled fitting rows, or those that a map kept, with the covariance of `here`."""
        if self.fitting:
            sample = self.fitting.text if side == "source" else self.fitting.image
            return moments_of([sample.rows], second="covariance")
        count, mean, trace = (getattr(self.alignment, f"{side}_{k}") for k in KEPT)
        square = float(trace + mean @ mean)
        return replace(here, count=int(count), mean=mean.numpy(), mean_square=square)

    def _seen_before(self) -> Json:
        """Share of held-out rows that are copies of fitting rows, as far as both are sampled."""
        if not self.fitting or not self.unseen:
            return {}
        return {
            "text": shared_rows(self.unseen.text.rows, self.fitting.text.rows),
            "image": shared_rows(self.unseen.image.rows, self.fitting.image.rows),
        }

    def _summary(self, report: Json) -> Json:
        """The few numbers that other programs read."""
        first = report["in_sample"] or report["held_out"]
        numbers: Json = {"raw_gap": first["before"]["gap"]["value"], "in_sample_gap": None}
        if self.alignment is not None and self.fitting is not None:
            numbers |= _gaps_of_all(self.alignment, self.fitting, first)
        unseen = report["held_out"]
        numbers["held_out"] = _held_out(unseen) if unseen else None
        numbers["source_trace"] = first["clouds"]["text"]["trace"]["value"]
        numbers["target_trace"] = first["clouds"]["image"]["trace"]["value"]
        if first["preservation"]:
            numbers["aligned_trace"] = first["clouds"]["mapped"]["trace"]["value"]
            numbers["phi"] = first["preservation"]["phi"]["value"]
            numbers["phi_bound"] = first["preservation"]["phi"]["null"]
        return numbers


def survey_sets(
    sets: FeatureSets,
    options: MeasureOptions,
    *,
    to_fit: AlignmentMap | None = None,
    map_dir: Path | None = None,
    paired: bool | None = None,
) -> Survey:
    """A survey of sets on their own, with a map to fit on half of them, or one from a directory."""
    if map_dir is None:
        fitting, unseen = halves(part_of(sets, options.num_rows, paired=paired))
        return Survey(fitting, unseen, to_fit and fit_in_memory(to_fit, fitting), options)
    alignment, fitted = load_alignment(map_dir), read_card(map_dir)["provenance"]
    digests = {k: {s.name: s.sha256 for s in r.header.shards} for k, r in sets._asdict().items()}
    if all(fitted.get(side, {}).get("shards") == found for side, found in digests.items()):
        seen, rest = fitted_parts(sets, fitted.get("fit", {}), options.num_rows, paired=paired)
        return Survey(seen, rest, alignment, options)
    part = part_of(sets, options.num_rows, paired=paired)
    return Survey(None, part, alignment, options)


def _held_out(split: Json) -> Json:
    best = split["after"] or split["before"]
    return {
        "num_source": split["rows"]["text"],
        "num_target": split["rows"]["image"],
        "raw_gap": split["before"]["gap"]["value"],
        "gap": split["after"]["gap"]["value"] if split["after"] else None,
        "floor": best["gap"]["null"],
        "ratio": best["gap"]["value"] / best["gap"]["null"],
        "paired_cosine_raw": _cosine(split["before"]),
        "paired_cosine": _cosine(split["after"]),
    }


def _cosine(comparison: Json | None) -> float | None:
    paired = comparison and comparison["paired"]
    return paired["cosine"]["value"] if paired else None


def _gaps_of_all(alignment: AlignmentMap, part: Part, measured: Json) -> Json:
    """Gaps over all fitting rows: those of the sample, if that is all of them, or another pass.

    The mean of a sample of fitting rows has a sampling error that the mean of all of them has not.
    """
    text, image = part.sets
    if len(part.text.rows) == alignment.source_count and len(part.image.rows) == int(
        alignment.target_count
    ):
        gaps = (measured[stage]["gap"]["value"] for stage in ("before", "after"))
        return dict(zip(("raw_gap", "in_sample_gap"), gaps, strict=True))
    raw = alignment.target_mean.numpy() - alignment.source_mean.numpy()
    among = part.among or (None, None)
    blocks = track(sample_batches(text, among[0]), "in-sample gap", total=len(text.blocks))
    mapped = _mean(mapped_rows(alignment, text, sample) for sample in blocks)
    target = alignment.target_mean.numpy()
    if alignment.changes_images:
        moved = sample_batches(image, among[1])
        target = _mean(moved_images(alignment, sample.rows) for sample in moved)
    return {
        "raw_gap": float(np.linalg.norm(raw)),
        "in_sample_gap": float(np.linalg.norm(target - mapped)),
    }


def _mean(batches: Iterator[np.ndarray]) -> np.ndarray:
    total, count = 0.0, 0
    for rows in batches:
        total = total + rows.sum(0)
        count += len(rows)
    return np.asarray(total / count)
