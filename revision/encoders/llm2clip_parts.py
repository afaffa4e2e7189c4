"""The text LLM and the image processor of LLM2CLIP, as they lie on the hub or in a directory.

Place in the pipeline: hub ids or directories -> **parts that fit each other** -> the encoder
(`llm2clip.py`). The joint model is read by `llm2clip_checkpoint.py`.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import LlamaConfig, LlamaModel

from revision.encoders.llm2clip_checkpoint import check_names


def read_llm_config(path: str, revision: str) -> LlamaConfig:
    """The config of the text LLM; ValueError for another kind of model."""
    content, _ = LlamaConfig.get_config_dict(path, revision=revision)
    if not content:
        raise OSError(f"{path} has no config.json")
    if content.get("model_type") != "llama":
        raise ValueError(
            f"text_path={path} holds a model of type {content.get('model_type')!r}, not llama; "
            "give the text LLM, microsoft/LLM2CLIP-Llama-3-8B-Instruct-CC-Finetuned or its like"
        )
    return LlamaConfig.from_pretrained(path, revision=revision)


def read_llm(
    path: str, revision: str, config: LlamaConfig, attention: str, dtype: torch.dtype
) -> LlamaModel:
    """Llama's own class: code that comes with the model is neither run nor asked for."""
    kind: Any = LlamaModel  # with output_loading_info it returns a pair
    llm, found = kind.from_pretrained(
        path,
        revision=revision,
        config=config,
        dtype=dtype,
        attn_implementation=attention,
        output_loading_info=True,
    )
    # The head of a causal model's file has no place here.
    unknown = set(found["unexpected_keys"]) - {"lm_head.weight"}
    check_names(f"the text LLM {path}", "", found["missing_keys"], unknown)
    return llm


def check_picture_size(processor: Any, expected: Any) -> None:
    """Raise ValueError unless `processor` makes squares of `expected` pixels."""
    probe = processor(images=Image.new("RGB", (8, 8)), return_tensors="pt")["pixel_values"]
    if tuple(probe.shape[-2:]) != (expected, expected):
        raise ValueError(
            f"the image processor makes pictures of {tuple(probe.shape[-2:])} pixels, the vision "
            f"tower sees {expected}; give the processor of the CLIP model that LLM2CLIP started "
            "from, openai/clip-vit-large-patch14-336 for the model of that name"
        )


@contextmanager
def named_part(option: str, path: str | Path) -> Iterator[None]:
    """Say which part of the encoder could not be read, and the remedy."""
    try:
        yield
    except OSError as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(
            f"LLM2CLIP: {option}={str(path)!r} is neither a directory with the files that are "
            f"needed nor a model that the hub gave: {reason}. Download it on a machine with "
            f"network access and give its directory as encoder.{option}"
        ) from error
