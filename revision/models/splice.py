"""Splice: put the projected pictures into the slots of a batch of token sequences.

Every slot (`IMAGE_SLOT`) is replaced by the K embeddings of the next picture, labels become
`IGNORE` there, positions count 0..length-1 inside each sample. No loop over samples, no tensor of
the caller is written. The result has one of three layouts:

    packed   (1, sum of lengths): the samples behind each other, position_ids restart; the LLM must
             be called with attention_mask=None and use_cache=False, or samples see each other
    right    (B, longest): padding on the right, for training
    left     (B, longest): padding on the left, for generation

Letters: B samples, T ids, V pictures, K tokens per picture, H width of the LLM, L spliced length.
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from revision.data.samples import IGNORE, IMAGE_SLOT

Layout = Literal["packed", "right", "left"]


@dataclass
class Spliced:
    """Inputs of the LLM. `sample_index` is -1 on padding; `visual_mask` marks picture tokens."""

    embeds: Tensor
    labels: Tensor
    position_ids: Tensor
    visual_mask: Tensor
    sample_index: Tensor

    @property
    def attention_mask(self) -> Tensor:
        return (self.sample_index >= 0).long()


def splice(
    embedding: nn.Module,
    input_ids: Int[Tensor, "B T"],
    labels: Int[Tensor, "B T"],
    lengths: Int[Tensor, " B"],
    visual: Float[Tensor, "V K H"] | None,
    layout: Layout = "packed",
) -> Spliced:
    """Embed the ids and fill the slots in reading order.

    Raises ValueError when slots and pictures differ in number; a picture would otherwise be
    dropped or end up in a neighbour's sample.
    """
    valid = torch.arange(input_ids.shape[1], device=lengths.device) < lengths[:, None]
    ids, slot, owner = input_ids[valid], (input_ids == IMAGE_SLOT)[valid], valid.nonzero()[:, 0]
    _check_count(int(slot.sum()), 0 if visual is None else visual.shape[0])
    tokens_per_image = 1 if visual is None else visual.shape[1]
    copies = torch.where(slot, tokens_per_image, 1)
    source = torch.repeat_interleave(torch.arange(len(ids), device=ids.device), copies)

    embeds = embedding(ids.masked_fill(slot, 0))[source]
    visual_mask, sample_index = slot[source], owner[source]
    if visual is not None:
        filling = visual.to(embeds.dtype)
        embeds = embeds.masked_scatter(visual_mask[:, None], filling)
    flat_labels = labels[valid].masked_fill(slot, IGNORE)[source]
    return _arrange(embeds, flat_labels, visual_mask, sample_index, len(lengths), layout)


def _check_count(num_slots: int, num_images: int) -> None:
    if num_slots != num_images:
        raise ValueError(
            f"the batch has {num_slots} image slots and {num_images} images; "
            "every slot takes exactly one image"
        )


def _arrange(
    embeds: Float[Tensor, "L H"],
    labels: Int[Tensor, " L"],
    visual_mask: Bool[Tensor, " L"],
    sample_index: Int[Tensor, " L"],
    num_samples: int,
    layout: Layout,
) -> Spliced:
    """Lay the flat sequence out; `row`, `column` say where each of its positions goes."""
    sizes = torch.bincount(sample_index, minlength=num_samples)
    starts = sizes.cumsum(0) - sizes
    position = torch.arange(len(labels), device=labels.device) - starts[sample_index]
    if layout == "packed":
        flat = (embeds, labels, position, visual_mask, sample_index)
        return Spliced(*(tensor[None] for tensor in flat))
    longest = int(sizes.max())
    column = position if layout == "right" else position + (longest - sizes)[sample_index]

    def place(flat: Tensor, padding: Any) -> Tensor:
        padded = flat.new_full((num_samples, longest, *flat.shape[1:]), padding)
        return padded.index_put((sample_index, column), flat)

    return Spliced(
        embeds=place(embeds, 0.0),
        labels=place(labels, IGNORE),
        position_ids=place(position, 0),
        visual_mask=place(visual_mask, False),
        sample_index=place(sample_index, -1),
    )
