"""Language models of a few thousand random weights and real tokenizers trained on a sentence."""

from functools import cache
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers import trainers as bpe
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

from revision.models.llava import LlavaModel
from revision.models.projector import Projector

DIM = 6
HIDDEN = 16
TEXT = [
    "A chat between a curious user and an artificial intelligence assistant. USER: ASSISTANT: "
    "The assistant gives helpful, detailed, and polite answers to the user's questions. "
    "What is in the image? A red cat on a blue mat. Yes, it is. user assistant system"
]
SPECIAL = ["<s>", "</s>", "<|end_of_text|>", "<|im_start|>", "<|im_end|>"]
CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
BARE_CHAT_TEMPLATE = (  # no special token behind an answer
    "{% for m in messages %}{% if m['role'] == 'user' %}Q: {{ m['content'] }}\nA:"
    "{% else %} {{ m['content'] }}\n{% endif %}{% endfor %}"
)


@cache
def bpe_tokenizer(bos: bool = False, chat_template: str = CHAT_TEMPLATE) -> Any:
    """Byte-level BPE as GPT-2, SmolLM2 and Llama 3 have it; with `bos`, <s> in front."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = bpe.BpeTrainer(vocab_size=380, initial_alphabet=alphabet, special_tokens=SPECIAL)
    tokenizer.train_from_iterator(TEXT, trainer)
    return _wrap(tokenizer, bos, chat_template)


@cache
def sentencepiece_tokenizer(legacy: bool = True) -> Any:
    """Spaces as ▁ as Llama 2 has it; legacy puts one in front of the first word of every piece."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    pieces = [f"<0x{byte:02X}>" for byte in range(256)]
    if legacy:
        tokenizer.normalizer = normalizers.Sequence(
            [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        )
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    trainer = bpe.BpeTrainer(vocab_size=480, special_tokens=["<unk>", *SPECIAL, *pieces])
    tokenizer.train_from_iterator([word for line in TEXT for word in line.split()], trainer)
    return _wrap(tokenizer, True, CHAT_TEMPLATE)


def _wrap(tokenizer: Tokenizer, bos: bool, chat_template: str) -> Any:
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
        )
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>" if bos else None,
        eos_token="</s>",
        extra_special_tokens=SPECIAL[2:],
    )
    wrapped.chat_template = chat_template
    return wrapped


def tiny_llm(config: Any = None, attention: str = "sdpa", seed: int = 0) -> Any:
    torch.manual_seed(seed)
    config = config or tiny_config()
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention)
    return model.float().eval()


def tiny_config(kind: type = LlamaConfig, **extra: Any) -> Any:
    return kind(
        vocab_size=512,
        hidden_size=HIDDEN,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.3,  # attention that matters
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=None,
        **extra,
    )


def tiny_llava(
    *,
    layout: Any = "auto",
    template: str = "vicuna_v1",
    tokenizer: Any = None,
    llm: Any = None,
    encoder: Any = None,
    **projector: Any,
) -> LlavaModel:
    llm = llm or tiny_llm()
    torch.manual_seed(1)
    model = LlavaModel(
        llm,
        Projector(DIM, HIDDEN, **projector),
        tokenizer or bpe_tokenizer(),
        encoder=encoder,
        template=template,
        layout=layout,
    )
    return model.eval()


def save_tiny_llm(directory: Path) -> Path:
    """A directory in the hub's layout."""
    tiny_llm().save_pretrained(directory)
    bpe_tokenizer().save_pretrained(directory)
    return directory
