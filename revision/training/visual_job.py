"""`pretrain`, `sft` and their variants: a `LlavaModel` on samples with visual input."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.loggers import Logger
from torch import Tensor

from revision.alignment.noise import Noise
from revision.captions import Controls
from revision.data.datamodule import tell
from revision.data.samples import Batch
from revision.data.visual_datamodule import VisualDataModule
from revision.encoders.base import DualEncoder
from revision.models.attention import choose_attention, set_attention
from revision.models.directory import load_model, save_model
from revision.models.llava import LlavaModel
from revision.models.tuning import apply_tuning
from revision.shards import read_header
from revision.training.jobs import Build, check_encoder, schedule_of, with_weights
from revision.training.launch import uses_gpu
from revision.training.loggers import log_answers, log_gap
from revision.training.run import HALF, RunSettings
from revision.training.visual_alignment import (
    find_alignment,
    load_image_map,
    load_row_map,
    training_sets,
)


class VisualJob:
    """Trains what `make_model` gives on what `make_data` gives for it.

    The frozen encoder is taken out of the model while that trains. It embeds pictures in `prepare`:
    no strategy shards it, where a rank without pictures would keep the others waiting, and it
    computes in float32 as `embed.py` does. The result has it back, also where the features of
    training came from shards, so that it can be asked about pictures. The same holds for the
    image map, where the alignment in `alignment_dir` moves images too: rows of pictures go through
    it in `prepare`, and in the sources where they come from shards.

    `attention` is the kernel that the language model trains with; the result does not record it.

    Raises:
        ValueError: the features are of another width than the projector reads.
    """

    def __init__(
        self,
        make_model: Callable[[], LlavaModel],
        make_data: Callable[[LlavaModel], VisualDataModule],
        *,
        alignment_dir: Path | None = None,
        num_answers: int = 0,
        attention: str = "sdpa",
    ) -> None:
        self.make_model = make_model
        self.alignment_dir, self.num_answers = alignment_dir, num_answers
        self.model = make_model()
        set_attention(self.model.language_model, attention)
        self.data = make_data(self.model)
        for name, source in zip(("training", "held-out"), self.data.sources, strict=True):
            _check_width(name, source, self.model)
        self.encoder, self.model.encoder = self.model.encoder, None
        self.image_map, self.model.image_map = load_image_map(alignment_dir), None

    @property
    def callbacks(self) -> list[L.Callback]:
        return []

    @torch.no_grad()
    def prepare(self, batch: Batch) -> Batch:
        """The batch with features in place of pixels."""
        if batch.pixels is None:
            return batch
        assert self.encoder is not None
        rows = self.encoder.to(batch.pixels.device).visual(batch.pixels)
        if self.image_map is not None:
            image_map = self.image_map.to(rows.device)
            rows = image_map.forward_images(rows.flatten(0, 1)).unflatten(0, rows.shape[:2])
        if batch.visual is not None:  # of a mixture: features of shards stand in front
            rows = torch.cat([batch.visual, rows])
        return replace(batch, pixels=None, visual=rows)

    def lower_frozen(self, dtype: torch.dtype) -> None:
        for parameter in self.model.language_model.parameters():
            if not parameter.requires_grad and parameter.is_floating_point():
                parameter.data = parameter.data.to(dtype)

    def save(
        self,
        weights: Mapping[str, Tensor],
        directory: Path,
        provenance: dict[str, Any],
        loggers: Sequence[Logger],
    ) -> None:
        model: LlavaModel = with_weights(self.make_model(), weights)
        model.image_map = load_image_map(self.alignment_dir)
        save_model(
            model,
            directory,
            provenance=_with_facts(provenance, model, self.data),
            alignment_dir=self.alignment_dir,
        )
        log_gap(loggers, self.alignment_dir)
        log_answers(loggers, model, self.data.sources[1], self.num_answers)


def visual_job(cfg: Any, build: Build) -> VisualJob:
    """The model of `start_from`, or a language model beside a new projector; and its data.

    Raises:
        ValueError: the training features were made by another encoder than the model's, or are
            to be aligned twice.
    """
    if cfg.start_from:
        tell(f"start_from: llm and projector come from {cfg.start_from}")
    feature_sets = training_sets(cfg) + [Path(path) for path in (cfg.data.val_shards,) if path]
    make_model = partial(_started if cfg.start_from else _new, cfg, build)
    noise: Noise | None = build(cfg.noise) if cfg.get("noise") else None
    alignment_dir = find_alignment(cfg)

    def make_data(model: LlavaModel) -> VisualDataModule:
        if model.encoder is not None:
            for shards in feature_sets:
                check_encoder(shards, model.encoder)
        _check_packs(cfg, model)
        limits = {} if cfg.stage.max_length is None else {"max_length": cfg.stage.max_length}
        node, captions = _without_controls(cfg.data)
        data: VisualDataModule = build(
            node,
            captions=captions,
            turns=model.turn_encoder(tokens_per_image=model.tokens_per_row, **limits),
            encoder=model.encoder,
            alignment=load_row_map(cfg, noise),
            image_map=load_image_map(alignment_dir),
            schedule=schedule_of(cfg),
        )
        return data

    return VisualJob(
        make_model,
        make_data,
        alignment_dir=alignment_dir,
        num_answers=cfg.num_answers,
        attention=choose_attention(
            cfg.attention,
            on_gpu=uses_gpu(cfg.accelerator),
            in_16_bits=RunSettings.of(cfg).resolved_precision in HALF,
        ),
    )


def _without_controls(data: Any) -> tuple[dict[str, Any], Controls]:
    """`cfg.data` without the keys of conf/data/captions.yaml, and the controls that they are."""
    names = [field.name for field in fields(Controls)]
    rest = {key: value for key, value in data.items() if key not in names}
    return rest, Controls(**{name: data[name] for name in names})


def _with_facts(
    provenance: dict[str, Any], model: LlavaModel, data: VisualDataModule
) -> dict[str, Any]:
    """With what the model was made of, and what caption controls took of the data; a config names
    parts that `start_from` does not use."""
    config = dict(provenance["config"])
    if config["start_from"]:
        config = {key: value for key, value in config.items() if key not in ("llm", "projector")}
    facts = {
        "llm": str(model.language_model.config.name_or_path),
        "projector": model.projector.options(),
    }
    parts = zip(data.parts, data.selections, strict=True)
    taken = {part.name: selection.about for part, selection in parts if selection is not None}
    selection = {"selection": taken} if taken else {}
    return provenance | {"config": config, "model": facts} | selection


def _started(cfg: Any, build: Build) -> LlavaModel:
    model = load_model(cfg.start_from, device="cpu", dtype=torch.float32)
    model.template = cfg.stage.template
    if "encoder" in cfg:
        _attach(model, build(cfg.encoder), cfg)
    _tune(model, cfg)
    return model


def _new(cfg: Any, build: Build) -> LlavaModel:
    language_model, tokenizer = build(cfg.llm, device="cpu", dtype=torch.float32)
    embeddings = language_model.get_input_embeddings().weight.detach()
    encoder = build(cfg.encoder) if "encoder" in cfg else None
    torch.manual_seed(cfg.seed)  # the projector does not depend on what was drawn before
    projector = build(
        cfg.projector,
        input_dim=_feature_width(cfg, encoder),
        output_dim=embeddings.shape[1],
    )
    if cfg.match_embeddings:
        projector.match_scale(float(embeddings.square().mean().sqrt()), seed=cfg.seed)
    model = LlavaModel(language_model, projector, tokenizer, template=cfg.stage.template)
    if encoder is not None:
        _attach(model, encoder, cfg)
    _tune(model, cfg)
    return model


def _tune(model: LlavaModel, cfg: Any) -> None:
    """Apply the stage's tuning method; one that the model already has is merged first."""
    options = _plain(cfg.stage.get("tuning"))
    if options is None:
        return
    if model.tuning is not None:
        model.tuning.merge()
    torch.manual_seed(cfg.seed)  # the method does not depend on what was drawn before
    model.tuning = apply_tuning(model.language_model, options.pop("method"), options)


def _plain(node: Any) -> Any:
    """A config node as dictionaries and lists, which a result can record."""
    if isinstance(node, Mapping):
        return {key: _plain(value) for key, value in node.items()}
    is_list = isinstance(node, Sequence) and not isinstance(node, str)
    return [_plain(value) for value in node] if is_list else node


def _attach(model: LlavaModel, encoder: DualEncoder, cfg: Any) -> None:
    if encoder.dim != model.projector.input_dim:
        raise ValueError(
            f"the encoder writes rows of width {encoder.dim} and the projector reads "
            f"{model.projector.input_dim}; give the encoder that the model was trained with"
        )
    path = Path(cfg.encoder.get("path", ""))
    model.encoder = encoder
    model.encoder_dir = path if path.is_dir() else None


def _feature_width(cfg: Any, encoder: DualEncoder | None) -> int:
    for shards in training_sets(cfg):
        return read_header(shards).dim
    if encoder is None:
        raise ValueError(
            "without data.shards the pictures are embedded on the fly, which needs an encoder; "
            "give encoder=<name>, or data.shards=<feature set>"
        )
    return encoder.dim


def _check_packs(cfg: Any, model: LlavaModel) -> None:
    if cfg.data.pack_tokens is not None and model.layout != "packed":
        raise ValueError(
            f"data.pack_tokens={cfg.data.pack_tokens} bounds samples that stand behind each "
            f"other, but with this language model (layout {model.layout!r}) they would be "
            "padded to the longest and need many times that; leave pack_tokens out"
        )


def _check_width(name: str, source: Any, model: LlavaModel) -> None:
    if source is not None and source.dim != model.projector.input_dim:
        raise ValueError(
            f"the {name} features have width {source.dim} and the projector reads "
            f"{model.projector.input_dim}; they come from another encoder than the model's"
        )
