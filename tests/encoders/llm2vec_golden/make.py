"""Make golden.npz: pooled states of the real llm2vec package for a tiny Llama of random weights.

    python -m venv old && old/bin/pip install llm2vec==0.2.3 transformers==4.44.2 torch
    old/bin/python tests/encoders/llm2vec_golden/make.py

Written with llm2vec 0.2.3, transformers 4.44.2, tokenizers 0.19.1, torch 2.13.0, on a CPU. The
tokenizer is a byte-level BPE with Llama 3's special tokens, trained on the captions below. The
template is taken in the way of LLM2CLIP: the model's name is set after loading.
"""

import json
from pathlib import Path

import numpy as np
import torch
from llm2vec import LLM2Vec
from llm2vec.models import LlamaBiModel
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from tokenizers.trainers import BpeTrainer
from transformers import LlamaConfig, PreTrainedTokenizerFast

HERE = Path(__file__).parent
MARKS = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>"]
CAPTIONS = [
    "a red cat",
    "A photograph of a small dog that sits, alone, on a blue car!  ",
    "  two cats",
    "x",
    "Ein Hund und 3 Katzen: über das Auto",
]
SIZES = {
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "max_position_embeddings": 64,
}


def tokenizer() -> PreTrainedTokenizerFast:
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    marks = [*MARKS, "<|eot_id|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = BpeTrainer(vocab_size=300, initial_alphabet=alphabet, special_tokens=marks)
    bpe.train_from_iterator([*CAPTIONS, "user\n\n"] * 2, trainer)
    begin = MARKS[0]
    bpe.post_processor = processors.TemplateProcessing(
        single=f"{begin} $A", special_tokens=[(begin, bpe.token_to_id(begin))]
    )
    bpe.save(str(HERE / "tokenizer.json"))
    fast = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token=begin,
        eos_token=MARKS[1],
        model_input_names=["input_ids", "attention_mask"],
    )
    fast.pad_token, fast.padding_side = fast.eos_token, "left"
    return fast


def main() -> None:
    torch.manual_seed(0)
    fast = tokenizer()
    model = LlamaBiModel(LlamaConfig(vocab_size=len(fast), **SIZES)).eval()
    for parameter in model.parameters():  # the usual initialisation hardly mixes tokens
        torch.nn.init.normal_(parameter, std=0.2)
    arrays = {f"weights/{name}": t.numpy() for name, t in model.state_dict().items()}
    names = {"llama3_user": "meta-llama/Meta-Llama-3-8B-Instruct", "none": "anything/else"}
    for template, name in names.items():
        model.config._name_or_path = name
        llm = LLM2Vec(model, fast, pooling_mode="mean", max_length=512, doc_max_length=512)
        rows = llm.encode(CAPTIONS, convert_to_tensor=True, show_progress_bar=False, device="cpu")
        marked = [llm.prepare_for_tokenization(f"!@#$%^&*(){text}") for text in CAPTIONS]
        tokens = llm.tokenize(marked)
        arrays[f"{template}/pooled"] = rows.numpy()
        for key in ("input_ids", "attention_mask", "embed_mask"):
            arrays[f"{template}/{key}"] = tokens[key].numpy()
    facts = json.dumps({"captions": CAPTIONS, "sizes": SIZES, "vocab_size": len(fast)})
    np.savez_compressed(HERE / "golden.npz", facts=np.array(facts), **arrays)


if __name__ == "__main__":
    main()
