"""The model directory: everything needed to answer, loadable without Lightning or Hydra.

    config.json              what the parts are and how they fit
    projector.safetensors
    llm/                     a Hugging Face directory with the tokenizer
    tuning/                  what a tuning method trained on the language model, where one did
    encoder/                 the image encoder, where the model has one
    alignment/               the map that made its training features, where there is one; the model
                             applies it to pictures, if it is one that moves images too
    provenance.json          what it was trained from

Weights that did not change since they were loaded are hard links to the files they came from, so
a study of many runs stores a frozen LLM once. A directory is written beside its place and renamed.
"""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from revision.alignment.storage import load_alignment, save_alignment
from revision.encoders.base import write_identity
from revision.encoders.load import load_encoder
from revision.files import replacing_directory
from revision.models.llava import LlavaModel
from revision.models.llm import is_unchanged, load_llm
from revision.models.projector import Projector
from revision.models.tuning import base_tensors, load_tuning, save_tuning

MODEL_TYPE = "revision_llava"
SCHEMA_VERSION = 1


def save_model(
    model: LlavaModel,
    directory: str | Path,
    *,
    provenance: Mapping[str, Any],
    alignment_dir: str | Path | None = None,
    state_dict: Mapping[str, Tensor] | None = None,
) -> Path:
    """Write `model`; an existing directory of that name is replaced once the new one is whole.

    That takes two renames: a kill between them leaves both, whole, in `.<name>-*` beside the place.
    `state_dict` gives the full weights where the module itself holds only shards of them.

    Raises:
        ValueError: the disk is full, or cannot be written; an existing directory is still there.
    """
    directory = Path(directory)
    state = dict(model.state_dict() if state_dict is None else state_dict)
    with replacing_directory(directory) as new:
        save_file(_part(state, "projector."), new / "projector.safetensors")
        _save_llm(model, _part(state, "language_model."), new / "llm")
        if model.tuning is not None:
            save_tuning(model.tuning, model.language_model, new / "tuning")
        _save_encoder(model, new / "encoder")
        if alignment_dir is not None:
            shutil.copytree(alignment_dir, new / "alignment")
        elif model.image_map is not None:
            save_alignment(model.image_map, new / "alignment")
        (new / "provenance.json").write_text(json.dumps(dict(provenance), indent=2))
        (new / "config.json").write_text(json.dumps(_config(model), indent=2))
    return directory


def load_model(
    directory: str | Path,
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
) -> LlavaModel:
    """Load a model directory in evaluation mode, on the GPU where there is one.

    `dtype` is that of the language model (default: bfloat16 on a GPU that has it, else float32).

    Raises ValueError when `directory` is not a model directory or one of another version.
    """
    directory = Path(directory)
    config = _read_config(directory)
    language_model, tokenizer = load_llm(directory / "llm", device=device, dtype=dtype)
    projector = Projector(**config["projector"])
    projector.load_state_dict(load_file(directory / "projector.safetensors"))
    tuned = config.get("has_tuning")
    model = LlavaModel(
        language_model,
        projector,
        tokenizer,
        encoder=load_encoder(directory / "encoder") if config["has_encoder"] else None,
        template=config["template"],
        layout=config["layout"],
        image_map=load_alignment(directory / "alignment") if config.get("moves_images") else None,
        tuning=load_tuning(language_model, directory / "tuning") if tuned else None,
    )
    model.encoder_dir = directory / "encoder" if config["has_encoder"] else None
    return model.to(language_model.device).eval()


def _read_config(directory: Path) -> dict[str, Any]:
    path = directory / "config.json"
    hint = "give the `model` folder of a finished run"
    if not path.is_file():
        state = "has no config.json" if directory.is_dir() else "does not exist"
        raise ValueError(f"{directory} is not a model directory: it {state}; {hint}")
    config: dict[str, Any] = json.loads(path.read_text())
    if config.get("model_type") != MODEL_TYPE:
        raise ValueError(
            f"{directory} is not a model directory of this project: its model_type is "
            f"{config.get('model_type')!r}, expected {MODEL_TYPE!r}; {hint}"
        )
    if config.get("schema_version") != SCHEMA_VERSION:
        raise ValueError(
            f"{directory} has schema version {config.get('schema_version')}, this code reads "
            f"{SCHEMA_VERSION}; use the release that wrote it"
        )
    needed = ["projector.safetensors", "llm/config.json"]
    if config.get("moves_images"):  # without the map, answers would be about other features
        needed += ["alignment/alignment.json", "alignment/alignment.safetensors"]
    if config.get("has_tuning"):
        needed += ["tuning/tuning.json", "tuning/tuning.safetensors"]
    for name in needed:
        if not (directory / name).is_file():
            raise ValueError(f"{directory} is incomplete: {name} is missing; copy it again")
    return config


def _config(model: LlavaModel) -> dict[str, Any]:
    return {
        "model_type": MODEL_TYPE,
        "schema_version": SCHEMA_VERSION,
        "template": model.template,
        "layout": model.layout,
        "projector": model.projector.options(),
        "has_encoder": model.encoder is not None,
        "moves_images": model.image_map is not None,
        "has_tuning": model.tuning is not None,
    }


def _part(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {
        name.removeprefix(prefix): tensor.detach().cpu().contiguous()
        for name, tensor in state.items()
        if name.startswith(prefix)
    }


def _save_llm(model: LlavaModel, state: dict[str, Tensor], directory: Path) -> None:
    source = Path(model.language_model.config.name_or_path)
    state = base_tensors(state)
    if source.is_dir() and is_unchanged(state, source):
        link_tree(source, directory)
    else:
        model.language_model.save_pretrained(directory, state_dict=state)
    model.tokenizer.save_pretrained(directory)


def _save_encoder(model: LlavaModel, directory: Path) -> None:
    if model.encoder is None:
        return
    trained = any(parameter.requires_grad for parameter in model.encoder.parameters())
    if model.encoder_dir is not None and not trained:
        link_tree(model.encoder_dir, directory)
        write_identity(model.encoder, directory)
    else:
        model.encoder.save(directory)


def link_tree(source: Path, target: Path) -> None:
    """Copy a directory; weights become hard links where the file system can make them."""
    for path in sorted(source.rglob("*")):
        if not path.is_file() or any(part.startswith(".") for part in path.parts[-1:]):
            continue
        copy = target / path.relative_to(source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        _link(path.resolve(), copy)


def _link(path: Path, copy: Path) -> None:
    if path.suffix == ".safetensors":
        try:
            os.link(path, copy)
            return
        except OSError:  # another file system, or one without links
            pass
    shutil.copyfile(path, copy)
