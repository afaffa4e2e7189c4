"""Refusals of `stage=contrastive`; what it leaves is tested in `tests/test_train.py`."""

import pytest

from revision.config import compose
from revision.training.contrastive_job import contrastive_job


@pytest.mark.parametrize(
    ("setting", "clear"),
    [
        ("stage.accumulate=2", "accumulate=2 and 1 processes"),
        ("devices=2", "accumulate=1 and 2 processes"),
        ("num_nodes=3", "accumulate=1 and 3 processes"),
    ],
)
def test_a_batch_that_is_divided_would_lose_negatives(setting, clear):
    settings = ["name=x", "stage=contrastive", "data.images=a", "data.texts=b", "accelerator=cpu"]
    cfg = compose("train", [*settings, "devices=1", setting])
    with pytest.raises(ValueError, match=rf"{clear}.*raise stage\.batch_size"):
        contrastive_job(cfg, lambda node: 1 / 0)
