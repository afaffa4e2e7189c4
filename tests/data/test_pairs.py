"""Pairs: row i beside row i, or a refusal that names the first row that differs."""

import pytest
import torch

from revision.data.pairs import PairedRows
from tests.feature_sets import cloud, damage, write_set


@pytest.fixture
def sets(tmp_path):
    image = write_set(tmp_path / "image", cloud(0, 30, 4), "image", block_rows=7)
    text = write_set(tmp_path / "text", cloud(1, 30, 6), "text", block_rows=11)
    return image, text


def test_rows_stay_together_over_different_blocks(sets):
    pairs = PairedRows(*sets)
    batch = pairs.batch([0, 29, 11, 7])
    images, texts = torch.from_numpy(cloud(0, 30, 4)), torch.from_numpy(cloud(1, 30, 6))
    for side, rows in (("image", images), ("text", texts)):
        expected = torch.nn.functional.normalize(rows[[0, 29, 11, 7]])
        assert torch.allclose(batch[side], expected, atol=1e-6)
        assert batch[side].dtype == torch.float32
    assert batch.num_targets == batch.window_targets == len(batch) == 4
    assert batch.to("meta")["text"].device.type == "meta"


def test_no_rows_is_an_empty_batch(sets):
    batch = PairedRows(*sets).batch([])
    assert batch["image"].shape == (0, 4)
    assert batch["text"].shape == (0, 6)
    assert batch.num_targets == 0


def test_other_records_are_refused(sets, tmp_path):
    short = write_set(tmp_path / "short", cloud(0, 29, 4), "image")
    with pytest.raises(ValueError, match=r"29 rows and .* has 30"):
        PairedRows(short, sets[1])
    from revision.records import Record
    from revision.shards import ShardWriter, write_header

    records = [Record(id=str(i if i != 12 else 99), text="x") for i in range(30)]
    with ShardWriter(tmp_path / "other", 0, 4, "float32") as writer:
        writer.add_block(cloud(0, 30, 4), records)
    write_header(tmp_path / "other", kind="image", encoder={}, source={}, num_shards=1)
    with pytest.raises(ValueError, match=r"row 12 is record '99' in .* and '12' in"):
        PairedRows(tmp_path / "other", sets[1])


def test_a_row_without_a_direction_is_refused_with_its_address(sets):
    damage(sets[1], 12, float("nan"))
    pairs = PairedRows(*sets)
    assert pairs.batch([11, 13])["text"].isfinite().all()
    with pytest.raises(ValueError, match=r"00000.tar: row 12 of the set, of record '12' has no"):
        pairs.batch([11, 12, 13])
