"""Batches of texts: sorted by length, cut by a budget of tokens.

Place in the pipeline: a group of texts, tokenised once -> **batches** -> text tower.

A batch holds texts of similar length, as many as fit into `budget` positions with its padding, and
at least one. Of its positions a share of 1 - sum(lengths) / (n * longest) is wasted; where texts
become shorter than 4/5 of the longest it ends, once it fills 1/16 of the budget, so that a group
of few texts is not padded as one. A model that computes the same row whatever its neighbours
computes it for any such cut, up to rounding.

The length of a text is read from `attention_mask`, on either side of which padding may lie. Without
a mask (SigLIP attends to its padding) every text has the full length.

Letters: n texts, T positions of the longest.
"""

from collections.abc import Iterator
from itertools import takewhile

import torch
from jaxtyping import Int
from torch import Tensor

_SIMILAR = 0.8
_LEAST = 16


def token_lengths(inputs: dict[str, Tensor]) -> Int[Tensor, " n"]:
    """The positions that each text needs."""
    mask = inputs.get("attention_mask")
    if mask is not None:
        return mask.sum(1)
    ids = next(iter(inputs.values()))
    return torch.full((len(ids),), ids.shape[1])


def token_batches(
    inputs: dict[str, Tensor], budget: int
) -> Iterator[tuple[Int[Tensor, " rows"], dict[str, Tensor]]]:
    """Which texts, and their tensors without the positions that all of them leave empty; the
    longest first."""
    lengths = token_lengths(inputs)
    order = lengths.argsort(descending=True, stable=True)
    descending = lengths[order].clamp_min(1).tolist()
    start = 0
    while start < len(order):
        chosen = order[start : start + _batch_size(descending[start:], budget)]
        start += len(chosen)
        yield chosen, _cut(inputs, chosen)


def _batch_size(lengths: list[int], budget: int) -> int:
    """How many of the texts with these lengths, the longest first, make a batch."""
    longest = lengths[0]
    similar = sum(1 for _ in takewhile(lambda length: length >= _SIMILAR * longest, lengths))
    least = budget // _LEAST // longest
    return max(1, min(budget // longest, max(similar, least)))


def _cut(inputs: dict[str, Tensor], chosen: Int[Tensor, " rows"]) -> dict[str, Tensor]:
    rows = {name: tensor[chosen] for name, tensor in inputs.items()}
    if "attention_mask" not in rows:
        return rows
    used = rows["attention_mask"].any(0).nonzero()[:, 0]
    first, last = (int(used[0]), int(used[-1]) + 1) if len(used) else (0, 1)
    return {name: t[:, first:last].contiguous() if t.ndim > 1 else t for name, t in rows.items()}


def padding_share(batches: list[dict[str, Tensor]]) -> float:
    """Of all positions of the batches those that hold no token."""
    positions = sum(next(iter(batch.values())).numel() for batch in batches)
    tokens = sum(int(token_lengths(batch).sum()) for batch in batches)
    return 1 - tokens / positions if positions else 0.0
