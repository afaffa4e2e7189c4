"""`stage=contrastive`: train the two heads of a composed encoder, measure it, write its directory.

Place in the pipeline: tower features of paired pictures and captions (`encoder=towers`) ->
**heads** -> a `ComposedDualEncoder` directory, which then embeds everything else.

    z_ij = s * <v_i, t_j>
    loss = sum_i 1/2 [ -log softmax_j(z_ij)_i  -log softmax_j(z_ji)_i ]        (symmetric InfoNCE)

(arXiv:2103.00020, Fig. 3). A large fixed s keeps the modality gap that the towers start with, a
small learned one closes it (arXiv:2203.02053): say in the card which was used.

Retrieval: R@k = share of queries whose own partner is among the k most similar candidates.
Departs from the usual count in ties: they count as their expectation under random order, so that
an encoder that gives every row the same feature scores chance, not 100 %.

Letters: v, t unit rows of pictures and texts; s logit scale; n pairs in a batch.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from revision.encoders.composed import ComposedDualEncoder, Head
from revision.encoders.pairing import Towers
from revision.files import replacing_directory, write_bytes
from revision.models.loss import LossSum

MAX_SCALE = 100.0  # CLIP's bound
_QUERIES_AT_ONCE = 1024


@runtime_checkable
class Sides(Protocol):
    """A dict of the two sides, or a batch of pairs."""

    def __getitem__(self, side: str, /) -> Tensor: ...


class ContrastiveModel(nn.Module, ABC):
    """Two sides and a logit scale, trained on pairs by symmetric InfoNCE.

    The negatives of a pair are the other pairs of the batch on the same device.
    """

    log_scale: nn.Parameter

    @abstractmethod
    def embed(self, batch: Sides) -> tuple[Tensor, Tensor]:
        """Unit rows (n, D) of pictures and of texts, row i of both one pair."""

    @property
    def scale(self) -> Tensor:
        return self.log_scale.exp().clamp(max=MAX_SCALE)

    def forward(self, batch: Sides) -> LossSum:
        images, texts = self.embed(batch)
        logits = self.scale * images @ texts.T
        own = torch.arange(len(logits), device=logits.device)
        losses = [functional.cross_entropy(z, own, reduction="none") for z in (logits, logits.T)]
        per_pair = (losses[0] + losses[1]) / 2
        return LossSum(per_pair.sum(), len(own), per_pair.detach())

    @torch.no_grad()
    def embed_all(self, batches: Iterable[Any]) -> tuple[Tensor, Tensor]:
        """The rows of all batches, in evaluation mode, which is left as it was found."""
        modes = {part: part.training for part in self.modules()}
        self.eval()
        device = self.log_scale.device
        sides = [self.embed(batch.to(device)) for batch in batches]
        for part, mode in modes.items():
            part.training = mode
        images, texts = zip(*sides, strict=True)
        return torch.cat(images), torch.cat(texts)


class ContrastiveHeads(ContrastiveModel):
    """Two linear heads and a logit scale, `scale` fixed or the start of a learned one."""

    def __init__(
        self,
        *,
        image_dim: int,
        text_dim: int,
        dim: int = 256,
        scale: float = 50.0,
        learn_scale: bool = False,
    ) -> None:
        super().__init__()
        self.image_head = Head(image_dim, dim)
        self.text_head = Head(text_dim, dim)
        self.log_scale = nn.Parameter(torch.tensor(math.log(scale)), requires_grad=learn_scale)

    def embed(self, batch: Sides) -> tuple[Tensor, Tensor]:
        """Of `batch["image"]` (n, D_v) and `batch["text"]` (n, D_t), rows of the towers."""
        return self.image_head(batch["image"]), self.text_head(batch["text"])


@torch.no_grad()
def retrieval(
    images: Float[Tensor, "n D"],
    texts: Float[Tensor, "m D"],
    owner: Int[Tensor, " m"] | None = None,
) -> dict[str, float]:
    """R@1, R@5 and R@10 in per cent, both ways, and the distance of the two centroids.

    `owner[j]` is the row of the picture that text j describes (default: row j). From picture to
    text, a picture is found when any of its own texts is.
    """
    images, texts = images.float(), texts.float()
    numbers = torch.arange(len(images), device=images.device)
    owner = numbers if owner is None else owner.to(images.device)
    if len(owner) != len(texts):
        raise ValueError(
            f"{len(texts)} texts but {len(owner)} owners for {len(images)} pictures: give "
            "`owner`, the row of the picture of every text"
        )
    own = owner[None, :] == numbers[:, None]
    measured = {f"i2t_r{k}": r for k, r in _recall(images, texts, own).items()}
    measured |= {f"t2i_r{k}": r for k, r in _recall(texts, images, own.T).items()}
    return measured | {"gap": (images.mean(0) - texts.mean(0)).norm().item()}


def _recall(
    queries: Float[Tensor, "q D"], candidates: Float[Tensor, "c D"], own: Tensor
) -> dict[int, float]:
    """Expected R@k under a random order of equally similar candidates."""
    hits = {1: 0.0, 5: 0.0, 10: 0.0}
    for rows, mine in zip(
        queries.split(_QUERIES_AT_ONCE), own.split(_QUERIES_AT_ONCE), strict=True
    ):
        scores = rows @ candidates.T
        best = scores.masked_fill(~mine, -torch.inf).max(1, keepdim=True).values
        ahead = ((scores > best) & ~mine).sum(1)
        tied = ((scores == best) & ~mine).sum(1)
        for k in hits:
            hits[k] += ((k - ahead) / (1 + tied)).clamp(0, 1).sum().item()
    return {k: 100 * total / len(queries) for k, total in hits.items()}


def write_encoder(
    heads: ContrastiveHeads,
    towers: Towers,
    directory: Path,
    *,
    training: dict[str, Any],
    held_out: dict[str, dict[str, float]],
) -> ComposedDualEncoder:
    """Write the trained heads and their towers as an encoder directory with a model card.

    `training` holds `images`, `texts` (where the pairs came from), `num_pairs`, `duration` and
    `batch_size`, and what else `config.json` shall record; `held_out` maps the name of a held-out
    set to what `retrieval` measured on it (with `num_pairs`). What stood in `directory` is
    replaced, in one step.
    """
    scale = heads.scale.item()
    kind = "learned" if heads.log_scale.requires_grad else "fixed"
    card = {
        "training": training | {"logit_scale": round(scale, 4), "logit_scale_kind": kind},
        "held_out": held_out,
    }
    encoder = ComposedDualEncoder(towers, heads.image_head, heads.text_head, card=card)
    with replacing_directory(directory) as new:
        encoder.save(new)
        write_bytes(new / "README.md", model_card(encoder).encode())
    return encoder


def model_card(encoder: ComposedDualEncoder) -> str:
    """The card in Markdown: how the heads were trained, on what, retrieval and gap held out."""
    training, held_out = encoder.card["training"], encoder.card["held_out"]
    scale = f"{training['logit_scale_kind']} at {training['logit_scale']:g}"
    rows = "\n".join(retrieval_row(name, measured) for name, measured in held_out.items())
    return f"""# Composed dual encoder

{encoder.towers.description}, pretrained and frozen, joined by
two linear heads without bias of width {encoder.dim}.

## How the heads were trained
On {training["num_pairs"]:,} pairs of pictures (`{training["images"]}`) and captions
(`{training["texts"]}`), for {training["duration"]}, in batches of {training["batch_size"]} pairs,
which are each other's negatives, with the logit scale {scale}. The whole configuration, the commit
and the versions stand under `card` in `config.json`.

## Held out
Recall in per cent, one query at a time against all candidates; chance is 100 k / pairs. The gap is
the distance between the centroid of the picture rows and that of the text rows.

| set | pairs | picture to text R@1 / 5 / 10 | text to picture R@1 / 5 / 10 | gap |
|---|---|---|---|---|
{rows}

Use it in the domain it was trained on: heads trained on drawings transfer weakly to photographs.
"""


def retrieval_row(name: str, measured: dict[str, float]) -> str:
    """A line of the card's table."""
    ways = [
        " / ".join(f"{measured[f'{way}_r{k}']:.1f}" for k in (1, 5, 10)) for way in ("i2t", "t2i")
    ]
    pairs = measured.get("num_pairs", math.nan)
    return f"| {name} | {pairs:.0f} | {ways[0]} | {ways[1]} | {measured['gap']:.3f} |"
