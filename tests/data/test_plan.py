"""The plan: every record once per epoch, whatever the processes; subsets nest."""

import pickle
from collections import Counter

import numpy as np
import pytest

from revision.data.plan import EpochPlan, StepPlan, hash_threshold, position_hash

BLOCKS = [7, 13, 1, 20, 9, 4]
TOTAL = sum(BLOCKS)


def order(plan, epoch=0):
    return plan.records(epoch, 0, plan.num_samples).tolist()


def step_records(epoch_plan, step, *, batch_size, accumulate, world_size):
    """The records of one step over all processes."""
    plans = [StepPlan(epoch_plan, batch_size, accumulate, r, world_size) for r in range(world_size)]
    return Counter(n for plan in plans for batch in plan.window(step) for n in batch)


@pytest.mark.parametrize("shuffle_blocks", [1, 2, 4, 100])
def test_an_epoch_is_a_permutation(shuffle_blocks):
    plan = EpochPlan(BLOCKS, seed=3, shuffle_blocks=shuffle_blocks)
    assert sorted(order(plan)) == list(range(TOTAL))


def test_epochs_and_seeds_differ_and_repeat():
    plan = EpochPlan(BLOCKS, seed=3)
    orders = [order(plan, 0), order(plan, 1), order(EpochPlan(BLOCKS, seed=4), 0)]
    assert len({tuple(o) for o in orders}) == 3
    assert order(EpochPlan(BLOCKS, seed=3), 1) == orders[1]


def test_every_group_of_every_epoch_has_its_own_order():
    plan = EpochPlan([10] * 4, shuffle_blocks=1)
    orders = [order(plan, epoch)[i : i + 10] for epoch in range(2) for i in range(0, 40, 10)]
    assert len({tuple(record % 10 for record in group) for group in orders}) == 8


def test_records_are_shuffled_inside_groups_of_blocks():
    plan = EpochPlan([10] * 8, shuffle_blocks=2)
    groups = [order(plan)[i : i + 20] for i in range(0, 80, 20)]
    for group in groups:
        assert len({record // 10 for record in group}) == 2
        assert group != sorted(group)


def test_a_shard_is_visited_once_per_epoch():
    shards = [n % 5 for n in range(40)]  # not in their order
    plan = EpochPlan([10] * 40, block_shards=shards, shuffle_blocks=2, seed=1)
    for epoch in range(3):
        visited = [shards[record // 10] for record in order(plan, epoch)]
        changes = sum(a != b for a, b in zip(visited[::20], visited[20::20], strict=False))
        assert changes == 4
        assert sorted(order(plan, epoch)) == list(range(400))
    firsts = [shards[order(plan, epoch)[0] // 10] for epoch in range(20)]
    assert len(set(firsts)) == 5


def test_one_shard_keeps_the_order_it_always_had():
    """Runs of before stay comparable."""
    blocks = np.random.default_rng([3, 1]).permutation(len(BLOCKS))
    starts = np.cumsum([0, *BLOCKS])
    records = [np.arange(starts[b], starts[b + 1]) for b in blocks]
    groups = [np.concatenate(records[:4]), np.concatenate(records[4:])]
    expected = [np.random.default_rng([3, 1, i]).permutation(g) for i, g in enumerate(groups)]
    plan = EpochPlan(BLOCKS, seed=3, shuffle_blocks=4, block_shards=["a"] * len(BLOCKS))
    assert order(plan, 1) == np.concatenate(expected).tolist()


def test_records_of_a_range_are_a_slice_of_the_epoch():
    plan = EpochPlan(BLOCKS, seed=2, shuffle_blocks=2, num_samples=40)
    whole = order(plan, 1)
    for first in range(41):
        for last in range(first, 41):
            assert plan.records(1, first, last).tolist() == whole[first:last]


@pytest.mark.parametrize("size", [1, 3, 8, 100])
def test_a_run_that_continues_in_other_steps_takes_up_the_order(size):
    plan = EpochPlan(BLOCKS)
    whole = [n for epoch in range(3) for n in order(plan, epoch)]
    before = StepPlan(plan, 8)
    for step in (0, 1, 6, 7, 8):  # 7 steps to an epoch
        start = before.place(step)
        after = StepPlan(plan, size, start=start)
        seen = [n for s in range(step) for batch in before.window(s) for n in batch]
        seen += [n for s in range(step, after.end(2)) for b in after.window(s) for n in b]
        assert seen == whole
        assert after.place(step) == start
        assert all(after.place(s).epoch == 0 for s in range(step, after.end(0)))


@pytest.mark.parametrize("num_samples", [None, 23])
def test_a_step_is_the_same_set_for_every_number_of_processes(num_samples):
    plan = EpochPlan(BLOCKS, seed=1, num_samples=num_samples)
    layouts = [(8, 1, 1), (4, 2, 1), (4, 1, 2), (2, 1, 4), (1, 2, 4), (2, 2, 2)]
    for step in range(20):
        sets = [
            step_records(plan, step, batch_size=b, accumulate=a, world_size=w)
            for b, a, w in layouts
        ]
        assert all(one == sets[0] for one in sets)


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_nothing_is_dropped_or_repeated_at_the_tail(world_size):
    plan = EpochPlan(BLOCKS)
    steps = StepPlan(plan, 4, 2, 0, world_size).end(0)
    seen = Counter()
    for step in range(steps, 2 * steps):  # the second epoch
        seen += step_records(plan, step, batch_size=4, accumulate=2, world_size=world_size)
    assert seen == Counter(range(TOTAL))


def test_every_process_has_all_micro_batches_of_a_step():
    plan = EpochPlan([5])
    windows = [StepPlan(plan, 2, 2, rank, 2).window(0) for rank in range(2)]
    assert [[len(batch) for batch in window] for window in windows] == [[2, 1], [2, 0]]


def test_subsets_are_nested_and_do_not_depend_on_the_seed():
    blocks = [100] * 10
    subsets = {
        (n, seed): set(order(EpochPlan(blocks, num_samples=n, seed=seed)))
        for n in (1, 100, 400, 1000)
        for seed in (0, 1)
    }
    assert [len(subsets[n, 0]) for n in (1, 100, 400, 1000)] == [1, 100, 400, 1000]
    assert subsets[1, 0] < subsets[100, 0] < subsets[400, 0] < subsets[1000, 0]
    assert subsets[100, 0] == subsets[100, 1]


def test_a_subset_is_spread_over_the_data():
    chosen = np.array(order(EpochPlan([100] * 10, num_samples=400)))
    counts = np.bincount(chosen // 100, minlength=10)
    assert counts.min() > 25
    assert counts.max() < 55


@pytest.mark.parametrize("count", [1, 2, 999, 1000])
def test_the_threshold_is_an_order_statistic(count):
    hashes = np.sort(position_hash(np.arange(1000)))
    assert len(set(hashes.tolist())) == 1000
    assert hash_threshold(1000, count) == hashes[count - 1]


def test_a_plan_travels_to_a_worker():
    plan = EpochPlan(BLOCKS, seed=5, num_samples=20)
    assert order(pickle.loads(pickle.dumps(plan))) == order(plan)


def test_memory_does_not_grow_with_the_records():
    plan = EpochPlan([10**9] * 3, shuffle_blocks=1)
    assert len(pickle.dumps(plan)) < 2000


def kept_bits(seed=0, share=0.5, total=TOTAL):
    kept = np.random.default_rng(seed).random(total) < share
    return kept, np.packbits(kept)


@pytest.mark.parametrize("shuffle_blocks", [1, 2, 100])
@pytest.mark.parametrize("share", [0.03, 0.5, 0.95])
def test_an_epoch_is_a_permutation_of_what_is_kept(shuffle_blocks, share):
    kept, bits = kept_bits(share=share)
    plan = EpochPlan(BLOCKS, seed=3, shuffle_blocks=shuffle_blocks, kept=bits)
    for epoch in range(2):
        assert sorted(order(plan, epoch)) == np.flatnonzero(kept).tolist()
    whole = EpochPlan(BLOCKS, seed=3, shuffle_blocks=shuffle_blocks)
    assert plan._order_of_epoch(1)[0].tolist() == whole._order_of_epoch(1)[0].tolist()


def test_to_keep_everything_changes_nothing():
    everything = np.packbits(np.ones(TOTAL, bool))
    for options in ({}, {"num_samples": 20}):
        plan = EpochPlan(BLOCKS, seed=3, shuffle_blocks=2, **options)
        assert order(EpochPlan(BLOCKS, seed=3, shuffle_blocks=2, kept=everything, **options)) == (
            order(plan)
        )


def test_subsets_of_what_is_kept_have_its_smallest_hashes_and_nest():
    kept, bits = kept_bits()
    numbers = np.flatnonzero(kept)
    by_hash = numbers[np.argsort(position_hash(numbers))].tolist()
    for count in range(1, len(numbers) + 1):
        plan = EpochPlan(BLOCKS, num_samples=count, kept=bits, seed=count)
        assert sorted(order(plan)) == sorted(by_hash[:count])
    with pytest.raises(ValueError, match=rf"{TOTAL} records, of which .* keep {len(numbers)};"):
        EpochPlan(BLOCKS, num_samples=len(numbers) + 1, kept=bits)


def test_a_step_of_what_is_kept_is_the_same_set_for_every_number_of_processes():
    plan = EpochPlan(BLOCKS, seed=1, kept=kept_bits()[1])
    for step in range(5):
        one = step_records(plan, step, batch_size=4, accumulate=2, world_size=1)
        assert one == step_records(plan, step, batch_size=2, accumulate=2, world_size=2)


@pytest.mark.parametrize("num_samples", [0, TOTAL + 1])
def test_more_samples_than_there_are_is_refused(num_samples):
    with pytest.raises(ValueError, match=f"num_samples={num_samples}, but the data has {TOTAL}"):
        EpochPlan(BLOCKS, num_samples=num_samples)


def test_empty_data_is_refused():
    with pytest.raises(ValueError, match="the data has 0 records"):
        EpochPlan([])
