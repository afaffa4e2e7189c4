"""Pictures beside their own captions, decoded again or kept."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from revision.data.image_text import ImageTextPairs, check_pair
from revision.data.index import build_index
from revision.records import Record
from tests.tiny_encoders import WORDS, tiny_composed


@pytest.fixture(scope="module")
def encoder():
    return tiny_composed(32)


@pytest.fixture
def index(tmp_path):
    """Five pictures with captions of different lengths, and a record without a caption."""
    rng = np.random.default_rng(0)
    entries = []
    for i in range(6):
        pixels = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
        entries.append({"id": str(i), "image": f"{i}.png", "caption": " ".join(WORDS[: i + 1])})
    entries[5].pop("caption")
    (tmp_path / "pairs.json").write_text(json.dumps(entries))
    return build_index(
        tmp_path / "pairs.json", tmp_path / "index", image_root=tmp_path, check=check_pair
    )


def pairs(index, tmp_path, encoder, **options):
    return ImageTextPairs(index, image_root=tmp_path, encoder=encoder, **options)


def test_rows_of_a_batch_are_pairs(index, tmp_path, encoder):
    source = pairs(index, tmp_path, encoder)
    assert source.block_sizes == [5] and index.num_rejected == 1
    batch = source.batch([3, 0, 4])
    assert len(batch) == batch.num_targets == batch.window_targets == 3
    for row, number in enumerate([3, 0, 4]):
        picture = encoder.image_inputs(Image.open(tmp_path / f"{number}.png"))
        torch.testing.assert_close(batch["image"][row], picture)
        words = encoder.text_inputs([" ".join(WORDS[: number + 1])])["input_ids"][0]
        assert batch["text"][row, : len(words)].tolist() == words.tolist()


def test_kept_pictures_are_those_that_would_be_decoded(index, tmp_path, encoder):
    fresh, kept = (pairs(index, tmp_path, encoder, keep_pictures=k) for k in (0, 2))
    for numbers in ([0, 1, 2], [2, 1, 0]):
        assert torch.equal(fresh.batch(numbers)["image"], kept.batch(numbers)["image"])
    for path in tmp_path.glob("*.png"):
        path.unlink()
    kept.batch([1, 0])
    with pytest.raises(ValueError, match=r"record '2': .*2.png: missing image.*repair or remove"):
        kept.batch([2])


def test_what_is_no_pair_is_refused():
    check_pair(Record(id="a", text="a cat", images=("a.png",)))
    with pytest.raises(ValueError, match="1 pictures and no caption"):
        check_pair(Record(id="a", images=("a.png",)))
    with pytest.raises(ValueError, match="2 pictures and a caption"):
        check_pair(Record(id="a", text="a cat", images=("a.png", "b.png")))
