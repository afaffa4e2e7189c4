"""A tiny LLM2CLIP in the published layouts: joint model, text LLM, image processor."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    LlamaConfig,
    LlamaModel,
    PreTrainedTokenizerFast,
)

from revision.encoders.llm2clip import load_llm2clip
from revision.encoders.llm2clip_checkpoint import TextAdapter, write_joint

GOLDEN = Path(__file__).parent / "encoders" / "llm2vec_golden"
SIZE = 16
DIM = 10


@cache
def golden() -> dict[str, Any]:
    """What the real llm2vec package gave; `make.py` beside it says how."""
    with np.load(GOLDEN / "golden.npz") as arrays:
        content = dict(arrays)
    return content | json.loads(str(content["facts"]))


@cache
def llama3_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE with Llama 3's special tokens and its opening token."""
    return PreTrainedTokenizerFast(
        tokenizer_file=str(GOLDEN / "tokenizer.json"),
        bos_token="<|begin_of_text|>",
        eos_token="<|end_of_text|>",
        model_input_names=["input_ids", "attention_mask"],
    )


def tiny_llama(**options: Any) -> LlamaModel:
    """The Llama of the golden file, causal as transformers makes it."""
    facts = golden()
    config = LlamaConfig(vocab_size=facts["vocab_size"], **facts["sizes"])
    llm = LlamaModel._from_config(config, **options).eval()
    weights = {k.removeprefix("weights/"): v for k, v in facts.items() if k.startswith("weights/")}
    llm.load_state_dict({name: torch.from_numpy(value) for name, value in weights.items()})
    return llm


def tiny_vision() -> CLIPVisionModelWithProjection:
    torch.manual_seed(1)
    config = CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=SIZE,
        patch_size=8,
        projection_dim=DIM,
    )
    return _spread(CLIPVisionModelWithProjection(config))


def tiny_adapter(dim: int = 24, output_dim: int = DIM) -> TextAdapter:
    torch.manual_seed(2)
    return _spread(TextAdapter(dim, 2 * dim, output_dim, num_blocks=2))


def save_parts(directory: Path, *, adapter: TextAdapter | None = None) -> dict[str, Path]:
    """The three parts of an LLM2CLIP as they lie on the hub."""
    parts = {name: directory / name for name in ("path", "text_path", "image_processor")}
    write_joint(tiny_vision(), adapter or tiny_adapter(), parts["path"])
    tiny_llama().save_pretrained(parts["text_path"])
    llama3_tokenizer().save_pretrained(parts["text_path"])
    processor = CLIPImageProcessorPil(
        size={"shortest_edge": SIZE}, crop_size={"height": SIZE, "width": SIZE}
    )
    processor.save_pretrained(parts["image_processor"])
    return parts


def tiny_llm2clip(directory: Path, **options: Any) -> Any:
    return load_llm2clip(**save_parts(directory), **options)


def _spread(module: Any) -> Any:
    """The usual initialisation is too flat to tell rows apart."""
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return module.eval()
