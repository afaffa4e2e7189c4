"""`load_encoder`: one call for every dual encoder, by hub id or by directory.

What a directory holds is decided by `model_type` in its `config.json`, never by its name.
"""

import json
from pathlib import Path

from revision.encoders.base import (
    PATCHES,
    POOLED,
    Decode,
    DualEncoder,
    is_patches,
    read_identity,
)
from revision.encoders.composed import COMPOSED, TOWERS, load_composed
from revision.encoders.hf import load_hugging_face
from revision.encoders.llm2clip import LLM2CLIP, load_saved_llm2clip
from revision.encoders.llm2clip_checkpoint import ARCHITECTURE
from revision.encoders.openclip import (
    OPENCLIP,
    is_openclip,
    load_openclip,
    load_saved_openclip,
)
from revision.encoders.pairing import PAIR
from revision.encoders.patches import Pooling, with_pooling


def load_encoder(
    path: str | Path,
    *,
    revision: str | None = None,
    trust_remote_code: bool = False,
    dtype: str | None = None,
    decode: Decode | None = None,
    pooling: Pooling | None = None,
    layer: int | None = None,
) -> DualEncoder:
    """Load an encoder, frozen and in evaluation mode.

    `path` is a directory (one of ours, or in the hub's layout) or a hub id; `revision` is the
    branch, tag or commit on the hub. `trust_remote_code` runs Python that comes with the model,
    from the hub only at a commit.
    `dtype` changes the features a little, so it is part of the identity. `decode` is exact, or
    fast: larger JPEGs are read at a fraction of their size, and the features differ a little too.
    `pooling` is pooled, one row a picture, or patches: those of hidden state `layer` of the vision
    tower. None is what the encoder was used with when it was saved here, else float32, exact,
    pooled and -2.

    Raises:
        ValueError: nothing is there, the hub cannot be reached, the model is no dual encoder, or
            its tower gives no patches.
    """
    recorded = read_identity(Path(path)) if Path(path).is_dir() else {}
    whole = _load(
        path,
        revision=revision,
        trust_remote_code=trust_remote_code,
        dtype=dtype or recorded.get("dtype"),
        decode=decode or recorded.get("decode", "exact"),
    )
    pooling = pooling or (PATCHES if is_patches(recorded) else POOLED)
    return with_pooling(whole, pooling, recorded.get("layer", -2) if layer is None else layer)


def _load(
    path: str | Path,
    *,
    revision: str | None,
    trust_remote_code: bool,
    dtype: str | None,
    decode: Decode,
) -> DualEncoder:
    directory = Path(path)
    if directory.is_dir():
        if is_openclip(directory):
            return load_openclip(directory, dtype=dtype or "float32", decode=decode)
        model_type = _model_type(directory)
        if model_type == OPENCLIP:
            return load_saved_openclip(directory, dtype=dtype or "float32", decode=decode)
        if model_type in (COMPOSED, TOWERS, PAIR):
            return load_composed(directory, dtype=dtype or "float32", decode=decode)
        if model_type == LLM2CLIP:
            return load_saved_llm2clip(directory, dtype=dtype or "float32", decode=decode)
    elif _looks_local(path):
        raise ValueError(
            f"encoder: there is no directory {str(path)!r}; run `make demo` first if it is the "
            "demo's, or choose another with encoder=... (conf/encoder)"
        )
    try:
        return load_hugging_face(
            str(path),
            revision=revision,
            trust_remote_code=trust_remote_code,
            dtype=dtype or "float32",
            decode=decode,
        )
    except OSError as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(
            f"encoder {str(path)!r} is neither a local directory nor a model that the hub gave: "
            f"{reason}. Give an existing directory, or download the model on a machine with "
            "network access and give its directory"
        ) from error


def _looks_local(path: str | Path) -> bool:
    """A hub id is `name` or `owner/name`; anything else would only puzzle the hub."""
    text = str(path)
    return text.startswith(("/", ".", "~", "runs/")) or text.count("/") > 1


def _model_type(directory: Path) -> str:
    config = directory / "config.json"
    if not config.is_file():
        raise ValueError(f"{directory} has no config.json: not an encoder directory")
    fields = json.loads(config.read_text())
    if "model_type" not in fields:
        raise ValueError(f"{config} names no model_type: not an encoder directory")
    if ARCHITECTURE in (fields.get("architectures") or []):
        raise ValueError(
            f"{directory} holds the joint model of LLM2CLIP, which calls itself a CLIP and has no "
            "text tower: CLIP's would be drawn at random. Use encoder=llm2clip_l14_336 with "
            f"encoder.path={directory}"
        )
    return fields["model_type"]
