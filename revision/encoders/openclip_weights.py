"""The weights of an OpenCLIP checkpoint in a model of `transformers`, key by key.

Place in the pipeline: a weight file and a config (`openclip_config.py`) -> **CLIPModel or
SiglipModel** -> an encoder (`openclip.py`).

Names change, and three layouts:

    in_proj (3 W, W)             q_proj, k_proj, v_proj, W rows of it each
    q (W, W), kv (2 W, W)        in_proj (3 W, W) of the attention that pools a SigLIP's patches
    proj (W, D), x @ proj        weight (D, W) of a linear layer

Every key of the file must find a place in the model, and every weight of the model a key.

Source: mlfoundations/open_clip v3.3.0 src/open_clip/model.py:CLIP, CustomTextCLIP and
transformer.py; huggingface/pytorch-image-models v1.0.31 timm/layers/attention_pool.py.

Letters: W width of a tower, D width of the rows.
"""

import re
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import CLIPConfig, CLIPModel, SiglipConfig, SiglipModel

from revision.encoders.openclip_config import State

WEIGHT_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")

_TEXT_MODEL = {
    r"token_embedding\.weight": "text_model.embeddings.token_embedding.weight",
    r"positional_embedding": "text_model.embeddings.position_embedding.weight",
    r"transformer\.resblocks\.(.+)": r"text_model.encoder.layers.\1",
    r"ln_final\.(.+)": r"text_model.final_layer_norm.\1",
    r"(logit_scale|logit_bias)": r"\1",
}
_CLIP = {
    **_TEXT_MODEL,
    r"text_projection": "text_projection.weight",
    r"visual\.proj": "visual_projection.weight",
    r"visual\.class_embedding": "vision_model.embeddings.class_embedding",
    r"visual\.conv1\.weight": "vision_model.embeddings.patch_embedding.weight",
    r"visual\.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    r"visual\.ln_pre\.(.+)": r"vision_model.pre_layrnorm.\1",
    r"visual\.ln_post\.(.+)": r"vision_model.post_layernorm.\1",
    r"visual\.transformer\.resblocks\.(.+)": r"vision_model.encoder.layers.\1",
}
_SIGLIP = {
    **_TEXT_MODEL,
    r"text_projection\.(.+)": r"text_model.head.\1",
    r"visual\.trunk\.pos_embed": "vision_model.embeddings.position_embedding.weight",
    r"visual\.trunk\.patch_embed\.proj\.(.+)": r"vision_model.embeddings.patch_embedding.\1",
    r"visual\.trunk\.blocks\.(.+)": r"vision_model.encoder.layers.\1",
    r"visual\.trunk\.norm\.(.+)": r"vision_model.post_layernorm.\1",
    r"visual\.trunk\.attn_pool\.latent": "vision_model.head.probe",
    r"visual\.trunk\.attn_pool\.in_proj_(.+)": r"vision_model.head.attention.in_proj_\1",
    r"visual\.trunk\.attn_pool\.proj\.(.+)": r"vision_model.head.attention.out_proj.\1",
    r"visual\.trunk\.attn_pool\.norm\.(.+)": r"vision_model.head.layernorm.\1",
    r"visual\.trunk\.attn_pool\.(mlp\..+)": r"vision_model.head.\1",
}
# Inside a block: of open_clip's own transformer, and of timm's.
_BLOCK = {
    r"ln_(1|2)\.": r"layer_norm\1.",
    r"norm(1|2)\.": r"layer_norm\1.",
    r"attn\.(out_proj|proj)\.": "self_attn.out_proj.",
    r"attn\.in_proj_": "self_attn.qkv_proj.",
    r"attn\.qkv\.": "self_attn.qkv_proj.",
    r"mlp\.(c_fc|fc1)\.": "mlp.fc1.",
    r"mlp\.(c_proj|fc2)\.": "mlp.fc2.",
}
_TRANSPOSED = ("text_projection.weight", "visual_projection.weight")
_QKV = ".self_attn.qkv_proj."


def read_weights(directory: Path) -> State:
    """The weight file of an OpenCLIP directory; safetensors where there are both kinds.

    Raises ValueError where there is none. Nothing but tensors is unpickled.
    """
    safe, pickled = (directory / name for name in WEIGHT_FILES)
    if safe.is_file():
        return load_file(safe)
    if pickled.is_file():
        return torch.load(pickled, map_location="cpu", weights_only=True)
    raise ValueError(f"{directory} holds neither {safe.name} nor {pickled.name}: no weights")


def new_model(config: CLIPConfig | SiglipConfig, state: State) -> CLIPModel | SiglipModel:
    """The model of `config` with the weights `state`.

    Raises:
        ValueError: a key too many, too few or of another shape, each by name; the model would
            answer with random weights in part.
    """
    is_siglip = isinstance(config, SiglipConfig)
    model = SiglipModel(config) if isinstance(config, SiglipConfig) else CLIPModel(config)
    wanted = model.state_dict()
    found: State = {}
    unknown = []
    for name, tensor in (_with_one_in_proj(state) if is_siglip else state).items():
        target = _renamed(name, _SIGLIP if is_siglip else _CLIP)
        parts = dict(_parts(target, tensor)) if target else {}
        if not parts or not parts.keys() <= wanted.keys() or parts.keys() & found.keys():
            unknown.append(name)
        found |= {key: _shaped(part, wanted[key]) for key, part in parts.items() if key in wanted}
    problems = {
        "unknown in the file": unknown,
        "missing of the model": sorted(wanted.keys() - found.keys()),
        "of another shape": [
            _shapes(k, v, wanted[k]) for k, v in found.items() if _differ(v, wanted[k])
        ],
    }
    if any(problems.values()):
        raise ValueError(_refusal(model, problems))
    model.load_state_dict(found)
    return model


def _renamed(name: str, rules: dict[str, str]) -> str | None:
    """The name in `transformers`, with the parts of an attention still in one; None: no rule."""
    if not name.startswith("visual."):
        name = name.removeprefix("text.")
    for pattern, replacement in rules.items():
        if match := re.fullmatch(pattern, name):
            target = match.expand(replacement)
            return _renamed_in_block(target) if re.search(r"\.layers\.\d+\.", target) else target
    return None


def _renamed_in_block(name: str) -> str:
    start, layer, block = re.split(r"(\.layers\.\d+\.)", name, maxsplit=1)
    for pattern, replacement in _BLOCK.items():
        if match := re.match(pattern, block):
            return start + layer + match.expand(replacement) + block[match.end() :]
    return name


def _parts(target: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    """The tensors of `transformers` that one of open_clip holds."""
    if _QKV in target:
        for letter, part in zip("qkv", tensor.chunk(3), strict=True):
            yield target.replace(_QKV, f".self_attn.{letter}_proj."), part
    else:
        yield target, tensor.T if target in _TRANSPOSED else tensor


def _with_one_in_proj(state: State) -> State:
    """`state` with the query beside keys and values of the pooling attention."""
    state = dict(state)
    start = "visual.trunk.attn_pool."
    for kind in ("weight", "bias"):
        query, others = f"{start}q.{kind}", f"{start}kv.{kind}"
        if query in state and others in state:
            state[f"{start}in_proj_{kind}"] = torch.cat([state.pop(query), state.pop(others)])
    return state


def _shaped(tensor: Tensor, wanted: Tensor) -> Tensor:
    """Without the axes of length 1 in which the two layouts differ: (1, P, W), (), (1,)."""
    ones = [[side for side in t.shape if side != 1] for t in (tensor, wanted)]
    return tensor.reshape(wanted.shape) if ones[0] == ones[1] else tensor


def _differ(tensor: Tensor, wanted: Tensor) -> bool:
    return tensor.shape != wanted.shape


def _shapes(name: str, tensor: Tensor, wanted: Tensor) -> str:
    return f"{name} {tuple(tensor.shape)}, not {tuple(wanted.shape)}"


def _refusal(model: CLIPModel | SiglipModel, problems: dict[str, list[str]]) -> str:
    said = "; ".join(f"{what}: {', '.join(names)}" for what, names in problems.items() if names)
    return (
        f"the OpenCLIP weights do not fit the {type(model).__name__} of their config. {said}. "
        "Give the config that belongs to the weights"
    )
