"""The loggers beside metrics.csv: the picture of the gap reaches the dashboards."""

from pathlib import Path

import pytest
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from revision.training.loggers import log_gap


@pytest.fixture
def alignment_dir(tmp_path: Path) -> Path:
    """What `align.py` leaves, as far as the loggers look at it."""
    Image.new("RGB", (8, 4), "red").save(tmp_path / "gap.png")
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
