"""The config of an OpenCLIP checkpoint as one of `transformers`, option by option.

Place in the pipeline: `open_clip_config.json` -> **CLIPConfig or SiglipConfig** -> the weights
(`openclip_weights.py`) -> an encoder (`openclip.py`). The package open_clip is not needed.

Two kinds of model are read, and each option of the config is read, known to change nothing, or
refused by name:

- CLIP: a ViT with class token and a causal text transformer, read at the highest token id. Text
  weights may stand under `text.` (custom_text).
- SigLIP: a timm ViT with attention pooling under `visual.trunk.`, and a text transformer that
  attends both ways and is read at the last position, with a bias in its projection.

Activations are GELU, but QuickGELU x sigmoid(1.702 x) where `quick_gelu` says so: OpenAI's weights
and those trained after them need it, and the wrong one costs accuracy without any error.

Source: mlfoundations/open_clip v3.3.0 src/open_clip/model.py; huggingface/pytorch-image-models
v1.0.31 timm/models/vision_transformer.py for the trunks.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor
from transformers import CLIPConfig, SiglipConfig

Config = Mapping[str, Any]
State = dict[str, Tensor]


class Trunk(NamedTuple):
    """What the weights of a timm ViT do not tell."""

    num_heads: int
    activation: str
    patch_size: int


_GELU, _TANH = "gelu", "gelu_pytorch_tanh"
SIGLIP_TRUNKS = {
    "vit_base_patch16_siglip_224": Trunk(12, _GELU, 16),
    "vit_base_patch16_siglip_256": Trunk(12, _GELU, 16),
    "vit_base_patch16_siglip_384": Trunk(12, _GELU, 16),
    "vit_base_patch16_siglip_512": Trunk(12, _GELU, 16),
    "vit_base_patch32_siglip_256": Trunk(12, _TANH, 32),
    "vit_large_patch16_siglip_256": Trunk(16, _GELU, 16),
    "vit_large_patch16_siglip_384": Trunk(16, _GELU, 16),
    "vit_large_patch16_siglip_512": Trunk(16, _TANH, 16),
    "vit_so400m_patch14_siglip_224": Trunk(16, _GELU, 14),
    "vit_so400m_patch14_siglip_378": Trunk(16, _GELU, 14),
    "vit_so400m_patch14_siglip_384": Trunk(16, _GELU, 14),
    "vit_so400m_patch16_siglip_256": Trunk(16, _TANH, 16),
    "vit_so400m_patch16_siglip_384": Trunk(16, _TANH, 16),
    "vit_so400m_patch16_siglip_512": Trunk(16, _TANH, 16),
    "vit_giantopt_patch16_siglip_256": Trunk(16, _TANH, 16),
    "vit_giantopt_patch16_siglip_384": Trunk(16, _TANH, 16),
}

# Options that act in training alone, or only beside an option that is refused.
_NO_EFFECT = {
    "model_cfg": {"init_logit_scale", "init_logit_bias", "nonscalar_logit_scale", "output_dict"},
    "vision_cfg": {
        "patch_dropout", "attn_pooler_queries", "attn_pooler_heads", "output_tokens",
        "timm_model_pretrained", "timm_drop", "timm_drop_path",
    },
    "text_cfg": {
        "pad_id", "eos_id", "output_tokens", "hf_model_pretrained", "hf_proj_type",
        "hf_pooler_type", "hf_tokenizer_name", "tokenizer_kwargs", "tokenizer_mode",
    },
}  # fmt: skip
_TRANSFORMER = {"width", "layers", "mlp_ratio", "norm_kwargs", "act_kwargs"}
_BLOCK_OPTIONS = {
    "ls_init_value": None,
    "block_type": None,
    "qk_norm": False,
    "scaled_cosine_attn": False,
    "scale_heads": False,
    "scale_attn_inner": False,
    "scale_attn": False,
    "scale_fc": False,
    "final_ln_after_pool": False,
}
_MODEL = {"embed_dim", "vision_cfg", "text_cfg", "quick_gelu", "custom_text"}
_CLIP_VISION = _BLOCK_OPTIONS | {
    "attentional_pool": False,
    "no_ln_pre": False,
    "pos_embed_type": "learnable",
    "pool_type": "tok",
    "timm_model_name": None,
    "timm_pool": "avg",
    "timm_proj": "linear",
    "timm_proj_bias": False,
}
_TEXT = _BLOCK_OPTIONS | {"embed_cls": False, "proj_type": "linear", "hf_model_name": None}
_CLIP_TEXT = _TEXT | {"no_causal_mask": False, "proj_bias": False, "pool_type": "argmax"}
_SIGLIP_TEXT = {"no_causal_mask": True, "proj_bias": True, "pool_type": "last"}
_SIGLIP_VISION = {"timm_pool": "map", "timm_proj": "none"}


def to_transformers(
    model_cfg: Config, state: State, *, eos_token_id: int
) -> CLIPConfig | SiglipConfig:
    """The config of `model_cfg`; a timm trunk tells its sizes by its weights, `state`.

    Raises:
        ValueError: an option that neither model has; rows without it would be another model's.
    """
    _check("model_cfg", model_cfg, read=_MODEL)
    if not {"text_cfg", "vision_cfg", "embed_dim"} <= set(model_cfg):
        raise ValueError("model_cfg lacks embed_dim, vision_cfg or text_cfg: no OpenCLIP config")
    if model_cfg["vision_cfg"].get("timm_model_name"):
        return _siglip_config(model_cfg, state)
    return _clip_config(model_cfg, eos_token_id)


def _check(
    section: str,
    cfg: Config,
    *,
    read: set[str],
    fixed: Config | None = None,
    needs: Config | None = None,
) -> None:
    """Refuse what is not in `read`, without effect, or as `fixed` and `needs` say.

    `fixed` are open_clip's defaults, `needs` are not, so that they must be there.
    """
    only = {**(fixed or {}), **(needs or {})}
    for key in {**cfg, **(needs or {})}:
        if (
            key in read
            or key in _NO_EFFECT[section]
            or (key in only and key in cfg and cfg[key] == only[key])
        ):
            continue
        expected = f"; only {only[key]!r} can be read" if key in only else ""
        raise ValueError(
            f"OpenCLIP {section}.{key}={cfg.get(key)!r} is not supported{expected}: the models of "
            "transformers have no such part, and rows without it would be another model's. Embed "
            "with open_clip itself and write the rows as a feature set (docs/bring_your_own.md)"
        )


def _clip_config(model_cfg: Config, eos_token_id: int) -> CLIPConfig:
    vision, text = model_cfg["vision_cfg"], model_cfg["text_cfg"]
    sizes = {"patch_size", "image_size", "head_width"}
    _check("vision_cfg", vision, read=_TRANSFORMER | sizes, fixed=_CLIP_VISION)
    _check_text(text, fixed=_CLIP_TEXT)
    if not isinstance(vision.get("layers", 12), int):
        raise ValueError(
            f"OpenCLIP vision_cfg.layers={vision['layers']!r} is a ResNet, which CLIPModel of "
            "transformers has not; take a checkpoint with a ViT"
        )
    quick = bool(model_cfg.get("quick_gelu", False))
    width = vision.get("width", 768)
    return CLIPConfig(
        vision_config=_tower(vision, quick, width=768)
        | {
            "num_attention_heads": width // vision.get("head_width", 64),
            "patch_size": vision.get("patch_size", 16),
            "image_size": square(vision.get("image_size", 224)),
        },
        text_config=_text_tower(text, quick) | {"eos_token_id": eos_token_id, "bos_token_id": None},
        projection_dim=model_cfg["embed_dim"],
    )


def _siglip_config(model_cfg: Config, state: State) -> SiglipConfig:
    vision, text = model_cfg["vision_cfg"], model_cfg["text_cfg"]
    name = vision["timm_model_name"]
    if name not in SIGLIP_TRUNKS:
        raise ValueError(
            f"OpenCLIP vision_cfg.timm_model_name={name!r} is no SigLIP trunk that is known here "
            f"({', '.join(SIGLIP_TRUNKS)}); as a tower alone it can be read with encoder=pair"
        )
    read = {"timm_model_name", "image_size"}
    _check("vision_cfg", vision, read=read, fixed={"timm_proj_bias": False}, needs=_SIGLIP_VISION)
    _check_text(text, fixed=_TEXT, needs=_SIGLIP_TEXT)
    trunk, names = SIGLIP_TRUNKS[name], "visual.trunk."
    first = f"{names}blocks.0.mlp.fc1.weight"
    if first not in state:
        raise ValueError(f"the weights have no {first}: not those of a timm trunk {name}")
    return SiglipConfig(
        vision_config={
            "hidden_size": state[first].shape[1],
            "intermediate_size": state[first].shape[0],
            "num_hidden_layers": len({k.split(".")[3] for k in state if ".blocks." in k}),
            "num_attention_heads": trunk.num_heads,
            "hidden_act": trunk.activation,
            "patch_size": trunk.patch_size,
            "image_size": square(vision.get("image_size", 224)),
        },
        text_config=_text_tower(text, quick=False) | {"projection_size": model_cfg["embed_dim"]},
    )


def _check_text(text: Config, *, fixed: Config, needs: Config | None = None) -> None:
    read = _TRANSFORMER | {"context_length", "vocab_size", "heads"}
    if text.get("hf_model_name"):
        raise ValueError(
            f"OpenCLIP text_cfg.hf_model_name={text['hf_model_name']!r}: text towers of "
            "transformers inside OpenCLIP are not read; such a tower can be one of encoder=pair"
        )
    _check("text_cfg", text, read=read, fixed=fixed, needs=needs)


def _text_tower(text: Config, quick: bool) -> dict[str, Any]:
    return _tower(text, quick, width=512) | {
        "num_attention_heads": text.get("heads", 8),
        "max_position_embeddings": text.get("context_length", 77),
        "vocab_size": text.get("vocab_size", 49408),
        "pad_token_id": None,
    }


def _tower(cfg: Config, quick: bool, *, width: int) -> dict[str, Any]:
    width = cfg.get("width", width)
    return {
        "hidden_size": width,
        "intermediate_size": int(width * cfg.get("mlp_ratio", 4.0)),
        "num_hidden_layers": cfg.get("layers", 12),
        "hidden_act": _activation(cfg.get("act_kwargs") or {}, quick),
        "layer_norm_eps": (cfg.get("norm_kwargs") or {}).get("eps", 1e-5),
    }


def _activation(options: Config, quick: bool) -> str:
    if not options or options == {"approximate": "none"}:
        return "quick_gelu" if quick else _GELU
    if options == {"approximate": "tanh"} and not quick:
        return _TANH
    raise ValueError(
        f"OpenCLIP act_kwargs={dict(options)!r} with quick_gelu={quick}: not supported"
    )


def square(size: Any) -> int:
    """The side of a square picture, given as one number or two."""
    sides = {size} if isinstance(size, int) else set(size)
    if len(sides) != 1:
        raise ValueError(f"OpenCLIP image_size={size!r} is no square, which the models here need")
    return sides.pop()
