"""A small CLIP from random weights, and training it whole: both towers, no stored features.

Place in the pipeline: pictures with captions -> **two towers from scratch** -> an encoder directory
in the layout of the hub, which `load_encoder` reads as any other CLIP.

The architecture is CLIP's (arXiv:2103.00020): a ViT and a causal text transformer, pooled at the
class and at the end token, one projection each, a learned logit scale that starts at 1 / 0.07.
Departs from it in sizes and in the vocabulary, which is that of the tokenizer given: the text tower
learns its word vectors itself.
"""

import json
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from transformers import AutoTokenizer, CLIPConfig, CLIPImageProcessorPil, CLIPModel

from revision.encoders.base import directory_digest, unit_rows, write_identity
from revision.encoders.contrastive import ContrastiveModel, Sides, retrieval_row
from revision.encoders.hf import HuggingFaceEncoder
from revision.encoders.pairing import digest_of
from revision.files import replacing_directory, write_bytes

NAME = "clip_from_scratch"


def new_clip(
    *,
    tokenizer_dir: str | Path,
    image_size: int = 64,
    patch_size: int = 16,
    width: int = 128,
    num_layers: int = 3,
    num_heads: int = 4,
    dim: int = 128,
    max_length: int = 32,
) -> HuggingFaceEncoder:
    """A CLIP of random weights, drawn from torch's generator; both towers have the same size.

    `tokenizer_dir` holds a tokenizer in the hub's layout, `max_length` is in tokens.

    Raises ValueError where no tokenizer is, or one that does not mark the end of a text.
    """
    tokenizer = _tokenizer(Path(tokenizer_dir), max_length)
    tower = {
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": num_layers,
        "num_attention_heads": num_heads,
    }
    marks = {
        "vocab_size": len(tokenizer),
        "max_position_embeddings": max_length,
        "bos_token_id": _first(tokenizer.bos_token_id, tokenizer.cls_token_id),
        "eos_token_id": _first(tokenizer.eos_token_id, tokenizer.sep_token_id),
        "pad_token_id": tokenizer.pad_token_id,
    }
    config = CLIPConfig(
        text_config=tower | marks,
        vision_config=tower | {"image_size": image_size, "patch_size": patch_size},
        projection_dim=dim,
    )
    processor = CLIPImageProcessorPil(
        size={"shortest_edge": image_size}, crop_size={"height": image_size, "width": image_size}
    )
    model = CLIPModel(config)
    drawn = f"untrained sha256:{digest_of([model], None)}"  # other draws give other rows
    return HuggingFaceEncoder(model, tokenizer, processor, name=NAME, revision=drawn)


class ContrastiveTowers(ContrastiveModel):
    """A whole CLIP in training. Its own logit scale is `log_scale`.

    Padding needs no mask: the text tower is causal and is read at the end token, before it.
    """

    def __init__(self, encoder: HuggingFaceEncoder) -> None:
        super().__init__()
        self.clip: CLIPModel = encoder.model
        self.pixels = encoder.pixels or nn.Identity()
        self.log_scale = self.clip.logit_scale

    def embed(self, batch: Sides) -> tuple[Tensor, Tensor]:
        """Of `batch["image"]` (n, 3, H, W) bytes and `batch["text"]` (n, T) token ids."""
        pixels = self.pixels(batch["image"])
        images = self.clip.get_image_features(pixel_values=pixels).pooler_output
        texts = self.clip.get_text_features(input_ids=batch["text"]).pooler_output
        return unit_rows(images), unit_rows(texts)


def write_towers(
    encoder: HuggingFaceEncoder,
    directory: Path,
    *,
    training: dict[str, Any],
    held_out: dict[str, dict[str, float]],
) -> HuggingFaceEncoder:
    """Write the trained `encoder` with a model card; its revision becomes the digest of its files.

    `training` and `held_out` are those of `contrastive.write_encoder`, with `input` in place of
    `images` and `texts`, and are kept whole in `training.json`.
    """
    card = {"training": training, "held_out": held_out}
    with replacing_directory(directory) as new:
        for part in (encoder.model, encoder.tokenizer, encoder.image_processor):
            part.save_pretrained(new)
        write_bytes(new / "training.json", json.dumps(card, indent=1, default=str).encode())
        encoder.revision = f"sha256:{directory_digest(new)}"
        write_identity(encoder, new)
        write_bytes(new / "README.md", _card(encoder, training, held_out).encode())
    return encoder


def _card(
    encoder: HuggingFaceEncoder, training: dict[str, Any], held_out: dict[str, dict[str, float]]
) -> str:
    rows = "\n".join(retrieval_row(name, measured) for name, measured in held_out.items())
    size = encoder.model.config.vision_config.image_size
    return f"""# CLIP from random weights

Both towers were trained from scratch on {training["num_pairs"]:,} pairs of pictures and captions
(`{training["input"]}`), for {training["duration"]}, in batches of {training["batch_size"]} pairs,
which are each other's negatives. Pictures enter at {size} pixels; rows have width {encoder.dim}.
The whole configuration stands in `training.json`. So few pairs make an encoder to study, not to
use.

## Held out
Recall in per cent, one query at a time against all candidates; chance is 100 k / pairs. The gap is
the distance between the centroid of the picture rows and that of the text rows.

| set | pairs | picture to text R@1 / 5 / 10 | text to picture R@1 / 5 / 10 | gap |
|---|---|---|---|---|
{rows}
"""


def _tokenizer(directory: Path, max_length: int) -> Any:
    if not directory.is_dir():
        raise ValueError(
            f"there is no tokenizer directory {directory}; fetch the demo's with "
            "`python scripts/fetch_assets.py`, or give encoder.tokenizer_dir=<directory>"
        )
    tokenizer = AutoTokenizer.from_pretrained(directory)
    tokenizer.model_max_length, tokenizer.padding_side = max_length, "right"
    if _first(tokenizer.eos_token_id, tokenizer.sep_token_id) is None:
        raise ValueError(
            f"{directory}: the tokenizer has no token for the end of a text, at which the text "
            "tower is read; give another tokenizer"
        )
    return tokenizer


def _first(*tokens: int | None) -> int | None:
    return next((token for token in tokens if token is not None), None)
