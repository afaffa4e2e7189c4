"""Fit a map on feature sets on disk: one pass over each modality, one more over text if needed."""

from pathlib import Path
from typing import Any, NamedTuple

from revision.alignment.base import AlignmentMap, Cloud
from revision.alignment.moments import Batches, Second, moments_of
from revision.alignment.noise import noise_card
from revision.alignment.storage import (
    CARD_NAME,
    feature_set_card,
    load_alignment,
    read_card,
    save_alignment,
)
from revision.progress import track
from revision.shards import GRID_ROWS, ShardReader


class FeatureSets(NamedTuple):
    """Text rows (source) and image rows (target) of one encoder; they need not be pairs."""

    source: ShardReader
    target: ShardReader


def read_sets(source_dir: Path, target_dir: Path) -> FeatureSets:
    """Open both feature sets and check that they can be compared.

    Raises:
        ValueError: text and images swapped, aligned already, or of two encoders.
    """
    sets = FeatureSets(ShardReader(source_dir), ShardReader(target_dir))
    for side, kind, reader in (("source", "text", sets[0]), ("target", "image", sets[1])):
        if reader.header.kind != kind:
            raise ValueError(
                f"{side}={reader.directory} holds {reader.header.kind} features, expected {kind}; "
                "text is aligned to images, not the other way round"
            )
        if reader.header.alignment is not None:
            raise ValueError(
                f"{side}={reader.directory} is already aligned "
                f"({reader.header.alignment['name']}); give the shards that embed.py wrote"
            )
    _check_one_encoder(*sets)
    return sets


def fit_alignment(alignment: AlignmentMap, sets: FeatureSets, directory: Path) -> AlignmentMap:
    """The map fitted on `sets` and saved in `directory`, or the one that is there already.

    Raises:
        ValueError: `directory` holds a map with other options or of other shards.
    """
    provenance = {side: feature_set_card(r.header) for side, r in sets._asdict().items()}
    if (directory / CARD_NAME).exists():
        _check_same_fit(alignment, provenance, directory)
        return load_alignment(directory)
    if alignment.needs_pairs:
        _check_pairs(sets, alignment.name)
    source = _cloud(sets.source, "text", alignment.second_moments)
    target = _cloud(sets.target, "image", alignment.second_moments)
    alignment.fit(source, target)
    provenance["source"]["rejected_rows"] = list(source.moments.rejected)
    provenance["target"]["rejected_rows"] = list(target.moments.rejected)
    save_alignment(alignment, directory, provenance)
    return alignment


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


def _cloud(reader: ShardReader, side: str, second: Second) -> Cloud:
    moments = moments_of(passing(reader, f"{side} moments"), second=second)
    return Cloud(moments, lambda: passing(reader, f"{side} rows"))


def passing(reader: ShardReader, description: str) -> Batches:
    """All rows of a feature set behind a progress bar that counts cells of the grid."""
    return track(reader.iter_rows(), description, total=-(-reader.num_rows // GRID_ROWS))


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
    for side, description in provenance.items():
        if card["provenance"].get(side, {}).get("shards") != description["shards"]:
            differences.append(f"other {side} shards")
    if differences:
        raise ValueError(
            f"{directory} holds a map fitted with {'; '.join(differences)}. Choose another "
            "output_dir, or delete this one to fit again"
        )
