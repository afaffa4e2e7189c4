"""Packing: whole epochs in batches that fit, and no sample that notices its neighbours."""

import pickle
from collections import Counter

import numpy as np
import pytest
import torch

from revision.data.packing import PackedOrder, best_fit, steps_for_tokens
from revision.data.plan import EpochPlan, Place, StepPlan
from revision.data.shard_source import ShardSource
from tests.tiny_models import DIM, tiny_llava
from tests.training.resume_runs import write_sets

BLOCKS = [30, 41, 9, 60]
TOTAL = sum(BLOCKS)


class Measured:
    """Lengths of 1 to 50, and how often they were asked for."""

    def __init__(self, low=1, high=50):
        self.values = np.random.default_rng(0).integers(low, high + 1, TOTAL).astype(np.int32)

    def lengths(self):
        return self.values


def packed(budget=64, pool=50, seed=0, source=None):
    return PackedOrder(EpochPlan(BLOCKS, seed=seed), source or Measured(), budget, pool=pool)


def batches(order, epoch=0):
    return [order.records(epoch, i, i + 1).tolist() for i in range(order.length(epoch))]


@pytest.mark.parametrize("pool", [1, 7, 50, 1000])
def test_an_epoch_is_every_record_once_in_batches_that_fit(pool):
    order, lengths = packed(pool=pool), Measured().values
    for epoch in range(2):
        found = batches(order, epoch)
        assert sorted(n for batch in found for n in batch) == list(range(TOTAL))
        assert all(0 < lengths[batch].sum() <= 64 for batch in found)


def test_a_pool_is_a_part_of_the_order():
    order, plan = packed(pool=50), EpochPlan(BLOCKS)
    flat = [n for batch in batches(order) for n in batch]
    for first in range(0, TOTAL, 50):
        part = plan.records(0, first, min(first + 50, TOTAL))
        assert set(flat[first : first + 50]) == set(part.tolist())


@pytest.mark.parametrize("seed", range(20))
def test_no_two_batches_of_a_pool_could_be_one(seed):
    """Best fit leaves at most one batch half empty, and is near the lower bound."""
    lengths = np.random.default_rng(seed).integers(1, 60, 200)
    sums = np.sort(np.bincount(best_fit(lengths, 64), lengths))
    assert sums[0] + sums[1] > 64
    assert len(sums) <= 1.7 * -(-lengths.sum() // 64)


def test_best_fit_takes_the_fullest_batch_with_room():
    assert best_fit(np.array([40, 50, 10, 14, 20]), 64).tolist() == [0, 1, 1, 0, 2]
    assert best_fit(np.array([64, 64, 1]), 64).tolist() == [0, 1, 2]
    assert best_fit(np.array([3] * 8), 9).tolist() == [0, 0, 0, 1, 1, 1, 2, 2]


def test_batches_are_no_longer_than_others_by_their_place():
    """Best fit fills its last batches least; they do not stand at the end of every pool."""
    order, lengths = packed(pool=TOTAL), Measured().values
    last = [lengths[batches(order, epoch)[-1]].sum() for epoch in range(30)]
    assert np.mean(last) > 52  # measured 59; 44 without the permutation


def test_epochs_differ_and_travel():
    order = packed()
    assert batches(order, 0) != batches(order, 1)
    assert batches(pickle.loads(pickle.dumps(order)), 1) == batches(order, 1)


def test_the_fill_is_the_part_that_holds_samples():
    order, lengths = packed(), Measured().values
    assert order.fill(0) == lengths.sum() / (64 * order.length(0))
    assert packed(pool=1000).fill(0) > 0.95 > packed(pool=1).fill(0)


def test_a_sample_longer_than_a_batch_is_refused():
    source = Measured(high=64)
    source.values[77] = 65
    with pytest.raises(ValueError, match=r"has 65 positions, .* pack_tokens=64; raise that"):
        packed(source=source).length(0)
    with pytest.raises(ValueError, match="at least 1 position"):
        packed(budget=0)


@pytest.mark.parametrize(("world", "accumulate"), [(1, 1), (2, 1), (1, 4), (2, 2), (4, 1)])
def test_steps_take_the_next_batches_for_every_number_of_processes(world, accumulate):
    order = packed()
    plans = [StepPlan(order, 1, accumulate, rank, world) for rank in range(world)]
    size = world * accumulate
    steps = plans[0].end(0)
    assert steps == -(-order.length(0) // size)
    for step in range(steps):
        expected = order.records(0, step * size, min((step + 1) * size, order.length(0)))
        found = [n for plan in plans for batch in plan.window(step) for n in batch]
        assert Counter(found) == Counter(expected.tolist())


@pytest.mark.parametrize("kind", ["records", "batches"])
def test_a_budget_of_tokens_ends_at_the_first_step_that_reaches_it(kind):
    source, plan = Measured(), EpochPlan(BLOCKS)
    lengths, order = source.values, packed(source=source) if kind == "batches" else plan
    steps = StepPlan(order, 2, 3)
    sums = [sum(lengths[batch].sum() for batch in steps.window(step)) for step in range(70)]
    for budget in (1, int(sum(sums[:5])), int(sum(sums[:5])) + 1, int(sum(sums[:60]))):
        expected = int(np.searchsorted(np.cumsum(sums), budget)) + 1
        assert steps_for_tokens(steps, source, budget) == expected
        if expected > 9:  # a run that continues has seen what was before it
            place = steps.place(9)
            resumed = StepPlan(order, 2, 3, start=place)
            assert steps_for_tokens(resumed, source, budget) == expected
    assert steps_for_tokens(StepPlan(order, 2, 3, start=Place(4, 3, 0)), source, 1) == 4


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    directory = tmp_path_factory.mktemp("sets")
    write_sets(directory, DIM)
    turns = tiny_llava().turn_encoder(tokens_per_image=3)
    return ShardSource(directory / "cats", turns, token_root=directory / "tokens")


@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_a_sample_of_a_packed_batch_has_the_loss_it_has_alone(source, layout):
    """Text-only, single- and multi-image samples; and the step has the same gradient."""
    model = tiny_llava(layout=layout, tokens="expand", num_tokens=3)
    plan = EpochPlan(source.block_sizes, shuffle_blocks=2)
    order = PackedOrder(plan, source, 250)
    alone = {}
    for number in range(len(source)):
        (loss,), _ = model.score(source.batch([number]))
        alone[source.record(number).id] = float(loss)
    packed_together = batches(order)
    assert max(map(len, packed_together)) > 2
    for numbers in packed_together:
        batch = source.batch(numbers)
        assert int(batch.lengths.sum()) + 2 * sum(n % 3 for n in numbers) <= 250
        losses, counts = model.score(batch)
        expected = [alone[id] for id in batch.ids]
        assert losses.tolist() == pytest.approx(expected, rel=1e-5)  # measured 4e-7
        assert int(counts.min()) > 0


def test_a_step_has_the_same_gradient_however_it_is_packed(source):
    gradients = []
    for budget in (70, 120, 2000):
        model = tiny_llava(tokens="expand", num_tokens=3)
        order = PackedOrder(EpochPlan(source.block_sizes), source, budget)
        losses = [model(source.batch(numbers)) for numbers in batches(order)]
        (sum(loss.loss for loss in losses) / sum(loss.num_targets for loss in losses)).backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    for other in gradients[1:]:
        assert torch.allclose(gradients[0], other, rtol=1e-4, atol=1e-6)
