"""Fit a map on feature sets on disk: one pass over each modality, one more over text if needed.

Means and traces of whole sets come from the sums that shards carry and cost no pass. Otherwise rows
are streamed by cells of the grid, which threads and processes share without changing a bit. What is
fitted on may be a sample, one domain, or another corpus than the one that is mapped.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch

from revision import parallel
from revision.alignment.base import AlignmentMap, Cloud
from revision.alignment.domain import COVARIANCE_ROWS, compare, with_covariance
from revision.alignment.moments import Moments, Second, moments_of
from revision.alignment.noise import noise_card
from revision.alignment.passes import CPU, GRID_ROWS, Cells
from revision.alignment.selection import RowSource, Subset, evenly, select
from revision.alignment.storage import (
    CARD_NAME,
    feature_set_card,
    load_alignment,
    read_card,
    save_alignment,
)
from revision.encoders.base import is_patches
from revision.shards import ShardReader, verify_moments

SIDES = {"source": "text", "target": "image"}


@dataclass(frozen=True, kw_only=True)
class FitOptions:
    """Which rows a map is fitted on, and how the work is done, which changes no result.

    `rows` of each side are chosen by `seed` among those whose records have the metadata `where`;
    `covariance_rows` of these at even distances are behind a covariance (default: all).
    """

    rows: int | None = None
    seed: int = 0
    where: Mapping[str, Any] = field(default_factory=dict)
    covariance_rows: int | None = None
    num_workers: int = 1
    device: torch.device = CPU

    def card(self) -> dict[str, Any]:
        """What changes the result, for the provenance; empty where all rows are used."""
        sampled = {} if self.rows is None else {"rows": self.rows, "seed": self.seed}
        where = {"where": dict(self.where)} if self.where else {}
        rows = self.covariance_rows
        return sampled | where | ({} if rows is None else {"covariance_rows": rows})


class FeatureSets(NamedTuple):
    """Text rows (source) and image rows (target) of one encoder; they need not be pairs."""

    source: ShardReader
    target: ShardReader


class FeatureRows(NamedTuple):
    """The rows of both sets that a map is fitted on."""

    source: RowSource
    target: RowSource


def read_sets(source_dir: Path, target_dir: Path, *, prefix: str = "") -> FeatureSets:
    """Open both feature sets and check that they can be compared.

    `prefix` stands before "source" and "target" where the user gave them by other keys.

    Raises:
        ValueError: text and images swapped, aligned already, rows of patches, or of two encoders.
    """
    sets = FeatureSets(ShardReader(source_dir), ShardReader(target_dir))
    for side, kind, reader in (("source", "text", sets[0]), ("target", "image", sets[1])):
        if reader.header.kind != kind:
            raise ValueError(
                f"{prefix}{side}={reader.directory} holds {reader.header.kind} features, expected "
                f"{kind}; text is aligned to images, not the other way round"
            )
        if is_patches(reader.header.encoder):
            raise ValueError(
                f"{prefix}{side}={reader.directory} holds "
                f"{reader.header.encoder['rows_per_image']} rows of patches a picture: they lie in "
                "the vision tower's space, where no text is; embed with encoder.pooling=pooled"
            )
        if reader.header.alignment is not None:
            raise ValueError(
                f"{prefix}{side}={reader.directory} is already aligned "
                f"({reader.header.alignment['name']}); give the shards that embed.py wrote"
            )
    _check_one_encoder(*sets)
    return sets


def fit_alignment(
    alignment: AlignmentMap,
    sets: FeatureSets,
    directory: Path,
    options: FitOptions | None = None,
    *,
    mapped: FeatureSets | None = None,
) -> AlignmentMap:
    """The map fitted on `sets` and saved in `directory`, or the one that is there already.

    `mapped` are the sets that the map is for, by default those of the fit; a warning tells where
    the rows of the fit are not of their domain.

    Raises:
        ValueError: `directory` holds a map with other options or of other shards.
    """
    options = options or FitOptions()
    if mapped is not None:
        _check_one_encoder(mapped.source, sets.source)
    provenance: dict[str, Any] = {
        side: feature_set_card(reader.header) for side, reader in sets._asdict().items()
    }
    provenance["fit"] = options.card()
    if parallel.from_first((directory / CARD_NAME).exists()):
        _check_same_fit(alignment, provenance, directory)
        return load_alignment(directory)
    if alignment.needs_pairs:
        _check_pairs(sets, alignment.name)
    rows = FeatureRows(
        *(select(r, count=options.rows, seed=options.seed, where=options.where) for r in sets)
    )
    clouds = {
        side: _cloud(getattr(rows, side), name, alignment.second_moments, options)
        for side, name in SIDES.items()
    }
    provenance["domain"] = _domains(rows, clouds, mapped or sets, options)
    alignment.fit(clouds["source"], clouds["target"])
    for side, cloud in clouds.items():
        provenance[side]["rejected_rows"] = _rejected(getattr(rows, side), cloud.moments)
    if parallel.rank() == 0:
        save_alignment(alignment, directory, provenance)
    parallel.barrier()
    return alignment if parallel.rank() == 0 else load_alignment(directory)


def check_moments(sets: FeatureSets) -> None:
    """Recompute the sums that the shards carry.

    Raises:
        ValueError: they are not those of the rows.
    """
    for reader in sets:
        problems = parallel.from_first(verify_moments(reader) if parallel.rank() == 0 else [])
        if problems:
            raise ValueError(
                f"{reader.directory}: {len(problems)} shards whose moments are not those of their "
                f"rows ({problems[0]}); the means would be wrong: write the set again"
            )


def stored_moments(reader: ShardReader) -> Moments | None:
    """Count, mean and trace of all rows from the sums that the shards carry, if they do."""
    sums = reader.sums()
    return None if sums is None else Moments.of_sums(sums)


def are_pairs(sets: FeatureSets) -> bool:
    """Whether row i of both sets comes from the same record, for every i."""
    if sets.source.num_rows != sets.target.num_rows:
        return False
    pairs = zip(sets.source.row_ids(), sets.target.row_ids(), strict=True)
    return all(source == target for source, target in pairs)


def _check_pairs(sets: FeatureSets, name: str) -> None:
    if not are_pairs(sets):
        raise ValueError(
            f"alignment '{name}' is fitted on pairs, but the rows of {sets.source.directory} "
            f"({sets.source.num_rows}) and {sets.target.directory} ({sets.target.num_rows}) do not "
            "come from the same records in the same order; give paired sets or another method"
        )


def _cloud(rows: RowSource, side: str, second: Second, options: FitOptions) -> Cloud:
    workers = options.num_workers
    moments = _moments(rows, side, second, options.covariance_rows, workers)
    return Cloud(moments, lambda: passing(rows, f"{side} rows", workers), options.device)


def _moments(
    rows: RowSource, side: str, second: Second, covariance_rows: int | None, num_workers: int
) -> Moments:
    """The moments of these rows, without reading them where their sums are stored."""
    if second == "covariance" and covariance_rows is not None and covariance_rows < rows.num_rows:
        whole = _moments(rows, side, "trace", None, num_workers)
        some = passing(evenly(rows, covariance_rows), f"{side} covariance", num_workers)
        return with_covariance(whole, moments_of(some, second=second))
    if second == "trace" and isinstance(rows, ShardReader):
        stored = stored_moments(rows)
        if stored is not None:
            return stored
    return moments_of(passing(rows, f"{side} moments", num_workers), second=second)


def passing(rows: RowSource, description: str, num_workers: int = 1) -> Cells:
    """All rows of a feature set, or some, behind a progress bar that counts cells of the grid."""
    return Cells(rows.num_rows, rows.rows, description, num_workers, GRID_ROWS)


def _domains(
    rows: FeatureRows, clouds: Mapping[str, Cloud], mapped: FeatureSets, options: FitOptions
) -> dict[str, Any]:
    """The test of each side whose fitting rows are not all of the mapped rows."""
    found = {}
    for side, name in SIDES.items():
        fitted, used = getattr(rows, side), getattr(mapped, side)
        if isinstance(fitted, ShardReader) and fitted.header.shards == used.header.shards:
            continue
        whole = _moments(used, name, "trace", None, options.num_workers)
        if whole.count > 1:
            one = _with_sample(fitted, clouds[side].moments, name)
            found[side] = compare(one, _with_sample(used, whole, name), name)
    return found


def _with_sample(rows: RowSource, moments: Moments, side: str) -> Moments:
    some = passing(evenly(rows, COVARIANCE_ROWS), f"{side} domain")
    return with_covariance(moments, moments_of(some, second="covariance"))


def _rejected(rows: RowSource, moments: Moments) -> list[int]:
    """Positions in the set of the rows that a fit left out."""
    positions = list(moments.rejected)
    return rows.positions()[positions].tolist() if isinstance(rows, Subset) else positions


def _check_one_encoder(source: ShardReader, target: ShardReader) -> None:
    text, image = source.header.encoder, target.header.encoder
    differing = sorted(k for k in text.keys() | image.keys() if text.get(k) != image.get(k))
    if differing or source.dim != target.dim:
        shown = [f"{k} {text.get(k)!r} and {image.get(k)!r}" for k in differing]
        shown += [f"width {source.dim} and {target.dim}"] * (source.dim != target.dim)
        raise ValueError(
            f"{source.directory} and {target.directory} come from different encoders "
            f"({'; '.join(shown)}); embed both with the same one"
        )


def _check_same_fit(alignment: AlignmentMap, provenance: dict[str, Any], directory: Path) -> None:
    card = read_card(directory)
    noise = noise_card(alignment.noise)
    wanted = {"name": alignment.name, "options": alignment.options(), "noise": noise}
    differences = [f"{k} {card.get(k)!r}, not {v!r}" for k, v in wanted.items() if card.get(k) != v]
    fitted = card["provenance"]
    for side in SIDES:
        if fitted.get(side, {}).get("shards") != provenance[side]["shards"]:
            differences.append(f"other {side} shards")
    if fitted.get("fit", {}) != provenance["fit"]:
        differences.append(f"rows {fitted.get('fit', {})}, not {provenance['fit']}")
    if differences:
        raise ValueError(
            f"{directory} holds a map fitted with {'; '.join(differences)}. Choose another "
            "output_dir, or delete this one to fit again"
        )
