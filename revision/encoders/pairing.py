"""Pairs of towers: any vision tower beside any text tower, to be joined by heads.

Place in the pipeline: two pretrained towers -> **a pair** -> rows of either side ->
stage=contrastive -> a `ComposedDualEncoder` directory, which then embeds everything else.

    v = f(x) / ||f(x)||_2      f a model of timm or of transformers (`vision_towers.py`)
    t = g(y) / ||g(y)||_2      g a model of sentence-transformers (`sentence_tower.py`)

The two sides do not share a space: such rows are only for training heads.

Letters: n pictures or texts, V and T widths of the towers.
"""

import hashlib
import json
from abc import abstractmethod
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Shaped
from PIL import Image
from torch import Tensor, nn

from revision.encoders.base import Decode, DualEncoder, Side, Tokens, unit_rows, write_identity
from revision.encoders.hub import files_of
from revision.encoders.sentence_tower import SentenceTower, load_sentence_tower
from revision.encoders.vision_towers import VisionPooling, VisionTower, load_vision_tower
from revision.files import write_bytes

PAIR = "pair"


class Towers(DualEncoder):
    """Two towers without heads, of which `ComposedDualEncoder` makes a dual encoder.

    `dim` (the width of the image rows) describes only one of them; ask `feature_dim`.
    """

    kind: str
    description: str

    @abstractmethod
    def layout(self) -> dict[str, Any]:
        """What `config.json` has to say of them."""

    @abstractmethod
    def save_towers(self, directory: Path) -> None:
        """Write `vision/` and `text/`."""

    def save(self, directory: Path) -> None:
        self.save_towers(directory)
        write_config(directory, {"model_type": self.kind} | self.layout())
        write_identity(self, directory)

    def text_inputs(self, texts: list[str]) -> dict[str, Tensor]:
        return self.tokenize(texts).inputs


class Pair(Towers):
    """A vision tower and a text tower, unit rows of each."""

    kind = PAIR

    def __init__(
        self,
        vision: VisionTower,
        text: SentenceTower,
        *,
        names: dict[str, str],
        dtype: str,
        decode: Decode,
    ) -> None:
        super().__init__()
        self.vision, self.text = vision, text
        self.names, self.dtype, self.decode = names, dtype, decode
        self.description = f"{names['vision']} and {names['text']}"
        self.dim = vision.dim
        self.freeze()

    def feature_dim(self, side: Side) -> int:
        return self.dim if side == "image" else self.text.dim

    def identity(self) -> dict[str, Any]:
        identity = {
            "name": PAIR,
            "revision": f"sha256:{self._digest()}",
            "model_type": PAIR,
            "pooling": "model",
            "template": None,
            "dtype": self.dtype,
        }
        return identity if self.decode == "exact" else identity | {"decode": self.decode}

    def _digest(self) -> str:
        """Of weights and settings as loaded: the same wherever the files lie."""
        return digest_of([self.vision, self.text], [self.vision.settings, self.text.settings])

    def image_inputs(self, image: Image.Image) -> Shaped[Tensor, "..."]:
        return self.vision.image_inputs(image)

    def resized(self, width: int, height: int) -> tuple[int, int]:
        return self.vision.resized(width, height)

    def tokenize(self, texts: list[str]) -> Tokens:
        return self.text.tokenize(texts)

    @torch.no_grad()
    def encode_images(self, pixels: Shaped[Tensor, "n ..."]) -> Float[Tensor, "n V"]:
        return unit_rows(self.vision(pixels))

    @torch.no_grad()
    def encode_texts(self, inputs: dict[str, Tensor]) -> Float[Tensor, "n T"]:
        return unit_rows(self.text(inputs))

    def layout(self) -> dict[str, Any]:
        pooling = self.vision.settings.get("vision_pooling")
        return {"towers": PAIR, "names": self.names, "vision_pooling": pooling}

    def save_towers(self, directory: Path) -> None:
        self.vision.save(directory / "vision")
        self.text.save(directory / "text")


def load_pair(
    *,
    vision: str | Path,
    text: str | Path,
    vision_revision: str | None = None,
    text_revision: str | None = None,
    vision_pooling: VisionPooling | None = None,
    dtype: str = "float32",
    decode: Decode = "exact",
) -> Pair:
    """A pair of two towers, each by its directory or hub id.

    `vision_pooling` is class (None), mean or pooler for a model of transformers; one of timm pools
    itself.
    """
    images, texts = files_of(vision, vision_revision), files_of(text, text_revision)
    return Pair(
        load_vision_tower(images.directory, pooling=vision_pooling, dtype=dtype, decode=decode),
        load_sentence_tower(texts.directory, dtype=dtype),
        names={"vision": images.name, "text": texts.name},
        dtype=dtype,
        decode=decode,
    )


def load_saved_pair(directory: Path, *, dtype: str = "float32", decode: Decode = "exact") -> Pair:
    """The pair in `directory`, of one that was saved alone or with heads."""
    config = json.loads((directory / "config.json").read_bytes())
    pair = load_pair(
        vision=directory / "vision",
        text=directory / "text",
        vision_pooling=config["vision_pooling"],
        dtype=dtype,
        decode=decode,
    )
    return Pair(pair.vision, pair.text, names=config["names"], dtype=dtype, decode=decode)


def write_config(directory: Path, config: dict[str, Any]) -> None:
    write_bytes(directory / "config.json", json.dumps(config, indent=2).encode() + b"\n")


def digest_of(modules: list[nn.Module], facts: Any) -> str:
    """SHA-256 of `facts` as JSON and of every tensor of `modules`, with its name."""
    digest = hashlib.sha256(json.dumps(facts).encode())
    for module in modules:
        for name, tensor in module.state_dict().items():
            digest.update(name.encode() + raw_bytes(tensor))
    return digest.hexdigest()


def raw_bytes(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
