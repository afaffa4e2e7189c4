"""The published LLM2CLIP checkpoint: CLIP's vision tower, its projection, and the text adapter.

Place in the pipeline: microsoft/LLM2CLIP-Openai-L-14-336 -> **two modules of known classes** -> the
encoder. Its own code is not run: it imports what transformers 5 no longer has, and its model class
expects a text tower that the file does not hold.

    x_0 = p / ||p||_2 ,   x_{k+1} = x_k + W_2 gelu(W_1 LN(x_k)) for k < 4 ,   y = W LN(x_4) + b

Source: microsoft/LLM2CLIP@cba3b45 llm2clip/eva_clip/model.py:211-253 (`LinearBlock`, `TextProj`;
arXiv:2411.04997), 273,769,728 parameters for 4096 -> 8192 -> 4096 and 4096 -> 1280. The input is
normalised by the caller there, and inside the adapter of the hub's model and here.

Names of the tensors in `model.safetensors` (float32, 2.31 GB):

    vision_model.*        as in transformers' CLIP
    visual_projection.*   as in transformers' CLIP, without bias
    text_adapter.adaptor  4 blocks, LayerNorm, Linear: names seen in use by third parties
    logit_scale           not used here

Inside a block the names are those of the training code (`ln`, `fn.0`, `fn.3`); the hub's file
itself could not be opened where this was written. So nothing is guessed: a name that is missing or
left over ends loading, with the name.
"""

import json
import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import normalize
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection
from transformers.utils import cached_file

from revision.files import write_bytes

CONFIG, WEIGHTS = "config.json", "model.safetensors"
ARCHITECTURE = "LLM2CLIPModel"
_ADAPTER = "text_adapter."
_VISION = ("vision_model.", "visual_projection.")
_UNUSED = {"logit_scale", "vision_model.embeddings.position_ids"}


class Block(nn.Module):
    def __init__(self, dim: int, inner_dim: int) -> None:
        super().__init__()
        self.ln = nn.LayerNorm(dim)
        # The third place held a dropout of rate 0 in training: the names of the weights count it.
        self.fn = nn.Sequential(
            nn.Linear(dim, inner_dim), nn.GELU(), nn.Identity(), nn.Linear(inner_dim, dim)
        )

    def forward(self, rows: Float[Tensor, "n H"]) -> Float[Tensor, "n H"]:
        return rows + self.fn(self.ln(rows))


class TextAdapter(nn.Module):
    """From pooled states of the LLM to the space of the pictures; rows come out un-normalised."""

    def __init__(self, dim: int, inner_dim: int, output_dim: int, *, num_blocks: int = 4) -> None:
        super().__init__()
        self.input_dim, self.output_dim = dim, output_dim
        blocks = [Block(dim, inner_dim) for _ in range(num_blocks)]
        self.adaptor = nn.Sequential(*blocks, nn.LayerNorm(dim), nn.Linear(dim, output_dim))

    def forward(self, pooled: Float[Tensor, "n H"]) -> Float[Tensor, "n D"]:
        """`pooled` may have any norm; it is divided out in float32."""
        unit = normalize(pooled.float(), dim=-1)
        return self.adaptor(unit.to(next(self.parameters()).dtype))


@dataclass
class Joint:
    """The joint checkpoint, and the commit or None from which it came."""

    vision: CLIPVisionModelWithProjection
    adapter: TextAdapter
    commit: str | None


def read_joint(path: str, *, revision: str, dtype: torch.dtype) -> Joint:
    """Load the hub id or the directory `path` in the published layout.

    Raises:
        ValueError: not that layout, or the tensors are not exactly those that the modules have.
        OSError: the hub has no such file, or cannot be reached.
    """
    config_path, weights_path = (_fetch(path, name, revision) for name in (CONFIG, WEIGHTS))
    config = json.loads(config_path.read_text())
    if "vision_config" not in config:
        raise ValueError(
            f"{config_path} has no vision_config: not the joint LLM2CLIP model. Give the "
            "repository of the vision side, microsoft/LLM2CLIP-Openai-L-14-336 or its like"
        )
    state = load_file(weights_path)
    parts = _split(state, str(weights_path))
    vision = _vision(config, parts["vision"], str(weights_path), dtype)
    adapter = adapter_from(parts["adapter"], str(weights_path)).to(dtype)
    if adapter.output_dim != vision.config.projection_dim:
        raise ValueError(
            f"{weights_path}: the text adapter ends in {adapter.output_dim} dimensions, the "
            f"pictures in {vision.config.projection_dim}: they would not share a space"
        )
    return Joint(vision.eval(), adapter.eval(), _commit(weights_path))


def write_joint(
    vision: CLIPVisionModelWithProjection, adapter: TextAdapter, directory: Path
) -> None:
    """Write `vision` and `adapter` to `directory` in the published layout."""
    directory.mkdir(parents=True, exist_ok=True)
    config = {
        "architectures": [ARCHITECTURE],
        "model_type": "clip",
        "projection_dim": adapter.output_dim,
        "vision_config": vision.config.to_dict(),
    }
    state = dict(vision.state_dict())
    state |= {_ADAPTER + name: tensor for name, tensor in adapter.state_dict().items()}
    save_file({k: t.contiguous() for k, t in state.items()}, directory / WEIGHTS)
    write_bytes(directory / CONFIG, json.dumps(config, indent=2, default=str).encode() + b"\n")


def adapter_from(state: dict[str, Tensor], address: str) -> TextAdapter:
    """The adapter that `state` holds; its sizes are read from the tensors."""
    inner = [name for name in state if re.fullmatch(r"adaptor\.\d+\.fn\.0\.weight", name)]
    last = f"adaptor.{len(inner) + 1}.weight"
    if not inner or last not in state:
        raise ValueError(
            f"{address}: no text adapter of known names. Expected "
            f"{_ADAPTER}adaptor.0.fn.0.weight and its like, found {_some(state, _ADAPTER)}"
        )
    inner_dim, dim = state[inner[0]].shape
    adapter = TextAdapter(dim, inner_dim, len(state[last]), num_blocks=len(inner))
    expected = adapter.state_dict()
    check_names(address, _ADAPTER, expected.keys() - state.keys(), state.keys() - expected.keys())
    wrong = [name for name, tensor in expected.items() if tensor.shape != state[name].shape]
    if wrong:
        raise ValueError(
            f"{address}: {_ADAPTER}{wrong[0]} has shape {tuple(state[wrong[0]].shape)} where the "
            f"other tensors of the adapter ask for {tuple(expected[wrong[0]].shape)}"
        )
    adapter.load_state_dict(state)
    return adapter


def _vision(
    config: dict[str, Any], state: dict[str, Tensor], address: str, dtype: torch.dtype
) -> CLIPVisionModelWithProjection:
    projection = config.get("projection_dim", config["vision_config"].get("projection_dim"))
    known = CLIPVisionConfig.from_dict(config["vision_config"] | {"projection_dim": projection})
    kind: Any = CLIPVisionModelWithProjection  # with output_loading_info it returns a pair
    try:
        model, found = kind.from_pretrained(
            None, config=known, state_dict=state, dtype=dtype, output_loading_info=True
        )
    except RuntimeError as error:  # shapes that do not fit, which transformers lists
        raise ValueError(f"{address} does not fit its config.json: {error}") from error
    check_names(address, "", found["missing_keys"], found["unexpected_keys"])
    return model


def _split(state: dict[str, Tensor], address: str) -> dict[str, dict[str, Tensor]]:
    parts: dict[str, dict[str, Tensor]] = {"vision": {}, "adapter": {}}
    unknown = []
    for name, tensor in state.items():
        if name in _UNUSED:
            continue
        if name.startswith(_VISION):
            parts["vision"][name] = tensor
        elif name.startswith(_ADAPTER):
            parts["adapter"][name.removeprefix(_ADAPTER)] = tensor
        else:
            unknown.append(name)
    check_names(address, "", [], unknown)
    return parts


def check_names(
    address: str, prefix: str, missing: Collection[str], unknown: Collection[str]
) -> None:
    """Raise ValueError where tensors are missing or left over, with their names."""
    if missing or unknown:
        raise ValueError(
            f"{address} does not have the layout that is known here: {len(missing)} tensors are "
            f"missing ({_some(missing, prefix)}) and {len(unknown)} are unknown "
            f"({_some(unknown, prefix)}). Parts of the encoder would have kept random weights; "
            "give the original file, or rename its tensors"
        )


def _some(names: Collection[str], prefix: str) -> str:
    shown = sorted(names)[:4]
    return ", ".join(prefix + name for name in shown) or "none"


def _fetch(path: str, name: str, revision: str) -> Path:
    found = cached_file(path, name, revision=revision)
    if found is None:
        raise OSError(f"{path} has no {name}")
    return Path(found)


def _commit(path: Path) -> str | None:
    """The commit of a file in the hub's cache, `.../snapshots/<commit>/<name>`."""
    return path.parent.name if path.parent.parent.name == "snapshots" else None
