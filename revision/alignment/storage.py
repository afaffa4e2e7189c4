"""Alignment maps on disk: `alignment.safetensors` (float64 buffers) and `alignment.json`.

The JSON says which method with which options was fitted on what: counts, digests of the source
shards, statistics. It is written last, so a directory with one holds a whole map.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save

from revision.alignment.base import AlignmentMap
from revision.alignment.methods import method
from revision.alignment.noise import noise_card, noise_of
from revision.files import write_bytes
from revision.shards import Header

SCHEMA_VERSION = 1
TENSORS_NAME = "alignment.safetensors"
CARD_NAME = "alignment.json"


def save_alignment(
    alignment: AlignmentMap, directory: Path, provenance: dict[str, Any] | None = None
) -> None:
    """Write a fitted map; `provenance` tells what it was fitted on (see `fit_alignment`)."""
    content = _tensors(alignment)
    card = {
        "schema_version": SCHEMA_VERSION,
        "name": alignment.name,
        "options": alignment.options(),
        "noise": noise_card(alignment.noise),
        "dim": alignment.dim,
        "statistics": statistics(alignment),
        "sha256": hashlib.sha256(content).hexdigest(),
        "history": getattr(alignment, "history", {}),  # loss curves, of maps that are trained
        "provenance": provenance or {},
    }
    write_bytes(directory / TENSORS_NAME, content)
    write_bytes(directory / CARD_NAME, json.dumps(card, indent=2).encode() + b"\n")


def load_alignment(directory: str | Path) -> AlignmentMap:
    """The map that `save_alignment` wrote, bit for bit.

    Raises:
        ValueError: not an alignment directory, an unknown method, or damaged tensors.
    """
    directory = Path(directory)
    card = read_card(directory)
    alignment = unfitted(card)
    try:
        content = (directory / TENSORS_NAME).read_bytes()
        tensors = load(content)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{directory / TENSORS_NAME} cannot be read: {error}") from error
    if hashlib.sha256(content).hexdigest() != card["sha256"]:
        raise ValueError(
            f"{directory / TENSORS_NAME} is not the file that {CARD_NAME} describes (sha256 "
            "differs); fit the alignment again"
        )
    for name in alignment.buffer_names:
        setattr(alignment, name, tensors[name])
    return alignment


def unfitted(identity: Mapping[str, Any]) -> AlignmentMap:
    """The method of a card, or of the header of aligned shards, without its buffers."""
    alignment = method(identity["name"])(**identity["options"])
    if identity.get("noise"):
        alignment.noise = noise_of(identity["noise"])
    return alignment


def read_card(directory: Path) -> dict[str, Any]:
    """The content of `alignment.json`."""
    path = directory / CARD_NAME
    try:
        card = json.loads(path.read_text())
    except FileNotFoundError:
        raise ValueError(
            f"{directory} is not an alignment directory: it has no {CARD_NAME}; "
            "python align.py writes one under <output_dir>/alignment"
        ) from None
    except ValueError as error:
        raise ValueError(f"{path} is not readable JSON: {error}") from error
    if card.get("schema_version") != SCHEMA_VERSION:
        raise ValueError(
            f"{path} has schema version {card.get('schema_version')}, this code reads "
            f"{SCHEMA_VERSION}; fit the alignment again"
        )
    return card


def alignment_digest(alignment: AlignmentMap) -> str:
    """Identity of a fitted map: name, options, noise and every bit of its buffers."""
    method: list[Any] = [alignment.name, alignment.options()]
    if alignment.noise is not None:
        method.append(noise_card(alignment.noise))
    described = json.dumps(method, sort_keys=True).encode()
    return hashlib.sha256(described + _tensors(alignment)).hexdigest()


def statistics(alignment: AlignmentMap) -> dict[str, int | float]:
    """The numbers of a fitted map that fit in a table."""
    gap = alignment.target_mean - alignment.source_mean
    return {
        "source_count": int(alignment.source_count),
        "target_count": int(alignment.target_count),
        "source_mean_norm": float(alignment.source_mean.norm()),
        "target_mean_norm": float(alignment.target_mean.norm()),
        "source_trace": float(alignment.source_trace),
        "target_trace": float(alignment.target_trace),
        "scale": alignment.gain,
        "raw_gap": float(gap.norm()),
    }


def feature_set_card(header: Header) -> dict[str, Any]:
    """What identifies a feature set in a provenance."""
    return {
        "kind": header.kind,
        "num_rows": header.num_rows,
        "dtype": header.dtype,
        "encoder": header.encoder,
        "source": header.source,
        "shards": {shard.name: shard.sha256 for shard in header.shards},
    }


def _tensors(alignment: AlignmentMap) -> bytes:
    if not alignment.is_fitted:
        raise ValueError(f"alignment '{alignment.name}' is not fitted; there is nothing to save")
    return save({k: v.detach().cpu().contiguous() for k, v in alignment.state_dict().items()})
