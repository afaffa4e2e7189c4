"""A dual encoder composed of two real pretrained towers and two small trained heads.

Place in the pipeline: the default encoder where no model hub is reachable. `TowerPair` embeds
pictures and texts separately; `stage=contrastive` trains heads on those rows; the result is a
`ComposedDualEncoder` directory.

    v = mean over positions of EfficientNet-Lite0((x - 127) / 128)          D_v = 1280
    t = mean over real tokens of MiniLM's last hidden state                 D_t = 384
    e = W (f / ||f|| * sqrt(D_f)),   e / ||e||                              D   = 256

The rows are scaled but not centred: each tower's features fill a narrow cone, and keeping the
cones is what keeps a modality gap of the size that CLIP has (arXiv:2203.02053).

A picture is resized so that its longer side is `image_size` and laid on a white square: nothing
is cropped away, and clip art without a background keeps the white that it was drawn for.

Letters: f one tower's feature, D_f its width, W a head without bias, D the joint width.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Shaped, UInt8
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer

from revision.encoders.base import (
    Decode,
    DualEncoder,
    Side,
    Tokens,
    torch_dtype,
    unit_rows,
    write_identity,
)
from revision.encoders.hf import check_complete, num_truncated, text_limit
from revision.encoders.pairing import (
    PAIR,
    Towers,
    digest_of,
    load_saved_pair,
    raw_bytes,
    write_config,
)
from revision.encoders.pixels import as_numbers, bytes_of, check_decode, resize

COMPOSED = "composed_dual_encoder"
TOWERS = "tower_pair"
VISION_ARCHITECTURE = "efficientnet-lite0"
_CLASSIFIER = ("_fc.weight", "_fc.bias")  # ImageNet's 1,000 classes, which nothing here reads


class TowerPair(Towers):
    """The two towers without heads: image rows of width 1280, text rows of width 384, unit norm.

    The two sides do not share a space, so `dim` (the width of the image rows) describes only one
    of them; ask `feature_dim`.
    """

    kind = TOWERS

    def __init__(
        self,
        vision: Any,
        text: Any,
        tokenizer: Any,
        *,
        image_size: int,
        decode: Decode = "exact",
    ) -> None:
        super().__init__()
        check_decode(decode)
        self.vision = vision.to(memory_format=torch.channels_last)  # 1.5 times as fast on a CPU
        self.text = text
        self.tokenizer = tokenizer
        self.image_size = image_size
        self.decode = decode
        self.description = (
            f"EfficientNet-Lite0 (pictures on a white square of {image_size}) and MiniLM"
        )
        self.dim = vision._conv_head.out_channels
        self.freeze()

    def feature_dim(self, side: Side) -> int:
        return self.dim if side == "image" else self.text.config.hidden_size

    def identity(self) -> dict[str, Any]:
        identity = {
            "name": TOWERS,
            "revision": f"sha256:{self._digest()}",
            "model_type": TOWERS,
            "pooling": "mean",
            "template": None,
            "image_size": self.image_size,
            "dtype": str(self.text.dtype).removeprefix("torch."),
        }
        return identity if self.decode == "exact" else identity | {"decode": self.decode}

    def _digest(self) -> str:
        """Of the weights and the vocabulary as loaded: the same wherever the directory lies."""
        vocabulary = sorted(self.tokenizer.get_vocab().items())
        return digest_of([self.vision, self.text], vocabulary)

    def image_inputs(self, image: Image.Image) -> UInt8[Tensor, "3 size size"]:
        return bytes_of(fit_on_white(image, self.image_size, self.decode))

    def resized(self, width: int, height: int) -> tuple[int, int]:
        return fitted(width, height, self.image_size)

    def tokenize(self, texts: list[str]) -> Tokens:
        limit = text_limit(self.text.config, self.tokenizer)
        tokens = self.tokenizer(
            texts, padding="longest", truncation=True, max_length=limit, return_tensors="pt"
        )
        return Tokens(dict(tokens), num_truncated(tokens))

    @torch.no_grad()
    def encode_images(self, pixels: UInt8[Tensor, "n 3 size size"]) -> Float[Tensor, "n D"]:
        values = as_numbers(pixels).sub_(127).div_(128)
        values = values.to(self.text.dtype).contiguous(memory_format=torch.channels_last)
        return unit_rows(self.vision.extract_features(values).float().mean((2, 3)))

    @torch.no_grad()
    def encode_texts(self, inputs: dict[str, Tensor]) -> Float[Tensor, "n D"]:
        states = self.text(**inputs).last_hidden_state.float()
        mask = inputs["attention_mask"].unsqueeze(-1).to(states)
        return unit_rows((states * mask).sum(1) / mask.sum(1))

    def layout(self) -> dict[str, Any]:
        return {"image_size": self.image_size}

    def save_towers(self, directory: Path) -> None:
        (directory / "vision").mkdir(parents=True, exist_ok=True)
        state = {k: v.contiguous() for k, v in self.vision.state_dict().items()}
        save_file(state, directory / "vision" / "model.safetensors")
        self.text.save_pretrained(directory / "text")
        self.tokenizer.save_pretrained(directory / "text")


class Head(nn.Linear):
    """A linear head without bias on rows scaled to the norm sqrt(D_f); unit rows come out.

    Scaled so, every input element is of order one whatever the tower and its width. The rows that
    come out do not depend on the scale, the gradients of the weights do.
    """

    def __init__(self, tower_dim: int, dim: int) -> None:
        super().__init__(tower_dim, dim, bias=False)

    def forward(self, rows: Float[Tensor, "n F"]) -> Float[Tensor, "n D"]:
        scaled = unit_rows(rows) * self.in_features**0.5
        return unit_rows(super().forward(scaled.to(self.weight.dtype)))


class ComposedDualEncoder(DualEncoder):
    """Two towers and their trained heads; `card` says how they were trained."""

    def __init__(
        self, towers: Towers, image_head: Head, text_head: Head, *, card: dict[str, Any]
    ) -> None:
        super().__init__()
        self.towers = towers
        self.image_head = image_head.float()
        self.text_head = text_head.float()
        self.card = card
        self.dim = image_head.out_features
        self.decode = towers.decode
        self.freeze()

    def identity(self) -> dict[str, Any]:
        raw = b"".join(raw_bytes(head.weight) for head in (self.image_head, self.text_head))
        digest = hashlib.sha256(raw).hexdigest()
        names = {"name": COMPOSED, "model_type": COMPOSED, "heads": f"sha256:{digest}"}
        return self.towers.identity() | names

    def image_inputs(self, image: Image.Image) -> Shaped[Tensor, "..."]:
        return self.towers.image_inputs(image)

    def resized(self, width: int, height: int) -> tuple[int, int]:
        return self.towers.resized(width, height)

    def text_inputs(self, texts: list[str]) -> dict[str, Tensor]:
        return self.towers.text_inputs(texts)

    def tokenize(self, texts: list[str]) -> Tokens:
        return self.towers.tokenize(texts)

    @torch.no_grad()
    def encode_images(self, pixels: Shaped[Tensor, "n ..."]) -> Float[Tensor, "n D"]:
        return self.image_head(self.towers.encode_images(pixels))

    @torch.no_grad()
    def encode_texts(self, inputs: dict[str, Tensor]) -> Float[Tensor, "n D"]:
        return self.text_head(self.towers.encode_texts(inputs))

    def save(self, directory: Path) -> None:
        self.towers.save_towers(directory)
        heads = {"image": self.image_head.weight, "text": self.text_head.weight}
        save_file({k: v.contiguous() for k, v in heads.items()}, directory / "heads.safetensors")
        config = {"model_type": COMPOSED, "card": self.card} | self.towers.layout()
        write_config(directory, config)
        write_identity(self, directory)


def fit_on_white(image: Image.Image, size: int, decode: Decode = "exact") -> Image.Image:
    """The whole picture, its longer side `size` pixels, centred on a white square."""
    width, height = fitted(*image.size, size)
    canvas = Image.new("RGB", (size, size), "white")
    small = resize(image, (width, height), Image.Resampling.BICUBIC, decode)
    canvas.paste(small, ((size - width) // 2, (size - height) // 2))
    return canvas


def fitted(width: int, height: int, size: int) -> tuple[int, int]:
    """Width and height with the longer side `size`."""
    scale = size / max(width, height)
    return max(1, round(width * scale)), max(1, round(height * scale))


def load_towers(
    *,
    vision_dir: str | Path,
    text_dir: str | Path,
    image_size: int = 128,
    dtype: str = "float32",
    decode: Decode = "exact",
) -> TowerPair:
    """The pretrained towers: `vision_dir/model.safetensors` and `text_dir` in the hub's layout."""
    vision_dir, text_dir = Path(vision_dir), Path(text_dir)
    for needed in (vision_dir / "model.safetensors", text_dir / "config.json"):
        if not needed.is_file():
            raise ValueError(
                f"{needed} is not there; fetch the pretrained towers with "
                "`python scripts/fetch_assets.py`"
            )
    chosen = torch_dtype(dtype)
    vision = _load_vision(vision_dir / "model.safetensors").to(chosen)
    text, found = AutoModel.from_pretrained(text_dir, dtype=chosen, output_loading_info=True)
    check_complete(found["missing_keys"], str(text_dir))
    tokenizer = AutoTokenizer.from_pretrained(text_dir)
    return TowerPair(vision, text, tokenizer, image_size=image_size, decode=decode)


def load_composed(
    directory: Path, *, dtype: str = "float32", decode: Decode = "exact"
) -> DualEncoder:
    """Read what `ComposedDualEncoder.save` or `TowerPair.save` wrote."""
    config = json.loads((directory / "config.json").read_text())
    towers: Towers
    if config.get("towers") == PAIR:
        towers = load_saved_pair(directory, dtype=dtype, decode=decode)
    else:
        towers = load_towers(
            vision_dir=directory / "vision",
            text_dir=directory / "text",
            image_size=config["image_size"],
            dtype=dtype,
            decode=decode,
        )
    if config["model_type"] == towers.kind:
        return towers
    weights = load_file(directory / "heads.safetensors")
    return ComposedDualEncoder(
        towers, _head(weights["image"]), _head(weights["text"]), card=config["card"]
    )


def _head(weight: Float[Tensor, "D F"]) -> Head:
    head = Head(weight.shape[1], weight.shape[0])
    head.load_state_dict({"weight": weight})
    return head


def _load_vision(path: Path) -> Any:
    # Installed with the weights (requirements/weights.txt), not needed for other encoders.
    from efficientnet_lite_pytorch import EfficientNet

    vision = EfficientNet.from_name(VISION_ARCHITECTURE)
    vision._fc = nn.Identity()
    state = {k: v for k, v in load_file(path).items() if k not in _CLASSIFIER}
    vision.load_state_dict(state)
    return vision
