"""The bidirectional Llama: llm2vec's own numbers, a plain formula, and what must not matter."""

import math

import pytest
import torch
from transformers import AttentionInterface, LlamaModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from revision.encoders.bidirectional import (
    check_bidirectional,
    document_mean,
    make_bidirectional,
    token_states,
)
from revision.encoders.llm2clip_prompt import Prompt
from tests.tiny_llm2clip import golden, llama3_tokenizer, tiny_llama

KERNELS = ["sdpa", "eager"]


def prompt(template: str = "llama3_user", max_length: int = 512) -> Prompt:
    return Prompt.make(llama3_tokenizer(), template=template, max_length=max_length)


def tokens(prompt: Prompt, captions: list[str]) -> dict[str, torch.Tensor]:
    return prompt.tokenize(captions).inputs


def pooled(llm: LlamaModel, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    states = token_states(llm, inputs["input_ids"], inputs["attention_mask"])
    return document_mean(states, inputs["document_mask"].bool())


def on_the_left(inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same texts with their padding in front."""
    keys = ("input_ids", "attention_mask", "document_mask")
    width, lengths = inputs["input_ids"].shape[1], inputs["attention_mask"].sum(1)
    place = (torch.arange(width) + lengths[:, None]) % width
    return {key: inputs[key].gather(1, place) for key in keys}


def plain_llama(weights: dict[str, torch.Tensor], ids: list[int]) -> torch.Tensor:
    """Llama (arXiv:2302.13971, grouped queries) with full attention, of one text, in float64."""
    sizes = golden()["sizes"]
    heads, groups = sizes["num_attention_heads"], sizes["num_key_value_heads"]
    width = sizes["hidden_size"] // heads

    def norm(x, weight):
        return weight * x / (x.pow(2).mean(-1, keepdim=True) + sizes["rms_norm_eps"]).sqrt()

    def turned(
        x,
    ):  # (T, heads, width): pairs (i, i + width / 2) by the angle t / theta^(2i / width)
        rate = sizes["rope_theta"] ** (-torch.arange(0, width, 2).double() / width)
        angle = torch.arange(len(x)).double()[:, None, None] * rate
        a, b = x[..., : width // 2], x[..., width // 2 :]
        return torch.cat([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()], -1)

    x = weights["embed_tokens.weight"][ids]
    for layer in range(sizes["num_hidden_layers"]):
        own = {
            name.removeprefix(f"layers.{layer}."): tensor
            for name, tensor in weights.items()
            if name.startswith(f"layers.{layer}.")
        }
        y = norm(x, own["input_layernorm.weight"])
        q, k, v = (
            (y @ own[f"self_attn.{name}_proj.weight"].T).view(len(ids), -1, width) for name in "qkv"
        )
        q, k = turned(q), turned(k)
        k, v = (t.repeat_interleave(heads // groups, dim=1) for t in (k, v))
        scores = torch.einsum("ihd,jhd->hij", q, k) / math.sqrt(width)
        mixed = torch.einsum("hij,jhd->ihd", scores.softmax(-1), v).reshape(len(ids), -1)
        x = x + mixed @ own["self_attn.o_proj.weight"].T
        y = norm(x, own["post_attention_layernorm.weight"])
        gate, up = (y @ own[f"mlp.{name}_proj.weight"].T for name in ("gate", "up"))
        x = x + (gate * gate.sigmoid() * up) @ own["mlp.down_proj.weight"].T
    return norm(x, weights["norm.weight"])


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("template", ["llama3_user", "none"])
def test_pooled_states_are_those_of_llm2vec(template, kernel):
    llm = make_bidirectional(tiny_llama(attn_implementation=kernel))
    expected = torch.from_numpy(golden()[f"{template}/pooled"])
    rows = pooled(llm, tokens(prompt(template), golden()["captions"]))
    torch.testing.assert_close(rows, expected, rtol=0, atol=1e-6)  # measured: 1.2e-7


@pytest.mark.parametrize("kernel", KERNELS)
def test_states_are_those_of_a_plain_llama(kernel):
    llm = make_bidirectional(tiny_llama(attn_implementation=kernel))
    weights = {name: tensor.double() for name, tensor in llm.state_dict().items()}
    inputs = tokens(prompt(), golden()["captions"])
    states = token_states(llm, inputs["input_ids"], inputs["attention_mask"])
    for row, ids, mask in zip(states, inputs["input_ids"], inputs["attention_mask"], strict=True):
        length = int(mask.sum())
        expected = plain_llama(weights, ids[:length].tolist())
        torch.testing.assert_close(row[:length].double(), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kernel", KERNELS)
def test_neither_padding_nor_its_side_nor_the_batch_matters(kernel):
    llm = make_bidirectional(tiny_llama(attn_implementation=kernel))
    captions = golden()["captions"]
    inputs = tokens(prompt(), captions)
    rows = pooled(llm, inputs)
    torch.testing.assert_close(pooled(llm, on_the_left(inputs)), rows, rtol=0, atol=1e-6)
    alone = torch.cat([pooled(llm, tokens(prompt(), [caption])) for caption in captions])
    torch.testing.assert_close(alone, rows, rtol=0, atol=1e-6)


def test_bfloat16_stays_near_float32():
    inputs = tokens(prompt(), golden()["captions"])
    exact = pooled(make_bidirectional(tiny_llama()), inputs)
    rounded = pooled(make_bidirectional(tiny_llama().bfloat16()), inputs)
    assert rounded.dtype == torch.float32
    assert torch.cosine_similarity(exact, rounded).min() > 0.999


def test_mean_is_over_the_document_alone_and_empty_documents_are_not_numbers():
    states = torch.tensor([[[1.0], [2.0], [4.0]], [[1.0], [5.0], [torch.nan]], [[1.0]] * 3])
    document = torch.tensor([[0, 1, 1], [0, 1, 0], [0, 0, 0]]).bool()
    rows = document_mean(states, document)
    assert rows[:2].tolist() == [[3.0], [5.0]]
    assert rows[2].isnan().all()


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_causal_llama_is_refused_and_a_bidirectional_one_is_not(kernel):
    llm = tiny_llama(attn_implementation=kernel)
    with pytest.raises(ValueError, match="attends causally"):
        check_bidirectional(llm)
    check_bidirectional(make_bidirectional(llm))


@pytest.mark.parametrize("padding", [0, 1])
def test_attention_that_is_causal_in_one_case_is_refused(monkeypatch, padding):
    """The mask is built in one place where a text is padded, and left out in another."""
    llm = make_bidirectional(tiny_llama())
    forward = llm.forward

    def sometimes_causal(attention_mask, **options):
        llm.config.is_causal = bool(attention_mask.all()) is (padding == 0)
        return forward(attention_mask=attention_mask, **options)

    monkeypatch.setattr(llm, "forward", sometimes_causal)
    with pytest.raises(ValueError, match=f"with {padding} of padding"):
        check_bidirectional(llm)


def test_a_kernel_without_masks_is_told_by_its_layer():
    """As flash attention is: it gets no 4-D mask and reads is_causal from the module."""
    asked = []

    def unmasked(module, query, key, value, attention_mask, **options):
        asked.append(module.is_causal)
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)

    AttentionInterface.register("unmasked", unmasked)
    llm = make_bidirectional(tiny_llama(attn_implementation="unmasked"))
    ids = torch.arange(4)[None]
    states = token_states(llm, ids, torch.ones_like(ids))
    assert asked == [False] * len(llm.layers)
    same = token_states(make_bidirectional(tiny_llama()), ids, torch.ones_like(ids))
    torch.testing.assert_close(states, same)
