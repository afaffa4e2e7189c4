"""Samples and batches: what the data side hands to the model, for every stage.

A sample is one token sequence with *slots*: the id `IMAGE_SLOT` stands where a picture goes, one
slot for each picture, whatever number of LLM tokens the projector makes of it. `splice`
(revision/models/splice.py) fills the slots inside the model, so the data side never needs to know
the projector.

Letters: B samples, T token positions (right-padded), V pictures of the whole batch in reading
order, R feature rows of one picture (1 for pooled features), D feature width.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

IMAGE_SLOT = -200
"""Id of the placeholder that a picture replaces; no tokenizer has negative ids."""

IGNORE = -100
"""Label of a position without a loss."""


@dataclass(frozen=True, eq=False)
class Sample:
    """One sequence. `visual` is (pictures, R, D) features, `pixels` (pictures, 3, H, W).

    Raises ValueError when the slots and the pictures differ in number: the pictures that follow
    in the batch would silently move to other samples.
    """

    id: str
    input_ids: Tensor
    labels: Tensor
    visual: Tensor | None = None
    pixels: Tensor | None = None

    def __post_init__(self) -> None:
        slots = int((self.input_ids == IMAGE_SLOT).sum())
        if slots != self.num_images:
            raise ValueError(
                f"sample {self.id!r} has {slots} <image> marks and {self.num_images} images; "
                "give every image exactly one mark"
            )
        if self.input_ids.shape != self.labels.shape:
            raise ValueError(
                f"sample {self.id!r} has {len(self.input_ids)} ids and {len(self.labels)} labels"
            )

    @property
    def num_images(self) -> int:
        images = self.visual if self.visual is not None else self.pixels
        return 0 if images is None else images.shape[0]

    @property
    def num_targets(self) -> int:
        """Target tokens; the first position never has a prediction, so it never counts."""
        return int((self.labels[1:] != IGNORE).sum())


@dataclass
class Batch:
    """Right-padded samples. `window_targets` counts the target tokens of this rank's whole
    accumulation window (all micro-batches of one optimiser step), the denominator of the loss."""

    ids: list[str]
    input_ids: Tensor
    labels: Tensor
    lengths: Tensor
    visual: Tensor | None = None
    pixels: Tensor | None = None
    window_targets: int = 0

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def num_targets(self) -> int:
        return int((self.labels[:, 1:] != IGNORE).sum())

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "Batch":
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> "Batch":
        return self._map(lambda tensor: tensor.pin_memory())

    def _map(self, move: Callable[[Tensor], Tensor]) -> "Batch":
        moved: dict[str, Any] = {
            name: move(value) for name, value in vars(self).items() if isinstance(value, Tensor)
        }
        return replace(self, **moved)


def collate(samples: list[Sample], window_targets: int | None = None) -> Batch:
    """The batch of these samples. Without `window_targets` it is its own window."""
    batch = padded(
        [sample.id for sample in samples],
        [sample.input_ids for sample in samples],
        [sample.labels for sample in samples],
    )
    return replace(
        batch,
        visual=_join([(s.id, s.visual) for s in samples if s.visual is not None]),
        pixels=_join([(s.id, s.pixels) for s in samples if s.pixels is not None]),
        window_targets=batch.num_targets if window_targets is None else window_targets,
    )


def padded(ids: list[str], sequences: Sequence[Tensor], targets: Sequence[Tensor]) -> Batch:
    """Pad with zeros and `IGNORE` on the right; padding is known by `lengths`, never by an id."""
    lengths = torch.tensor([len(sequence) for sequence in sequences])
    input_ids = torch.zeros(len(ids), int(lengths.max()), dtype=torch.long)
    labels = torch.full_like(input_ids, IGNORE)
    for row, (sequence, own) in enumerate(zip(sequences, targets, strict=True)):
        input_ids[row, : lengths[row]] = sequence
        labels[row, : lengths[row]] = own
    return Batch(ids, input_ids, labels, lengths)


def dummy_sample(token_id: int) -> Sample:
    """A sample of one token without a target: what a rank gets when the data has run out."""
    return Sample(id="", input_ids=torch.tensor([token_id]), labels=torch.tensor([IGNORE]))


def _join(named: list[tuple[str, Tensor]]) -> Tensor | None:
    """Concatenate the pictures of a batch; all must have one shape."""
    if not named:
        return None
    first_id, first = named[0]
    for sample_id, images in named:
        if images.shape[1:] != first.shape[1:]:
            raise ValueError(
                f"sample {sample_id!r} has images of shape {tuple(images.shape[1:])}, sample "
                f"{first_id!r} of shape {tuple(first.shape[1:])}; one data set has one shape"
            )
    return torch.cat([images for _, images in named])
