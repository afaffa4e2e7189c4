"""LLM2CLIP: CLIP's vision tower, and Llama 3 8B with an adapter in place of CLIP's text tower.

Place in the pipeline: the encoder of the ReVision papers; pictures and captions -> unit rows of
width 1280. Source: arXiv:2411.04997, microsoft/LLM2CLIP@cba3b45; no code of the checkpoints runs.

    picture -> CLIP ViT-L/14 at 336 px -> projection -> / norm
    caption -> template -> bidirectional Llama -> mean over the document -> adapter -> / norm

Three repositories make one encoder: the joint model, the text LLM, and CLIP's image processor,
which the joint repository does not have. Each is named in the config with its revision, and the
identity records all of them, the template and the length.

A directory that `save` writes holds `joint/` in the published layout, `text/` and
`image_processor/`, and loads by `load_encoder`.

Letters: n pictures or captions, T tokens, D width of the rows.
"""

import json
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Shaped
from PIL import Image
from torch import Tensor
from transformers import AutoImageProcessor, AutoTokenizer, LlamaConfig, LlamaModel

from revision.encoders.base import (
    POOLED,
    Decode,
    DualEncoder,
    GridTower,
    Tokens,
    read_identity,
    torch_dtype,
    unit_rows,
    write_identity,
)
from revision.encoders.bidirectional import (
    check_bidirectional,
    document_mean,
    make_bidirectional,
    token_states,
)
from revision.encoders.hub import name_and_version
from revision.encoders.llm2clip_checkpoint import Joint, read_joint, write_joint
from revision.encoders.llm2clip_parts import (
    check_picture_size,
    named_part,
    read_llm,
    read_llm_config,
)
from revision.encoders.llm2clip_prompt import Prompt
from revision.encoders.patches import Pooling, with_pooling
from revision.encoders.pixels import pixel_path
from revision.files import write_bytes

LLM2CLIP = "llm2clip"
POOLING = "document_mean"
_ON_ANY_DEVICE = ("sdpa", "eager")  # other attention kernels are tested when the first text comes


class LLM2CLIPEncoder(DualEncoder):
    """The joint model, the text LLM (None: pictures alone) and what belongs to them.

    `sources` names each part and its revision, and goes into the identity as it is.
    `pixels` does what the image processor says; None where only the processor itself can.
    """

    def __init__(
        self,
        joint: Joint,
        llm: LlamaModel | None,
        prompt: Prompt,
        image_processor: Any,
        *,
        llm_config: LlamaConfig,
        sources: dict[str, str],
        decode: Decode = "exact",
    ) -> None:
        super().__init__()
        _check_width(llm_config.hidden_size, joint.adapter.input_dim)
        self.vision, self.adapter = joint.vision, joint.adapter
        self.llm = None if llm is None else make_bidirectional(llm)
        self.prompt, self.image_processor = prompt, image_processor
        self.llm_config, self.sources = llm_config, sources
        self.dim = joint.adapter.output_dim
        self.decode, self.pixels = decode, pixel_path(image_processor, decode)
        self._is_tested = False
        self.freeze()
        if llm is not None and llm.config._attn_implementation in _ON_ANY_DEVICE:
            self._test(llm)

    def _test(self, llm: LlamaModel) -> None:
        check_bidirectional(llm)
        self._is_tested = True

    def identity(self) -> dict[str, Any]:
        identity = self.sources | {
            "model_type": LLM2CLIP,
            "pooling": POOLING,
            "template": self.prompt.template,
            "max_length": self.prompt.max_length,
            "dtype": str(self.vision.dtype).removeprefix("torch."),
        }
        return identity if self.decode == "exact" else identity | {"decode": self.decode}

    def image_inputs(self, image: Image.Image) -> Shaped[Tensor, "3 size size"]:
        if self.pixels is not None:
            return self.pixels.to_bytes(image)
        return self.image_processor(images=image, return_tensors="pt")["pixel_values"][0]

    def resized(self, width: int, height: int) -> tuple[int, int]:
        return (width, height) if self.pixels is None else self.pixels.resized(width, height)

    def grid_tower(self) -> GridTower:
        return GridTower(self.vision.vision_model, self.pixel_values)

    def pixel_values(self, pixels: Shaped[Tensor, "n ..."]) -> Shaped[Tensor, "n ..."]:
        """What the vision tower reads, in float32, on the device of `pixels`."""
        return pixels if self.pixels is None else self.pixels(pixels)

    def text_inputs(self, texts: list[str]) -> dict[str, Tensor]:
        return self.tokenize(texts).inputs

    def tokenize(self, texts: list[str]) -> Tokens:
        self._text_llm()
        return self.prompt.tokenize(texts)

    @torch.no_grad()
    def encode_images(self, pixels: Shaped[Tensor, "n ..."]) -> Float[Tensor, "n D"]:
        values = self.pixel_values(pixels).to(self.vision.dtype)
        return unit_rows(self.vision(pixel_values=values).image_embeds)

    @torch.no_grad()
    def encode_texts(self, inputs: dict[str, Tensor]) -> Float[Tensor, "n D"]:
        return self.adapted(self.pooled_states(inputs))

    @torch.no_grad()
    def adapted(self, pooled: Float[Tensor, "n H"]) -> Float[Tensor, "n D"]:
        """Unit rows of pooled states, of ours or of LLM2CLIP's tars."""
        return unit_rows(self.adapter(pooled))

    @torch.no_grad()
    def pooled_states(self, inputs: dict[str, Tensor]) -> Float[Tensor, "n H"]:
        """The mean states before the adapter, un-normalised: what LLM2CLIP stores in its tars."""
        llm = self._text_llm()
        if not self._is_tested:
            self._test(llm)
        states = token_states(llm, inputs["input_ids"], inputs["attention_mask"])
        return document_mean(states, inputs["document_mask"].bool())

    def _text_llm(self) -> LlamaModel:
        if self.llm is None:
            raise ValueError(
                "this LLM2CLIP was loaded for pictures alone, without its text LLM; load it with "
                "encoder.with_text=true to embed captions, or embed with modality=image"
            )
        return self.llm

    def save(self, directory: Path) -> None:
        write_joint(self.vision, self.adapter, directory / "joint")
        (self.llm or self.llm_config).save_pretrained(directory / "text")
        self.prompt.tokenizer.save_pretrained(directory / "text")
        self.image_processor.save_pretrained(directory / "image_processor")
        config = {
            "model_type": LLM2CLIP,
            "template": self.prompt.template,
            "max_length": self.prompt.max_length,
            "with_text": self.llm is not None,
        }
        write_bytes(directory / "config.json", json.dumps(config, indent=2).encode() + b"\n")
        write_identity(self, directory)


def load_llm2clip(
    *,
    path: str | Path,
    text_path: str | Path,
    image_processor: str | Path,
    revision: str = "main",
    text_revision: str = "main",
    image_processor_revision: str = "main",
    template: str = "llama3_user",
    max_length: int = 512,
    with_text: bool = True,
    attention: str = "sdpa",
    dtype: str = "float32",
    decode: Decode = "exact",
    pooling: Pooling = POOLED,
    layer: int = -2,
) -> DualEncoder:
    """Load the three parts, each by hub id and revision or by directory, frozen.

    `template` is llama3_user, with which the adapter was trained, or none, which the public
    ReVision features silently are. Captions are cut to `max_length` tokens, template included.
    `with_text` false leaves out the weights of the text LLM (16 GB): enough for pictures, with the
    same identity. `attention` is sdpa, eager or another kernel of transformers. `decode`, `pooling`
    and `layer` are those of `load_encoder`; patches have no texts, so the text LLM stays away.

    Raises:
        ValueError: a part is missing, does not belong to the others, or attends causally.
    """
    chosen = torch_dtype(dtype)
    with named_part("image_processor", image_processor):
        processor = AutoImageProcessor.from_pretrained(
            image_processor, revision=image_processor_revision, backend="pil"
        )
    with named_part("path", path):
        joint = read_joint(str(path), revision=revision, dtype=chosen)
    check_picture_size(processor, joint.vision.config.image_size)
    with named_part("text_path", text_path):
        config = read_llm_config(str(text_path), text_revision)
        tokenizer = AutoTokenizer.from_pretrained(text_path, revision=text_revision)
        llm = None
        if with_text and pooling == POOLED:
            llm = read_llm(str(text_path), text_revision, config, attention, chosen)
    prompt = Prompt.make(tokenizer, template=template, max_length=max_length)
    name, version = name_and_version(path, joint.commit or revision)
    text_commit = getattr(config, "_commit_hash", None)
    sources = {
        "name": name,
        "revision": version,
        "text": "@".join(name_and_version(text_path, text_commit or text_revision)),
        "image_processor": "@".join(name_and_version(image_processor, image_processor_revision)),
    }
    whole = LLM2CLIPEncoder(
        joint, llm, prompt, processor, llm_config=config, sources=sources, decode=decode
    )
    return with_pooling(whole, pooling, layer)


def load_saved_llm2clip(
    directory: Path, *, dtype: str = "float32", decode: Decode = "exact"
) -> LLM2CLIPEncoder:
    """Read what `LLM2CLIPEncoder.save` wrote; it is known by the names of its original parts."""
    config = json.loads((directory / "config.json").read_text())
    encoder = load_llm2clip(
        path=directory / "joint",
        text_path=directory / "text",
        image_processor=directory / "image_processor",
        template=config["template"],
        max_length=config["max_length"],
        with_text=config["with_text"],
        dtype=dtype,
        decode=decode,
    )
    assert isinstance(encoder, LLM2CLIPEncoder)  # pooled
    if recorded := read_identity(directory):
        encoder.sources = {key: recorded[key] for key in encoder.sources}
    return encoder


def _check_width(width: int, expected: int) -> None:
    if width != expected:
        raise ValueError(
            f"the states of the text LLM have width {width}, the adapter of the joint model reads "
            f"{expected}; give the text LLM with which the joint model was trained"
        )
