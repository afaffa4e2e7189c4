"""Hugging Face dual encoders: CLIP, SigLIP, SigLIP 2 and VisionTextDualEncoder through AutoModel.

Place in the pipeline: `load_encoder` returns a `HuggingFaceEncoder` for a hub id or a local
directory in the hub's layout. Features are those of the model's own `get_image_features` and
`get_text_features`, normalised.

Conventions that the files of a model do not state:
- SigLIP and SigLIP 2 saw every text padded on the right to the full length (64) and attended to
  the padding (arXiv:2303.15343; mlfoundations/open_clip issue 984). Their text features are wrong
  with any other padding, or with an attention mask.
- SigLIP 2 saw lower case (huggingface/transformers pull request 43101). Its NaFlex files load a
  tokenizer that lowers; those of a fixed size name Gemma's, which does not: it is done here.
- CLIP and VisionTextDualEncoder mask the padding, so a batch is padded to its longest text.
- A SigLIP 2 of a fixed size is a SigLIP to its files. SigLIP 2 NaFlex keeps the aspect ratio: a
  picture is a list of patches, a mask and a grid size, which travel as one tensor,
  [patch values | mask | grid height | grid width] per patch.
"""

import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Shaped
from PIL import Image
from torch import Tensor
from transformers import AutoImageProcessor, AutoModel, AutoTokenizer, GemmaTokenizer

from revision.encoders.base import (
    Decode,
    DualEncoder,
    GridTower,
    Tokens,
    read_identity,
    torch_dtype,
    unit_rows,
    write_identity,
)
from revision.encoders.hub import name_and_version
from revision.encoders.pixels import pixel_path

PADDED_TO_FULL_LENGTH = ("siglip", "siglip2")
_LONGEST_CREDIBLE_LENGTH = 1 << 20  # tokenizers without a limit say 1e30


class HuggingFaceEncoder(DualEncoder):
    """A dual encoder of `transformers` with its tokenizer and its image processor.

    `pixels` does what the image processor says; None where only the processor itself can.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        image_processor: Any,
        *,
        name: str,
        revision: str,
        decode: Decode = "exact",
    ) -> None:
        super().__init__()
        self.model = model
        self.tokenizer = tokenizer
        self.image_processor = image_processor
        self.name = name
        self.revision = revision
        config = model.config
        self.pads_to_full_length = config.model_type in PADDED_TO_FULL_LENGTH
        self.is_naflex = config.model_type == "siglip2"
        self.lowers = self.pads_to_full_length and isinstance(tokenizer, GemmaTokenizer)
        self.max_length = text_limit(config.text_config, tokenizer)
        self.dim = _feature_dim(config)
        self.decode = decode
        own_pixels = self.is_naflex and decode == "exact"
        self.pixels = None if own_pixels else pixel_path(image_processor, decode)
        if self.pads_to_full_length:
            tokenizer.padding_side = "right"
        self.freeze()

    def identity(self) -> dict[str, Any]:
        identity = {
            "name": self.name,
            "revision": self.revision,
            "model_type": self.model.config.model_type,
            "pooling": "model",
            "template": None,
            "dtype": str(self.model.dtype).removeprefix("torch."),
        }
        if self.lowers:
            identity["lowercase"] = True
        return identity if self.decode == "exact" else identity | {"decode": self.decode}

    def image_inputs(self, image: Image.Image) -> Shaped[Tensor, "..."]:
        if self.pixels is not None:
            return self.pixels.to_bytes(image)
        features = self.image_processor(images=image, return_tensors="pt")
        pixels = features["pixel_values"][0]
        if not self.is_naflex:
            return pixels
        grid = features["spatial_shapes"][0].expand(len(pixels), 2)
        mask = features["pixel_attention_mask"][0, :, None]
        return torch.cat([pixels, mask.to(pixels), grid.to(pixels)], dim=1)

    def resized(self, width: int, height: int) -> tuple[int, int]:
        return (width, height) if self.pixels is None else self.pixels.resized(width, height)

    def text_inputs(self, texts: list[str]) -> dict[str, Tensor]:
        return self.tokenize(texts).inputs

    def tokenize(self, texts: list[str]) -> Tokens:
        padding = "max_length" if self.pads_to_full_length else "longest"
        tokens = self.tokenizer(
            [text.lower() for text in texts] if self.lowers else texts,
            padding=padding,
            truncation=True,
            max_length=self.max_length,
            return_tensors="pt",
        )
        kept = ("input_ids",) if self.pads_to_full_length else tuple(tokens)
        return Tokens({key: tokens[key] for key in kept}, num_truncated(tokens))

    def grid_tower(self) -> GridTower | None:
        if self.model.config.model_type not in ("clip", "siglip"):
            return None
        return GridTower(self.model.vision_model, self.pixel_values)

    def pixel_values(self, pixels: Shaped[Tensor, "n ..."]) -> Shaped[Tensor, "n ..."]:
        """What the vision tower reads, in float32, on the device of `pixels`."""
        return pixels if self.pixels is None else self.pixels(pixels)

    @torch.no_grad()
    def encode_images(self, pixels: Shaped[Tensor, "n ..."]) -> Float[Tensor, "n D"]:
        values = self.pixel_values(pixels)
        if not self.is_naflex:
            output = self.model.get_image_features(pixel_values=values.to(self.model.dtype))
        else:
            output = self.model.get_image_features(
                pixel_values=values[..., :-3].to(self.model.dtype),
                pixel_attention_mask=values[..., -3].to(torch.int32),
                spatial_shapes=values[:, 0, -2:].long(),
            )
        return unit_rows(output.pooler_output)

    @torch.no_grad()
    def encode_texts(self, inputs: dict[str, Tensor]) -> Float[Tensor, "n D"]:
        return unit_rows(self.model.get_text_features(**inputs).pooler_output)

    def save(self, directory: Path) -> None:
        for part in (self.model, self.tokenizer, self.image_processor):
            part.save_pretrained(directory)
        write_identity(self, directory)


def load_hugging_face(
    path: str,
    *,
    revision: str | None,
    trust_remote_code: bool,
    dtype: str,
    decode: Decode = "exact",
) -> HuggingFaceEncoder:
    """Load the hub id or local directory `path`; weights as safetensors unless there are none.

    Raises:
        ValueError: no dual encoder, weights that are missing, or code from the hub at a revision
            that may change.
    """
    if trust_remote_code:
        _check_pinned(path, revision)
    options: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
    model, found = AutoModel.from_pretrained(
        path, dtype=torch_dtype(dtype), output_loading_info=True, **options
    )
    _check_is_dual(model, path)
    check_complete(found["missing_keys"], path)
    tokenizer = AutoTokenizer.from_pretrained(path, **options)
    # torchvision has no CPU build on the package index: always take the Pillow processors, which
    # also gives the same pixels on every machine.
    image_processor = AutoImageProcessor.from_pretrained(path, backend="pil", **options)
    name, version = _name_and_version(path, model, revision)
    return HuggingFaceEncoder(
        model,
        tokenizer,
        image_processor,
        name=name,
        revision=version,
        decode=decode,
    )


def _name_and_version(path: str, model: Any, revision: str | None) -> tuple[str, str]:
    """Of a hub id its commit; of a directory what it says it is a copy of, else its content."""
    if Path(path).is_dir() and (recorded := read_identity(Path(path))):
        return recorded["name"], recorded["revision"]
    commit = getattr(model.config, "_commit_hash", None)
    return name_and_version(path, commit or revision or "main")


def _check_pinned(path: str, revision: str | None) -> None:
    if not Path(path).is_dir() and not re.fullmatch(r"[0-9a-f]{40}", revision or ""):
        raise ValueError(
            f"trust_remote_code=true would run what {path} holds at revision={revision} today, and "
            "other code whenever that changes; give the commit that you have read (40 hexadecimal "
            "digits) as encoder.revision"
        )


def _check_is_dual(model: Any, path: str) -> None:
    needed = ("get_image_features", "get_text_features")
    missing = [name for name in needed if not hasattr(model, name)]
    if missing:
        raise ValueError(
            f"{path} holds a {type(model).__name__} without {' and '.join(missing)}: not a dual "
            "encoder. Give a CLIP, SigLIP, SigLIP 2 or VisionTextDualEncoder model, or a composed "
            "encoder made by stage=contrastive"
        )


def check_complete(missing: Collection[str], path: str) -> None:
    """Raise ValueError where tensors of the model at `path` are missing from its files."""
    if missing:
        some = ", ".join(sorted(missing)[:4])
        raise ValueError(
            f"{path}: {len(missing)} tensors of the model are not in its files, {some}: they would "
            "be drawn at random, differently in every process. Give complete files; the joint "
            "model of LLM2CLIP, which has no text tower, loads by encoder=llm2clip_l14_336"
        )


def num_truncated(tokens: Any) -> int | None:
    """How many of the texts behind `tokens`, which a tokenizer gave, were cut. The slow tokenizers
    of `transformers` do not say."""
    if tokens.encodings is None:
        return None
    return sum(bool(encoding.overflowing) for encoding in tokens.encodings)


def text_limit(config: Any, tokenizer: Any) -> int:
    """The number of tokens that the text tower with this `config` can read."""
    positions = config.max_position_embeddings
    limit = tokenizer.model_max_length
    return min(positions, limit) if limit < _LONGEST_CREDIBLE_LENGTH else positions


def _feature_dim(config: Any) -> int:
    if hasattr(config, "projection_dim"):
        return config.projection_dim
    image_dim = config.vision_config.hidden_size
    text_dim = getattr(config.text_config, "projection_size", None) or image_dim
    if image_dim != text_dim:
        raise ValueError(
            f"{config.model_type}: image rows of width {image_dim} and text rows of width "
            f"{text_dim} cannot share a space; is this a contrastive model?"
        )
    return image_dim
