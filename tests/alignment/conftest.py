from pathlib import Path

import numpy as np
import pytest

from tests.feature_sets import cloud, write_set


@pytest.fixture
def text() -> np.ndarray:
    return cloud(1, 230)


@pytest.fixture
def image() -> np.ndarray:
    return cloud(2, 170, mean=0.35)


@pytest.fixture
def sets(tmp_path: Path, text: np.ndarray, image: np.ndarray) -> tuple[Path, Path]:
    """Text and image feature sets of several shards."""
    return (
        write_set(tmp_path / "text", text, "text"),
        write_set(tmp_path / "image", image, "image", shard_rows=90, block_rows=33),
    )
