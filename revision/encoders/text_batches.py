"""Batches of texts: sorted by length, cut by a budget of tokens.

Place in the pipeline: a group of texts, tokenised once -> **batches** -> text tower.

A batch holds texts of similar length, as many as fit into `budget` positions with its padding, and
at least one. Texts that are sorted need hardly any padding: of the positions of a batch a share of
1 - sum(lengths) / (n * longest) is wasted. A model that computes the same row whatever its
neighbours computes it for any such cut, up to rounding.

The length of a text is read from `attention_mask`, on either side of which padding may lie. Without
a mask (SigLIP attends to its padding) every text has the full length.

Letters: n texts, T positions of the longest.
"""

from collections.abc import Iterator

import torch
from jaxtyping import Int
from torch import Tensor


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
    start = 0
    while start < len(order):
        longest = max(1, int(lengths[order[start]]))
        chosen = order[start : start + max(1, budget // longest)]
        start += len(chosen)
        yield chosen, _cut(inputs, chosen)


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
