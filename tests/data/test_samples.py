"""Batches: padding is positional, counts add up, shapes must agree."""

import pytest
import torch

from revision.data.samples import IGNORE, IMAGE_SLOT, Batch, Sample, collate, dummy_sample


def sample(id, ids, num_images=0, rows=1):
    ids = torch.tensor(ids)
    visual = torch.zeros(num_images, rows, 3) if num_images else None
    return Sample(id, ids, ids.masked_fill(ids == IMAGE_SLOT, IGNORE), visual=visual)


def test_padding_is_told_by_lengths_not_by_ids():
    batch = collate([sample("a", [0, 0, 0]), sample("b", [5])])
    assert batch.lengths.tolist() == [3, 1]
    assert batch.labels.tolist() == [[0, 0, 0], [5, IGNORE, IGNORE]]


def test_targets_are_counted_without_the_first_position():
    samples = [sample("a", [1, 2, 3]), sample("b", [IMAGE_SLOT, 4], 1), dummy_sample(0)]
    assert [s.num_targets for s in samples] == [2, 1, 0]
    batch = collate(samples)
    assert batch.num_targets == batch.window_targets == 3
    assert collate(samples, window_targets=17).window_targets == 17


def test_pictures_are_joined_in_reading_order():
    one, two = sample("a", [IMAGE_SLOT], 1), sample("b", [IMAGE_SLOT, 1, IMAGE_SLOT], 2)
    one.visual.fill_(1)
    two.visual.fill_(2)
    assert collate([one, sample("c", [1]), two]).visual[:, 0, 0].tolist() == [1, 2, 2]
    assert collate([sample("c", [1])]).visual is None


def test_moving_keeps_everything():
    batch = collate([sample("a", [IMAGE_SLOT, 2], 1)], window_targets=5)
    moved = batch.to("meta")
    assert moved.visual.device.type == moved.input_ids.device.type == "meta"
    assert (moved.ids, moved.window_targets, len(moved)) == (["a"], 5, 1)
    assert isinstance(moved, Batch)
    assert batch.input_ids.device.type == "cpu"


def test_refusals():
    with pytest.raises(ValueError, match=r"sample 'b' has images of shape \(2, 3\), sample 'a'"):
        collate([sample("a", [IMAGE_SLOT], 1), sample("b", [IMAGE_SLOT], 1, rows=2)])
    with pytest.raises(ValueError, match="sample 'a' has 2 ids and 3 labels"):
        Sample("a", torch.tensor([1, 2]), torch.tensor([1, 2, 3]))
    with pytest.raises(ValueError, match="sample 'a' has 1 <image> marks and 0 images"):
        Sample("a", torch.tensor([IMAGE_SLOT]), torch.tensor([IGNORE]))
