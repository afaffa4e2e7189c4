"""Alignment maps on disk: `alignment.safetensors` (float64 buffers) and `alignment.json`.

The JSON says which method with which options was fitted on what: counts, digests of the source
shards, statistics. It is written last, so a directory with one holds a whole map.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from revision.alignment.base import AlignmentMap
from revision.alignment.methods import method
from revision.alignment.noise import noise_card, noise_of
from revision.files import write_bytes
from revision.shards import Header

SCHEMA_VERSION = 1
TENSORS_NAME = "alignment.safetensors"
CARD_NAME = "alignment.json"
CARD_KEYS = {"name", "options", "dim", "sha256", "provenance"}  # without which no map is loaded


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
        ValueError: not an alignment directory, an unknown method, damaged tensors, or others than
            the method has today.
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
    _check_tensors(alignment, tensors, card["dim"], directory / TENSORS_NAME)
    for name, tensor in tensors.items():
        setattr(alignment, name, tensor)
    return alignment


def unfitted(identity: Mapping[str, Any]) -> AlignmentMap:
    """The method of a card, or of the header of aligned shards, without its buffers.

    Raises:
        ValueError: an unknown method, or options that it does not have.
    """
    name, options = identity["name"], identity["options"]
    try:
        alignment = method(name)(**options)
    except TypeError as error:
        raise ValueError(
            f"alignment {name!r} does not take the options {options}: {error}; it was written by "
            "another version: fit it again"
        ) from error
    if identity.get("noise"):
        alignment.noise = noise_of(identity["noise"])
    return alignment


def read_card(directory: Path) -> dict[str, Any]:
    """The content of `alignment.json`.

    Raises:
        ValueError: there is none, or it is of another version or incomplete.
    """
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
    if not isinstance(card, dict):
        raise ValueError(f"{path} holds a {type(card).__name__}, not the card of an alignment")
    if card.get("schema_version") != SCHEMA_VERSION:
        raise ValueError(
            f"{path} has schema version {card.get('schema_version')}, this code reads "
            f"{SCHEMA_VERSION}; fit the alignment again"
        )
    if missing := sorted(CARD_KEYS - card.keys()):
        raise ValueError(f"{path} lacks {', '.join(missing)}; fit the alignment again")
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


def _check_tensors(
    alignment: AlignmentMap, tensors: Mapping[str, Tensor], dim: int, path: Path
) -> None:
    """Refuse a file of other tensors than the method has: it would fail once rows come."""
    if odd := sorted(tensors.keys() ^ set(alignment.buffer_names)):
        raise ValueError(
            f"{path} holds {len(tensors)} tensors, alignment '{alignment.name}' has "
            f"{len(alignment.buffer_names)}; {', '.join(odd)} are on one side only: it was written "
            "by another version; fit the alignment again"
        )
    for name in ("source_mean", "target_mean"):
        if tensors[name].shape != (dim,) or tensors[name].dtype != torch.float64:
            raise ValueError(
                f"{path}: {name} is {tensors[name].dtype} of shape {tuple(tensors[name].shape)}, "
                f"{CARD_NAME} says float64 of shape ({dim},); fit the alignment again"
            )


def _tensors(alignment: AlignmentMap) -> bytes:
    if not alignment.is_fitted:
        raise ValueError(f"alignment '{alignment.name}' is not fitted; there is nothing to save")
    return save({k: v.detach().cpu().contiguous() for k, v in alignment.state_dict().items()})
