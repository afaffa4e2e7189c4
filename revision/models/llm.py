"""The language model: any causal one, from a local directory or by hub id.

`load_llm` always ends at a local directory, so that an unchanged model can be hard-linked into a
model directory (`is_unchanged` compares every tensor).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

_HUB_FILES = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]


def load_llm(
    name: str | Path,
    *,
    revision: str | None = None,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
) -> tuple[Any, Any]:
    """The model and its tokenizer. `device` defaults to the GPU where there is one, `dtype` to
    bfloat16 on a GPU that has it and float32 elsewhere.

    Raises ValueError when `name` is neither a directory with a causal language model nor a hub id
    that can be reached.
    """
    directory = _directory(name, revision)
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    try:
        tokenizer = AutoTokenizer.from_pretrained(directory)
        model: Any = AutoModelForCausalLM.from_pretrained(
            directory, dtype=dtype or default_dtype(device)
        )
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ValueError(
            f"{name} is not a causal language model with a tokenizer: {reason}"
        ) from error
    return model.to(device), tokenizer


def default_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 on a GPU that has it; float32 on a CPU, where it is exact and always there."""
    return torch.bfloat16 if device.type == "cuda" and has_bfloat16(device) else torch.float32


def has_bfloat16(device: torch.device) -> bool:
    """Whether the hardware multiplies in bfloat16; a CPU that emulates it would be slower."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    if device.type == "cpu":
        return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    return False


def is_unchanged(state: Mapping[str, Tensor], directory: Path) -> bool:
    """Whether `state` is what the weight files of `directory` hold, but for their precision.

    A tensor that is not in the files must be tied to (share its values with) one that is.
    """
    stored: set[str] = set()
    files = sorted(directory.glob("*.safetensors"))
    for path in files:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118  # not a mapping
                if name not in state or not _equal(file.get_tensor(name), state[name]):
                    return False
                stored.add(name)
    tied = [state[name] for name in stored]
    missing = [tensor for name, tensor in state.items() if name not in stored]
    return bool(files) and all(any(_equal(t, other) for other in tied) for t in missing)


def _equal(stored: Tensor, current: Tensor) -> bool:
    return stored.shape == current.shape and torch.equal(stored.to(current.dtype), current)


def _directory(name: str | Path, revision: str | None) -> Path:
    if Path(name).is_dir():
        return Path(name).resolve()
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(str(name), revision=revision, allow_patterns=_HUB_FILES))
    except Exception as error:  # the hub client raises many kinds
        reason = str(error).strip().split("\n")[0]
        raise ValueError(
            f"language model {str(name)!r} is no local directory, and the hub did not give it: "
            f"{reason}"
        ) from error
