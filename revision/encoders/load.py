"""`load_encoder`: one call for every dual encoder, by hub id or by directory.

What a directory holds is decided by `model_type` in its `config.json`, never by its name.
"""

import json
from pathlib import Path

from revision.encoders.base import DualEncoder
from revision.encoders.composed import COMPOSED, TOWERS, load_composed
from revision.encoders.hf import load_hugging_face


def load_encoder(
    path: str | Path,
    *,
    revision: str | None = None,
    trust_remote_code: bool = False,
    dtype: str = "float32",
) -> DualEncoder:
    """Load an encoder, frozen and in evaluation mode.

    `path` is a directory (one of ours, or in the hub's layout) or a hub id; `revision` is the
    branch, tag or commit on the hub. `trust_remote_code` runs Python that comes with the model.

    Raises:
        ValueError: nothing is there, the hub cannot be reached, or the model is no dual encoder.
    """
    directory = Path(path)
    if directory.is_dir():
        model_type = _model_type(directory)
        if model_type in (COMPOSED, TOWERS):
            return load_composed(directory, dtype=dtype)
    try:
        return load_hugging_face(
            str(path), revision=revision, trust_remote_code=trust_remote_code, dtype=dtype
        )
    except OSError as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(
            f"encoder {str(path)!r} is neither a local directory nor a model that the hub gave: "
            f"{reason}. Give an existing directory, or download the model on a machine with "
            "network access and give its directory"
        ) from error


def _model_type(directory: Path) -> str:
    config = directory / "config.json"
    if not config.is_file():
        raise ValueError(f"{directory} has no config.json: not an encoder directory")
    fields = json.loads(config.read_text())
    if "model_type" not in fields:
        raise ValueError(f"{config} names no model_type: not an encoder directory")
    return fields["model_type"]
