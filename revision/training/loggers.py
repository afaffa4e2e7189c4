"""Loggers beside `metrics.csv`, chosen by `conf/logger/*.yaml`."""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger
from PIL import Image

from revision.data.record_turns import record_turns
from revision.data.samples import Sample
from revision.data.sources import SampleSource
from revision.models.llava import LlavaModel
from revision.records import IMAGE_MARK, load_image

Row = tuple[str, Image.Image | None, str, str, str]
COLUMNS = ["id", "picture", "question", "reference", "answer"]


def none(*, run_dir: Path, group: str, config: Any) -> list[Logger]:
    """Nothing but the metrics file."""
    return []


def tensorboard(*, run_dir: Path, group: str, config: Any) -> list[Logger]:
    return [TensorBoardLogger(save_dir=run_dir, name="tensorboard", version="")]


def wandb(*, run_dir: Path, group: str, config: Any, project: str) -> list[Logger]:
    """A run that keeps its id when it is continued; the runs of a sweep are one group."""
    identity = hashlib.sha256(str(run_dir.resolve()).encode()).hexdigest()[:12]
    logger = WandbLogger(
        project=project,
        name=run_dir.name,
        group=group,
        id=identity,
        resume="allow",
        save_dir=run_dir,
        offline=not os.environ.get("WANDB_API_KEY"),
        config=config,
    )
    return [logger]


def close(loggers: Sequence[Logger]) -> None:
    """End the runs on the dashboards: the next job of a sweep would go on in them."""
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            logger.experiment.finish()


def log_gap(loggers: Sequence[Logger], alignment_dir: Path | None) -> None:
    """The picture of the gap before and after, which `align.py` leaves beside its map."""
    picture = None if alignment_dir is None else alignment_dir.parent / "figures" / "gap.png"
    if picture is None or not picture.is_file():
        return
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            logger.log_image("gap", [str(picture)])
        elif isinstance(logger, TensorBoardLogger):
            pixels = np.asarray(Image.open(picture).convert("RGB"))
            logger.experiment.add_image("gap", pixels, dataformats="HWC")


def log_answers(loggers: Sequence[Logger], model: LlavaModel, held_out: Any, number: int) -> None:
    """Answer the first `number` held-out pictures; a table where a logger shows tables."""
    shown = [logger for logger in loggers if isinstance(logger, WandbLogger)]
    if not shown or not isinstance(held_out, SampleSource):
        return
    import wandb as client

    rows = [_answer(model, held_out, index) for index in range(min(number, len(held_out)))]
    for logger in shown:
        data = [[id, picture and client.Image(picture), *texts] for id, picture, *texts in rows]
        logger.log_table("answers", columns=COLUMNS, data=data)


def _answer(model: LlavaModel, held_out: SampleSource, index: int) -> Row:
    """The first exchange of a record: what was asked, what was expected, what was answered."""
    record, count = held_out.record(index), held_out.num_images(np.array([index]))
    turns = record_turns(record, int(count[0]), plain=held_out.turns.ends_at_newline)
    asked = next(turn for turn in turns if turn.role == "user")
    expected = next(turn for turn in turns if turn.role == "assistant")
    encoded = model.turn_encoder()([asked])
    num_asked = asked.text.count(IMAGE_MARK)  # later turns may show more
    asked_for = np.full(num_asked, index), np.arange(num_asked)
    seen: dict[str, Any] = dict(held_out.pictures(*asked_for)) if num_asked else {}
    sample = Sample(record.id, encoded.input_ids, encoded.labels, **seen)
    (answer,) = model.generate([sample], max_new_tokens=32)
    return record.id, _picture(record.images), asked.text, expected.text, answer


def _picture(images: Sequence[str | bytes]) -> Image.Image | None:
    try:
        return load_image(images[0]) if images else None
    except ValueError:
        return None  # the pictures of a feature set may be elsewhere
