"""A model of a few thousand weights, a feature set with captions, and the model's directory."""

from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from revision.models.directory import save_model
from revision.models.llava import LlavaModel
from revision.models.projector import Projector
from revision.records import Record, Turn
from revision.shards import ShardWriter, write_header

DIM = 8
CHAT = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
CAPTIONS = ["a red car", "two dogs in a park", "a blue house", "a tree", "the moon", "an old ship"]


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token per byte, and an end mark."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate(["</s>", *alphabet])}
    fast = Tokenizer(models.BPE(vocabulary, []))
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    fast.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=fast, eos_token="</s>", chat_template=CHAT)


def tiny_llava(encoder=None, template: str = "chat", dim: int = DIM) -> LlavaModel:
    torch.manual_seed(0)
    tokenizer = byte_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
    )
    projector = Projector(dim, 16)
    torch.nn.init.normal_(projector.layers[0].weight, std=2.0)  # so that pictures matter
    llm = LlamaForCausalLM(config).eval()
    return LlavaModel(llm, projector, tokenizer, encoder, template)


def record(number: int) -> Record:
    """A captioned picture with a question about it, then one that is answered yes or no."""
    caption = CAPTIONS[number % len(CAPTIONS)]
    turns = (
        Turn("user", "<image>\nWhat is it?"),
        Turn("assistant", caption),
        Turn("user", "Is it red?"),
        Turn("assistant", "Yes." if number % 2 else "No, it is not."),
    )
    return Record(str(number), caption, (f"{number}.png",), turns)


@pytest.fixture
def model() -> LlavaModel:
    return tiny_llava()


@pytest.fixture
def features(tmp_path: Path) -> Path:
    """Ten rows in blocks of four, over two shards."""
    directory = tmp_path / "features"
    rows = np.random.default_rng(0).standard_normal((10, DIM)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    for index, (start, stop) in enumerate([(0, 6), (6, 10)]):
        with ShardWriter(directory, index, DIM, "float32") as writer:
            for first in range(start, stop, 4):
                ids = range(first, min(first + 4, stop))
                writer.add_block(rows[ids.start : ids.stop], [record(i) for i in ids])
    write_header(directory, kind="image", encoder={"name": "tiny"}, source={}, num_shards=2)
    return directory


@pytest.fixture
def model_dir(tmp_path: Path, model: LlavaModel) -> Path:
    return save_model(model, tmp_path / "model", provenance={})
