"""Mixtures: exact counts per epoch, every record in its own epochs, batches of several sources."""

import pickle
from collections import Counter

import numpy as np
import pytest
import torch

from revision.data import mixture as module
from revision.data.mixture import MixtureOrder, MixtureSource
from revision.data.plan import EpochPlan, StepPlan
from revision.data.samples import IMAGE_SLOT, Sample, collate

BLOCKS = [[5, 9, 3], [20, 4], [1, 2]]
SIZES = [sum(blocks) for blocks in BLOCKS]
TOTAL = sum(SIZES)
OFFSETS = np.cumsum([0, *SIZES])


@pytest.fixture(params=[4, 4096], autouse=True)
def chunk(request, monkeypatch):
    monkeypatch.setattr(module, "_CHUNK", request.param)


def order_of(weights, seed=0, **options):
    plans = [EpochPlan(b, seed=seed, shuffle_blocks=1, **options) for b in BLOCKS[: len(weights)]]
    return MixtureOrder(plans, weights, seed=seed)


def visits(order, epoch):
    """(source, own epoch, number) of all visits of an epoch, in their order."""
    total = int(order.offsets[-1])
    pairs = (divmod(int(v), total) for v in order.records(epoch, 0, order.length(epoch)))
    owners = np.searchsorted(order.offsets, np.arange(total), side="right") - 1
    return [(int(owners[r]), own, r - int(order.offsets[owners[r]])) for own, r in pairs]


def test_weight_one_is_every_record_once_per_epoch():
    order = order_of([1, 1, 1])
    for epoch in range(3):
        expected = {(s, epoch, n) for s, size in enumerate(SIZES) for n in range(size)}
        found = visits(order, epoch)
        assert len(found) == TOTAL
        assert set(found) == expected


@pytest.mark.parametrize("weights", [(1, 0.5, 2), (0.3, 0.1, 1.7), (0.29, 3, 0.01)])
def test_counts_are_exact_and_own_epochs_whole(weights):
    """100 epochs are exactly 100 w passes, each of which shows every record once."""
    order = order_of(weights)
    found = Counter(visit for epoch in range(100) for visit in visits(order, epoch))
    assert set(found.values()) == {1}
    for source, (size, weight) in enumerate(zip(SIZES, weights, strict=True)):
        seen = [own for s, own, _ in found if s == source]
        assert len(seen) == round(100 * weight * size)
        passes = Counter(seen)
        assert all(passes[own] == size for own in range(int(100 * weight)))
    for epoch in range(4):
        counts = Counter(source for source, _, _ in visits(order, epoch))
        for source, (size, weight) in enumerate(zip(SIZES, weights, strict=True)):
            assert abs(counts[source] - weight * size) < 1


def test_a_half_is_followed_by_the_other_half():
    order = order_of([1, 0.5])
    halves = [{n for s, _, n in visits(order, epoch) if s == 1} for epoch in range(2)]
    assert not halves[0] & halves[1]
    assert halves[0] | halves[1] == set(range(SIZES[1]))


def test_the_proportions_hold_all_along():
    """Behind every position a source has given its share, up to two chunks."""
    order = MixtureOrder([EpochPlan([100] * 5), EpochPlan([100] * 10)], [1, 0.1])
    owners = np.array([source for source, _, _ in visits(order, 0)])
    share = (owners == 1).cumsum() - np.arange(1, 601) / 6
    assert abs(share).max() < 3 if module._CHUNK == 4 else len(owners) == 600


def test_records_of_a_range_are_a_slice_of_the_epoch():
    order, length = order_of([1, 0.5, 2], seed=3), order_of([1, 0.5, 2]).length(1)
    whole = order.records(1, 0, length)
    for first in range(0, length, 5):
        for last in (first, first + 1, min(first + 17, length)):
            assert np.array_equal(order.records(1, first, last), whole[first:last])
    travelled = pickle.loads(pickle.dumps(order))
    assert np.array_equal(travelled.records(1, 3, 9), whole[3:9])


def test_epochs_and_seeds_differ_and_repeat():
    orders = [visits(order_of([1, 2], seed=seed), epoch) for seed in (0, 1) for epoch in (0, 1)]
    assert len({tuple((s, n) for s, _, n in order) for order in orders}) == 4
    assert visits(order_of([1, 2], seed=1), 1) == orders[3]


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_steps_are_the_same_for_every_number_of_processes(world_size):
    order = order_of([1, 0.5, 2])

    def step_of(step, world):
        plans = [StepPlan(order, 4 // world, 2, rank, world) for rank in range(world)]
        return Counter(n for plan in plans for batch in plan.window(step) for n in batch)

    for step in range(12):  # epochs of different length in between
        assert step_of(step, world_size) == step_of(step, 1)


@pytest.mark.parametrize("weight", [0, -1, float("nan")])
def test_a_weight_that_is_not_positive_is_refused(weight):
    with pytest.raises(ValueError, match="source 1 of the mixture has weight"):
        order_of([1, weight])


class Source:
    """Samples of `number + 1` tokens with `number % 2` pictures, that tell number and epoch."""

    rows_per_image = 1

    def __init__(self, blocks, dim=3, pixels=False, base=0):
        self.block_sizes, self.dim, self.pixels, self.base = blocks, dim, pixels, base

    def lengths(self):
        return np.arange(1, sum(self.block_sizes) + 1, dtype=np.int32) + self.base

    def batch(self, numbers, epoch=0):
        return collate([self.sample(number, epoch) for number in numbers])

    def sample(self, number, epoch):
        assert isinstance(number, int)
        ids = torch.full((number + 1,), self.base + number)
        if not number % 2:
            return Sample(f"{self.base}/{number}/{epoch}", ids, ids)
        ids[0] = IMAGE_SLOT
        told = torch.full((1, 1, self.dim), float(self.base + number))
        images = {"pixels" if self.pixels else "visual": told}
        return Sample(f"{self.base}/{number}/{epoch}", ids, ids, **images)


def test_a_batch_holds_every_visit_in_its_own_epoch_with_its_pictures():
    source = MixtureSource([Source([3, 2], pixels=True, base=100), Source([4], base=200)])
    assert source.block_sizes == [3, 2, 4]
    batch = source.batch([1, 9 * 2 + 6, 8, 3, 4], epoch=7)  # 9 records in all
    assert sorted(batch.ids) == ["100/1/0", "100/3/0", "100/4/0", "200/1/2", "200/3/0"]
    assert batch.visual.flatten().unique().tolist() == [201, 203]
    assert batch.pixels.flatten().unique().tolist() == [101, 103]
    images = torch.cat([batch.visual, batch.pixels])[:, 0, 0].tolist()
    owners = [row for row, ids in enumerate(batch.input_ids) if IMAGE_SLOT in ids]
    named = [batch.ids[row].split("/") for row in owners]
    assert images == [int(base) + int(number) for base, number, _ in named]
    assert batch.window_targets == batch.num_targets
    assert [int(n) for n in batch.lengths] == [int(id.split("/")[1]) + 1 for id in batch.ids]


def test_lengths_are_those_of_the_sources():
    source = MixtureSource([Source([3, 2], base=100), Source([4], base=200)])
    lengths = source.lengths()[np.array([0, 4, 5, 8, 9 + 8, 18 + 1])]
    assert lengths.tolist() == [101, 105, 201, 204, 204, 102]


def test_features_of_two_encoders_are_refused():
    with pytest.raises(ValueError, match="a picture is 1 x 3 or 1 x 4 numbers"):
        MixtureSource([Source([3]), Source([3], dim=4)])
    patches = Source([3])
    patches.rows_per_image = 9
    with pytest.raises(ValueError, match="1 x 3 or 9 x 3"):
        MixtureSource([Source([3]), patches])
