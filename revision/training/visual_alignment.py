"""Which alignment a visual stage trains with: what text rows go through, and what images do.

load_row_map     data.alignment and noise, for the rows of text shards when they are read
find_alignment   the map behind the features: given, beside the shards, or of an earlier stage
load_image_map   that map, if image rows have to go through it as well
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from revision.alignment.base import AlignmentMap
from revision.alignment.methods import method_names
from revision.alignment.noise import Disturbed, Noise
from revision.alignment.storage import alignment_digest, load_alignment, read_card, unfitted
from revision.data.shard_source import RowMap
from revision.shards import Header, read_header
from revision.training.jobs import check_identity

MAP_NAME = "alignment"


def load_row_map(cfg: Any, noise: Noise | None) -> RowMap | None:
    """What the rows of text shards go through when they are read: `data.alignment`, `noise`."""
    alignment = _alignment(cfg)
    if noise is None:
        return alignment
    if alignment is not None:
        alignment.add_noise(noise)
        return alignment
    _check_takes_noise(cfg)
    return Disturbed(noise)


def training_sets(cfg: Any) -> list[Path]:
    """The feature sets of the training data: `data.shards`, or those of `data.mixture`."""
    parts = [cfg.data] if cfg.data.mixture is None else cfg.data.mixture
    return [Path(part["shards"]) for part in parts if part.get("shards")]


def _headers(cfg: Any) -> dict[Path, Header]:
    return {path: read_header(path) for path in training_sets(cfg)}


def _text_sets(cfg: Any) -> dict[Path, Header]:
    return {path: header for path, header in _headers(cfg).items() if header.kind == "text"}


def _check_takes_noise(cfg: Any) -> None:
    texts = _text_sets(cfg)
    if not texts:
        raise ValueError(
            f"noise= disturbs features of texts, but {_named(cfg)} holds none; "
            "pictures stay as they are: leave noise out, or give text shards"
        )
    for path, header in texts.items():
        if header.alignment is not None and _made_by(header.alignment, "is_random"):
            raise ValueError(
                f"the rows of data.shards={path} have noise in them already (alignment "
                f"{header.alignment['name']}); leave noise= out, or give shards without"
            )


def _named(cfg: Any) -> str:
    if cfg.data.mixture is None:
        return f"data.shards={cfg.data.shards}"
    return f"data.mixture with {', '.join(map(str, training_sets(cfg))) or 'no shards'}"


def _alignment(cfg: Any) -> AlignmentMap | None:
    """The map of `data.alignment`, for raw text shards."""
    if not cfg.data.alignment:
        return None
    texts = _text_sets(cfg)
    if not texts or any(header.alignment is not None for header in texts.values()):
        raise ValueError(
            f"data.alignment maps the rows of raw text shards, but {_named(cfg)} is none or "
            "aligned already; give one of the two"
        )
    fitted_on = read_card(Path(cfg.data.alignment))["provenance"].get("source", {})
    if "encoder" in fitted_on:
        for path, header in texts.items():
            whose = "data.shards" if cfg.data.mixture is None else str(path)
            check_identity(cfg.data.alignment, fitted_on["encoder"], header.encoder, whose)
    return load_alignment(cfg.data.alignment)


def find_alignment(cfg: Any) -> Path | None:
    """The map behind the training features: given, beside the shards, or of an earlier stage."""
    earlier = Path(cfg.start_from) / MAP_NAME if cfg.start_from else None
    if earlier is not None and not earlier.is_dir():
        earlier = None
    new = _new_alignment_dir(cfg)
    if earlier is not None:
        _check_one_frame(cfg, new, earlier)
    return new or earlier


def _new_alignment_dir(cfg: Any) -> Path | None:
    if cfg.data.alignment:
        return Path(cfg.data.alignment)
    aligned = {p: header.alignment for p, header in _headers(cfg).items() if header.alignment}
    if len({identity["sha256"] for identity in aligned.values()}) > 1:
        raise ValueError(
            f"the shards {', '.join(map(str, aligned))} of data.mixture were aligned by "
            "different maps, and a model keeps one; align them alike"
        )
    found = [_beside(path, identity) for path, identity in aligned.items()]
    return next((directory for directory in found if directory), None)


def _beside(shards: Path, aligned: Mapping[str, Any]) -> Path | None:
    """The directory of the map that aligned `shards`, where it lies beside them."""
    beside = shards.parent / MAP_NAME
    if beside.is_dir() and alignment_digest(load_alignment(beside)) == aligned["sha256"]:
        return beside
    if _made_by(aligned, "changes_images"):
        raise ValueError(
            f"alignment {aligned['name']} of data.shards={shards} moves images too, and "
            f"its map is not in {beside}: the model would be shown pictures where it never saw "
            "any; put the alignment directory that align.py wrote beside the shards"
        )
    return None


def _check_one_frame(cfg: Any, new: Path | None, earlier: Path) -> None:
    """Refuse to go on with a model in a frame of images that is not the one it was trained in."""
    moves = load_image_map(earlier) is not None
    if new is None:
        if moves and _text_sets(cfg):
            raise ValueError(
                f"{_named(cfg)} holds texts that have not been through {earlier}, "
                "the map of start_from, which moves images too: texts would stand elsewhere than "
                f"in the stage before; give data.alignment={earlier} with raw texts"
            )
        return
    if not moves and load_image_map(new) is None:
        return
    digests = [alignment_digest(load_alignment(path)) for path in (new, earlier)]
    if digests[0] != digests[1]:
        raise ValueError(
            f"{new} and {earlier} are two maps of which one moves images: pictures would stand "
            "elsewhere than in the stage before; use the map of start_from"
        )


def load_image_map(directory: Path | None) -> AlignmentMap | None:
    """The map in `directory`, if image rows have to go through it."""
    if directory is None:
        return None
    alignment = load_alignment(directory)
    return alignment if alignment.changes_images else None


def _made_by(identity: Mapping[str, Any], what: str) -> bool:
    """Whether the map that a header names `is_random` or `changes_images`."""
    if identity["name"] not in method_names() or "options" not in identity:
        return False  # rows that another project aligned, see `revision.conversion`
    return bool(getattr(unfitted(identity), what))
