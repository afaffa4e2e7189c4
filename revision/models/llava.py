"""The LLaVA architecture around any causal language model of `transformers`.

    pixels --encoder--> feature rows --image map--> rows --projector--> K embeddings --splice--> LLM

Some alignments move images too (collapse, for one); a model trained on their text holds the map as
`image_map` and applies it where features of pictures enter: to what its encoder gives, and to
features given in the place of pictures. The `visual` of a sample or a batch is behind the map.
Features that were computed before (feature shards, aligned text) enter behind the encoder, so one
model serves pseudo-visual pretraining, instruction tuning and generation. Logits are computed only
where there is a target: with a vocabulary of 50,000 to 250,000 they would be the largest tensor.

Letters: V pictures, R feature rows of one picture, D feature width, K LLM tokens per picture.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float, Shaped
from PIL import Image
from torch import Tensor, nn
from transformers import GenerationConfig, StoppingCriteria, StoppingCriteriaList

from revision.alignment.base import AlignmentMap
from revision.data.samples import IGNORE, Batch, Sample, collate
from revision.data.turn_encoder import TurnEncoder
from revision.encoders.base import DualEncoder
from revision.models.loss import LossSum, cross_entropy_sum
from revision.models.projector import Projector
from revision.models.splice import Spliced, splice
from revision.models.tuning import Tuning
from revision.records import IMAGE_MARK, Turn

PACKED_MODEL_TYPES = ("llama", "qwen2", "qwen3", "mistral")
"""Architectures for which a test shows that packed samples do not see each other."""


class LlavaModel(nn.Module):
    """`encoder` (frozen) is needed only where pictures come as pixels or PIL images.

    `layout="auto"` packs the samples of a batch behind each other where the language model is
    known to keep them apart, and pads otherwise. `tuning` is a method that was applied to the
    language model.
    """

    language_model: Any  # a causal model of transformers, wrapped or not
    encoder: DualEncoder | None
    image_map: AlignmentMap | None
    tuning: Tuning | None

    def __init__(
        self,
        language_model: nn.Module,
        projector: Projector,
        tokenizer: Any,
        encoder: DualEncoder | None = None,
        template: str = "chat",
        layout: str = "auto",
        image_map: AlignmentMap | None = None,
        tuning: Tuning | None = None,
    ) -> None:
        super().__init__()
        self.image_map, self.tuning = image_map, tuning
        self.language_model, self.projector, self.encoder = language_model, projector, encoder
        self.tokenizer, self.template = tokenizer, template
        self.encoder_dir: Path | None = None  # where an unchanged encoder can be linked from
        self.layout = _resolve_layout(layout, self.language_model.config.model_type)
        _check_widths(projector, self.language_model, encoder)

    @property
    def tokens_per_row(self) -> int:
        """LLM positions that one feature row takes."""
        return self.projector.num_tokens

    def turn_encoder(self, **limits: int) -> TurnEncoder:
        return TurnEncoder(self.tokenizer, self.template, **limits)

    def forward(self, batch: Batch) -> LossSum:
        """The loss of all target tokens, each predicted from the position before it."""
        return self._target_losses(batch)[0]

    @torch.no_grad()
    def score(self, batch: Batch) -> tuple[Float[Tensor, " samples"], Tensor]:
        """Per sample: the sum of its target tokens' losses in nats, and their number."""
        with _evaluating(self):
            losses, owner = self._target_losses(batch)
        assert losses.token_losses is not None
        sums = torch.zeros(len(batch), device=owner.device)
        sums.index_add_(0, owner, losses.token_losses.float())
        return sums, torch.bincount(owner, minlength=len(batch))

    @torch.no_grad()
    def generate(self, samples: Sequence[Sample], max_new_tokens: int = 64) -> list[str]:
        """Greedy continuations of the prompts, one batch with left padding and a KV cache.

        A continuation ends at the template's end mark, for `plain` a newline, or at the
        end-of-sequence token.
        """
        batch = collate(list(samples)).to(self.device)
        stops = StoppingCriteriaList()
        turns = self.turn_encoder()
        if turns.ends_at_newline:
            stops.append(_EndsAtNewline(self.tokenizer))
        decoding = _greedy(turns, max_new_tokens)
        with _evaluating(self), _sole_defaults(self.language_model, decoding):
            spliced = self._splice(batch, "left")
            new_ids = self.language_model.generate(
                inputs_embeds=spliced.embeds,
                attention_mask=spliced.attention_mask,
                generation_config=decoding,
                stopping_criteria=stops,
            )
        texts = self.tokenizer.batch_decode(new_ids, skip_special_tokens=True)
        return [_first_line(text) if turns.ends_at_newline else text.strip() for text in texts]

    def answer(
        self,
        images: Sequence[Image.Image | Tensor],
        prompt: str,
        max_new_tokens: int = 64,
    ) -> str:
        """Answer one question about pictures (PIL) or their features ((D,) or (R, D) tensors)."""
        return self.generate([self.prompt(images, prompt)], max_new_tokens)[0]

    def prompt(
        self, images: Sequence[Image.Image | Tensor], prompt: str, id: str = "prompt"
    ) -> Sample:
        """An open prompt. Without `<image>` marks the pictures come first, a line each."""
        if IMAGE_MARK not in prompt:
            prompt = f"{IMAGE_MARK}\n" * len(images) + prompt
        encoded = self.turn_encoder()([Turn("user", prompt)])
        return Sample(id, encoded.input_ids, encoded.labels, visual=self._features(images))

    @property
    def device(self) -> torch.device:
        return self.projector.device

    def _features(self, images: Sequence[Image.Image | Tensor]) -> Tensor | None:
        rows = [self._rows(image) for image in images]
        return torch.stack(rows) if rows else None

    @torch.no_grad()
    def _rows(self, image: Image.Image | Tensor) -> Float[Tensor, "R D"]:
        if isinstance(image, Tensor):
            rows = image.reshape(-1, self.projector.input_dim).float()
            return self._placed(rows.to(self.device)).cpu()
        pixels = self._need_encoder().image_inputs(image)[None]
        return self._encode(pixels.to(self.device))[0].cpu()

    def _need_encoder(self) -> DualEncoder:
        if self.encoder is None:
            raise ValueError(
                "this model holds no image encoder, so it takes features but no pictures; load "
                "the encoder its features came from, or embed the pictures first"
            )
        return self.encoder

    def _encode(self, pixels: Shaped[Tensor, "V ..."]) -> Float[Tensor, "V R D"]:
        rows = self._need_encoder().visual(pixels)
        return self._placed(rows.flatten(0, 1)).unflatten(0, rows.shape[:2])

    def _placed(self, rows: Float[Tensor, "n D"]) -> Float[Tensor, "n D"]:
        """Features of pictures where the projector was taught to expect them."""
        return rows if self.image_map is None else self.image_map.forward_images(rows)

    def _visual(self, batch: Batch) -> Tensor | None:
        """Projected pictures. The projector runs even for a batch without any (`_touch`)."""
        rows = batch.visual
        if rows is None and batch.pixels is not None:
            rows = self._encode(batch.pixels)
        if rows is None:
            return None
        _check_rows(rows, self.projector.input_dim)
        tokens: Tensor = self.projector(rows.to(self.projector.dtype))
        return tokens

    def _splice(self, batch: Batch, layout: Literal["packed", "right", "left"]) -> Spliced:
        embedding = self.language_model.get_input_embeddings()
        visual = self._visual(batch)
        touch = self._touch() if visual is None else None
        spliced = splice(embedding, batch.input_ids, batch.labels, batch.lengths, visual, layout)
        if touch is not None:
            spliced.embeds = spliced.embeds + touch.to(spliced.embeds)
        if self.tuning is not None:
            self.tuning.steer(spliced.visual_mask, 1 if visual is None else visual.shape[1])
        return spliced

    def _touch(self) -> Tensor:
        """Exactly zero, but part of the graph: data parallelism waits for every parameter, and
        sharded parameters (ZeRO-3, FSDP) wait for every rank to use them in the same order, also
        one whose samples have no picture."""
        row = torch.zeros(1, 1, self.projector.input_dim, device=self.device)
        return self.projector(row.to(self.projector.dtype)).sum() * 0

    def _target_losses(self, batch: Batch) -> tuple[LossSum, Tensor]:
        """The losses of the target tokens, and the sample that each of them belongs to."""
        packed = self.layout == "packed"
        spliced = self._splice(batch, "packed" if packed else "right")
        is_target = spliced.labels[:, 1:] != IGNORE
        if packed:  # a sample's first position is predicted by nobody, least by its neighbour
            is_target &= spliced.position_ids[:, 1:] > 0
        columns = is_target.any(0).nonzero()[:, 0]
        logits = self._logits(spliced, columns, packed)
        chosen = is_target[:, columns]
        targets = spliced.labels[:, 1:][:, columns][chosen]
        owner = spliced.sample_index[:, 1:][:, columns][chosen]
        return cross_entropy_sum(logits[chosen], targets), owner

    def _logits(self, spliced: Spliced, columns: Tensor, packed: bool) -> Tensor:
        output = self.language_model(
            inputs_embeds=spliced.embeds,
            attention_mask=None if packed else spliced.attention_mask,
            position_ids=spliced.position_ids,
            use_cache=False,
            logits_to_keep=columns,
        )
        logits: Tensor = output.logits
        return logits


class _EndsAtNewline(StoppingCriteria):
    """Stop a sequence once its newest token contains a newline (also as part of a longer token)."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        newest = [self.tokenizer.decode(row[-1:]) for row in input_ids]
        return torch.tensor(["\n" in text for text in newest], device=input_ids.device)


def _greedy(turns: TurnEncoder, max_new_tokens: int) -> GenerationConfig:
    padding = turns.tokenizer.pad_token_id
    return GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=False,
        eos_token_id=turns.end_ids,
        pad_token_id=turns.filler_id if padding is None else padding,
    )


@contextmanager
def _sole_defaults(language_model: Any, decoding: GenerationConfig) -> Iterator[None]:
    """Hide the decoding defaults that the language model was published with (a repetition
    penalty, say): `generate` would fill them into every field that `decoding` leaves open."""
    published = language_model.generation_config
    language_model.generation_config = decoding
    try:
        yield
    finally:
        language_model.generation_config = published


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside, each module's own mode again outside."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def _first_line(text: str) -> str:
    return text.split("\n", 1)[0].strip()


def _resolve_layout(layout: str, model_type: str) -> Literal["packed", "padded"]:
    known = model_type in PACKED_MODEL_TYPES
    if layout == "auto":
        return "packed" if known else "padded"
    if layout == "padded":
        return "padded"
    if layout == "packed" and known:
        return "packed"
    raise ValueError(
        f"layout={layout!r} is not possible for language model type {model_type!r}: packed is "
        f"tested for {list(PACKED_MODEL_TYPES)}, elsewhere samples could see each other; "
        "use layout='padded'"
    )


def _check_widths(projector: Projector, language_model: Any, encoder: DualEncoder | None) -> None:
    width = language_model.get_input_embeddings().weight.shape[-1]
    if projector.output_dim != width:
        raise ValueError(
            f"the projector writes width {projector.output_dim}, the language model reads "
            f"{width}; this projector belongs to another language model"
        )
    if encoder is not None and projector.input_dim != encoder.dim:
        raise ValueError(
            f"the projector reads width {projector.input_dim}, the encoder writes "
            f"{encoder.dim}; this projector belongs to another encoder"
        )


def _check_rows(rows: Tensor, dim: int) -> None:
    if rows.shape[-1] != dim:
        raise ValueError(
            f"the features have width {rows.shape[-1]}, the projector reads {dim}; "
            "they come from another encoder than the one this model was trained with"
        )
