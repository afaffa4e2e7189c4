"""Vision towers that make one half of a pair: models of `transformers`, and of timm.

Place in the pipeline: a directory or hub id -> **a vision tower** -> one side of a pair
(`pairing.py`). A tower is one or the other by its `config.json`: timm's names an `architecture`,
that of `transformers` a `model_type`.

    class     the state of the class token
    mean      the mean over the patches (class and register tokens apart), or over a feature map
    pooler    what the model itself pools: SigLIP's attention, CLIP's class token after its norm

A timm tower is read as timm ends it without its classifier. timm needs a torchvision that fits
torch, neither of which this package needs otherwise: they are imported when a timm tower is read.

Source: huggingface/pytorch-image-models v1.0.31 timm/models/_factory.py:create_model and
timm/data/transforms_factory.py. Departs from its loader, which lets weights be missing once the
classifier is taken off: every key is compared.

Letters: n pictures, V width of the tower.
"""

import json
import math
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float, Shaped
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoImageProcessor, AutoModel

from revision.encoders.base import Decode, torch_dtype
from revision.encoders.hub import config_facts, without_pooler
from revision.encoders.openclip_config import square
from revision.encoders.pixels import pixel_path
from revision.encoders.resizing import ResizeMode, TorchvisionPath
from revision.files import write_bytes

VisionPooling = Literal["class", "mean", "pooler"]
_RESIZE_MODES: dict[str, ResizeMode] = {"center": "shortest", "squash": "squash"}


class VisionTower(nn.Module, ABC):
    """Pictures become rows of width `dim`, which nobody has normalised yet."""

    dim: int
    settings: dict[str, Any]  # what decides the rows beside the weights, as plain data

    @abstractmethod
    def image_inputs(self, image: Image.Image) -> Shaped[Tensor, "..."]:
        """In the worker, as in `DualEncoder`."""

    @abstractmethod
    def resized(self, width: int, height: int) -> tuple[int, int]:
        """As in `DualEncoder`."""

    @abstractmethod
    def forward(self, pixels: Shaped[Tensor, "n ..."]) -> Float[Tensor, "n V"]:
        """On the device."""

    @abstractmethod
    def save(self, directory: Path) -> None:
        """Write what `load_vision_tower` reads with the same `settings`."""


def load_vision_tower(
    directory: Path,
    *,
    pooling: VisionPooling | None,
    dtype: str = "float32",
    decode: Decode = "exact",
) -> VisionTower:
    """The tower in `directory`.

    Raises:
        ValueError: no such tower, weights that are missing (they would be random), or a pooling
            that the tower cannot give.
    """
    path = directory / "config.json"
    config = json.loads(path.read_bytes()) if path.is_file() else {}
    if "architecture" in config:
        if pooling is not None:
            raise ValueError(
                f"{directory} holds a timm tower, which pools itself: vision_pooling={pooling!r} "
                "would do nothing; leave it null"
            )
        return TimmTower(config, read_safetensors(directory), decode=decode).to(torch_dtype(dtype))
    if "model_type" not in config:
        raise ValueError(
            f"{path} names neither a model_type (transformers) nor an architecture (timm): "
            f"{directory} is no vision tower"
        )
    return _load_transformers(directory, pooling or "class", dtype, decode)


class TransformersTower(VisionTower):
    """A vision model of `transformers` with its image processor."""

    def __init__(
        self, model: Any, processor: Any, *, pooling: VisionPooling, decode: Decode = "exact"
    ) -> None:
        super().__init__()
        self.model, self.processor, self.pooling = model, processor, pooling
        self.pixels = pixel_path(processor, decode)
        self.settings = {
            "vision_pooling": pooling,
            "pixels": processor.to_dict() if self.pixels is None else self.pixels.settings,
            "config": config_facts(model.config),
        }
        self.dim = _width(model.config)

    def image_inputs(self, image: Image.Image) -> Shaped[Tensor, "..."]:
        if self.pixels is not None:
            return self.pixels.to_bytes(image)
        return self.processor(images=image, return_tensors="pt")["pixel_values"][0]

    def resized(self, width: int, height: int) -> tuple[int, int]:
        return (width, height) if self.pixels is None else self.pixels.resized(width, height)

    def forward(self, pixels: Shaped[Tensor, "n ..."]) -> Float[Tensor, "n V"]:
        values = pixels if self.pixels is None else self.pixels(pixels)
        output = self.model(pixel_values=values.to(self.model.dtype))
        if self.pooling == "pooler":
            return output.pooler_output.flatten(1)
        states = output.last_hidden_state
        if states.dim() == 4:
            return states.float().mean((2, 3))
        if self.pooling == "class":
            return states[:, 0]
        return states[:, -_num_patches(values, self.model.config.patch_size) :].float().mean(1)

    def save(self, directory: Path) -> None:
        self.model.save_pretrained(directory)
        self.processor.save_pretrained(directory)


class TimmTower(VisionTower):
    """A model of timm without its classifier, by its `config.json` and its weights."""

    def __init__(self, config: dict[str, Any], state: dict[str, Tensor], *, decode: Decode) -> None:
        super().__init__()
        self.config = config
        self.pixels = timm_pixels(config.get("pretrained_cfg") or {}, decode)
        kept = ("architecture", "model_args")
        self.settings = {key: config.get(key) for key in kept} | {"pixels": self.pixels.settings}
        create_model = _import_timm().create_model
        self.model = create_model(
            config["architecture"], num_classes=0, **config.get("model_args", {})
        )
        heads = config.get("pretrained_cfg", {}).get("classifier") or ()
        heads = (heads,) if isinstance(heads, str) else tuple(heads)
        classifier = {f"{head}.{kind}" for head in heads for kind in ("weight", "bias")}
        _load_every_key(self.model, {k: v for k, v in state.items() if k not in classifier})
        self.dim = self.model.num_features
        if hasattr(self.model, "head_hidden_size") and self.model.head_hidden_size:
            self.dim = self.model.head_hidden_size

    def image_inputs(self, image: Image.Image) -> Shaped[Tensor, "..."]:
        return self.pixels.to_bytes(image)

    def resized(self, width: int, height: int) -> tuple[int, int]:
        return self.pixels.resized(width, height)

    def forward(self, pixels: Shaped[Tensor, "n ..."]) -> Float[Tensor, "n V"]:
        dtype = next(self.model.parameters()).dtype
        return self.model(self.pixels(pixels).to(dtype))

    def save(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        state = {key: value.contiguous() for key, value in self.model.state_dict().items()}
        save_file(state, directory / "model.safetensors")
        write_bytes(directory / "config.json", json.dumps(self.config, indent=2).encode() + b"\n")


def timm_pixels(config: dict[str, Any], decode: Decode = "exact") -> TorchvisionPath:
    """The evaluation transform of a `pretrained_cfg`: resize to crop / crop_pct, cut the centre.

    Raises ValueError for one that is not square, or pads.
    """
    crop = square(list(config.get("input_size", (3, 224, 224))[1:]))
    mode = config.get("crop_mode") or "center"
    if mode not in _RESIZE_MODES:
        raise ValueError(f"timm crop_mode={mode!r} is not supported; it is center or squash")
    return TorchvisionPath(
        size=math.floor(crop / (config.get("crop_pct") or 0.875)),
        crop=crop,
        mode=_RESIZE_MODES[mode],
        mean=config.get("mean") or (0.485, 0.456, 0.406),
        std=config.get("std") or (0.229, 0.224, 0.225),
        interpolation=config.get("interpolation") or "bilinear",
        decode=decode,
    )


def read_safetensors(directory: Path) -> dict[str, Tensor]:
    path = directory / "model.safetensors"
    if not path.is_file():
        raise ValueError(f"{path} is not there: the tower has no weights; pickles are not read")
    return load_file(path)


def _load_transformers(
    directory: Path, pooling: VisionPooling, dtype: str, decode: Decode
) -> TransformersTower:
    model, info = AutoModel.from_pretrained(
        directory, dtype=torch_dtype(dtype), output_loading_info=True
    )
    missing = sorted(info["missing_keys"])
    if pooling != "pooler":
        missing = without_pooler(model, missing)
    if missing:
        raise ValueError(
            f"{directory} has no weights for {', '.join(missing)}: they would be random. "
            f"vision_pooling={pooling} needs them; class or mean may not"
        )
    model = getattr(model, "vision_model", model)  # of a dual encoder only this half
    processor = AutoImageProcessor.from_pretrained(directory, backend="pil")
    tower = TransformersTower(model, processor, pooling=pooling, decode=decode)
    _check_pooling(tower, directory)
    return tower


@torch.no_grad()
def _check_pooling(tower: TransformersTower, directory: Path) -> None:
    """Refuse a class token that is a patch, and a pooler that is not there."""
    pixels = tower.image_inputs(Image.new("RGB", (64, 64)))[None]
    values = pixels if tower.pixels is None else tower.pixels(pixels)
    output = tower.model(pixel_values=values.to(tower.model.dtype))
    states = output.last_hidden_state
    patch = getattr(tower.model.config, "patch_size", None)
    if tower.pooling == "pooler":
        possible = getattr(output, "pooler_output", None) is not None
    elif patch is None or states.dim() == 4:
        possible = tower.pooling == "mean" and states.dim() == 4
    else:
        possible = states.shape[1] > _num_patches(values, patch) - (tower.pooling == "mean")
    if not possible:
        raise ValueError(
            f"{directory}: a {type(tower.model).__name__} has no rows for vision_pooling="
            f"{tower.pooling} (its states are {tuple(states.shape)}); choose another of class, "
            "mean, pooler"
        )


def _num_patches(values: Float[Tensor, "n 3 H W"], patch_size: int) -> int:
    return (values.shape[2] // patch_size) * (values.shape[3] // patch_size)


def _width(config: Any) -> int:
    if getattr(config, "hidden_size", None):
        return config.hidden_size
    return config.hidden_sizes[-1]


def _load_every_key(model: nn.Module, state: dict[str, Tensor]) -> None:
    wanted = model.state_dict().keys()
    unknown, missing = sorted(state.keys() - wanted), sorted(wanted - state.keys())
    if unknown or missing:
        raise ValueError(
            f"the timm weights do not fit a {type(model).__name__}: unknown in the file: "
            f"{', '.join(unknown) or 'nothing'}; missing: {', '.join(missing) or 'nothing'}"
        )
    model.load_state_dict(state)


def _import_timm() -> Any:
    try:
        import timm
    except (ImportError, RuntimeError) as error:  # RuntimeError: a torchvision of another torch
        raise ValueError(
            f"a timm tower needs timm and a torchvision that fits torch: {error}. "
            '`pip install -e ".[timm]"`, or use a tower of transformers'
        ) from error
    return timm
