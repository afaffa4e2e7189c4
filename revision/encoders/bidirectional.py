"""A Llama that looks both ways: full attention, states pooled over the document.

Place in the pipeline: token ids -> **states of a bidirectional Llama** -> their mean -> the text
adapter of LLM2CLIP.

    p = (1 / |M|) sum_{t in M} h_t ,   M the tokens of the document

Source: LLM2Vec (arXiv:2404.05961; McGill-NLP/llm2vec@312adcf llm2vec/llm2vec.py and
llm2vec/models/bidirectional_llama.py). Its class overrides a hook by which transformers 4.43 made
its mask; later versions do not call that hook, and the model is causal without a word. Here the
mask is the one that transformers builds for `config.is_causal = False`
(`masking_utils.create_causal_mask`), each attention layer is told the same (it decides where there
is no mask: sdpa without padding, flash attention), and `check_bidirectional` looks at the result.

Departs from LLM2Vec: positions count the tokens of a text and not its padding, so padding on
either side gives the same rows (rotary positions are relative: the states are the same up to
rounding); the mean is taken in float32.

Letters: n texts, T tokens in the longest, H width of the states, h_t the state of token t.
"""

from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import LlamaModel
from transformers.models.llama.modeling_llama import LlamaAttention

_PROBE_TOKENS = 4


def make_bidirectional(llm: LlamaModel) -> LlamaModel:
    """Turn off causal attention, in place, for every attention kernel of transformers."""
    llm.config.is_causal = False
    for layer in llm.modules():
        if isinstance(layer, LlamaAttention):
            layer.is_causal = False
    return llm


@torch.no_grad()
def token_states(
    llm: LlamaModel, ids: Int[Tensor, "n T"], mask: Int[Tensor, "n T"]
) -> Float[Tensor, "n T H"]:
    """The last hidden states; `mask` is 1 at tokens and 0 at padding, on whichever side."""
    positions = (mask.cumsum(dim=1) - 1).clamp_min(0)
    output: Any = llm(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False)
    return output.last_hidden_state


def document_mean(
    states: Float[Tensor, "n T H"], document: Bool[Tensor, "n T"]
) -> Float[Tensor, "n H"]:
    """The float32 mean over the tokens of the document; NaN where there is none."""
    kept = states.float().masked_fill(~document[..., None], 0.0)
    return kept.sum(1) / document.sum(1, keepdim=True)


def check_bidirectional(llm: LlamaModel) -> None:
    """Raise ValueError unless the last token reaches the states of all others.

    Asked with and without padding: transformers builds a mask only where it needs one, and causal
    attention has come back in either case alone.
    """
    for padding in (0, 1):
        blind = _blind_positions(llm, padding)
        if blind:
            raise ValueError(
                f"the text LLM attends causally: another last token (of {_PROBE_TOKENS}, with "
                f"{padding} of padding) left the state of token {blind[0]} as it was. The "
                "features would be those of another model, and no number would show it. Use a "
                "transformers version that honours config.is_causal = False in Llama (5.20 to 5.23 "
                "do), and attention=sdpa or eager"
            )


def _blind_positions(llm: LlamaModel, padding: int) -> list[int]:
    """The positions before the last token whose states do not depend on it."""
    device = llm.embed_tokens.weight.device
    ids = torch.arange(_PROBE_TOKENS + padding, device=device)[None]
    mask = torch.ones_like(ids)
    mask[:, _PROBE_TOKENS:] = 0
    other = ids.clone()
    other[0, _PROBE_TOKENS - 1] = _PROBE_TOKENS
    # One text at a time: equal rows of one batch may differ by rounding, a causal model's too.
    before, after = (token_states(llm, tokens, mask)[0] for tokens in (ids, other))
    same = (before == after).all(dim=-1)[: _PROBE_TOKENS - 1]
    return same.nonzero().flatten().tolist()
