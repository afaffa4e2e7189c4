"""The loggers beside metrics.csv: the picture of the gap reaches the dashboards."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from revision.data.shard_source import ShardSource
from revision.records import Record, Turn
from revision.shards import ShardWriter, write_header
from revision.training import loggers
from revision.training.loggers import log_gap
from tests.tiny_models import DIM, tiny_llava

_TALK = (Turn("user", "Is it?"), Turn("assistant", "Yes."))


@pytest.fixture
def alignment_dir(tmp_path: Path) -> Path:
    """What `align.py` leaves, as far as the loggers look at it."""
    (tmp_path / "figures").mkdir()
    Image.new("RGB", (8, 4), "red").save(tmp_path / "figures" / "gap.png")
    return tmp_path / "alignment"


def test_tensorboard_shows_the_gap(alignment_dir: Path, tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path, name="tensorboard", version="")
    log_gap([logger], alignment_dir)
    logger.experiment.close()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    (shown,) = events.Images("gap")
    assert (shown.width, shown.height) == (8, 4)


def test_wandb_shows_the_gap(
    alignment_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    logger = WandbLogger(project="test", save_dir=tmp_path, offline=True)
    log_gap([logger], alignment_dir)
    assert list((tmp_path / "wandb").rglob("gap*.png"))
    logger.experiment.finish()


def test_a_run_without_alignment_has_no_gap(tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path, name="tensorboard", version="")
    log_gap([logger], None)
    log_gap([logger], tmp_path / "elsewhere" / "alignment")
    assert not list((tmp_path / "tensorboard").glob("events*"))


def test_wandb_is_given_group_config_and_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, Any] = {}
    monkeypatch.setattr(loggers, "WandbLogger", lambda **options: given.update(options))
    for key, offline in (("secret", False), ("", True)):
        monkeypatch.setenv("WANDB_API_KEY", key)
        loggers.wandb(run_dir=tmp_path / "run", group="study", config={"seed": 1}, project="p")
        assert given["offline"] == offline
    assert (given["group"], given["config"]) == ("study", {"seed": 1})
    assert (given["name"], given["resume"]) == ("run", "allow")


def test_an_answer_takes_the_pictures_of_its_own_turn(tmp_path: Path) -> None:
    turns = [
        Turn("user", "<image>\nWhat is it?"),
        Turn("assistant", "A cat."),
        Turn("user", "<image>\nAnd here?"),
        Turn("assistant", "A mat."),
    ]
    with ShardWriter(tmp_path, 0, DIM, "float32") as writer:
        records = [Record("two", conversations=tuple(turns)), Record("text", conversations=_TALK)]
        writer.add_block(np.ones((2, DIM), np.float32), records, [2, 0])
    write_header(tmp_path, kind="image", encoder={}, source={}, num_shards=1)
    model = tiny_llava()
    held_out = ShardSource(tmp_path, model.turn_encoder())
    for index, question in enumerate(["<image>\nWhat is it?", "Is it?"]):
        _, _, asked, _, answer = loggers._answer(model, held_out, index)
        assert asked == question
        assert isinstance(answer, str)
