"""Windows and loaders: workers and resumption change nothing, a step knows its own targets."""

from dataclasses import dataclass

import pytest

from revision.data.plan import EpochPlan, StepPlan
from revision.data.windows import HeldOutDataset, WindowDataset, WindowLoader

BLOCKS = [5, 9, 3, 12]
TOTAL = sum(BLOCKS)


@dataclass
class Numbers:
    """A batch that remembers its records; record n has n + 1 targets."""

    numbers: list
    window_targets: int = -1

    @property
    def num_targets(self):
        return sum(n + 1 for n in self.numbers)


class Source:
    block_sizes = BLOCKS

    def batch(self, numbers, epoch=0):
        return Numbers(list(numbers))


def loader(*, batch_size=2, accumulate=2, rank=0, world_size=1, first=0, num_steps=9, workers=0):
    plan = StepPlan(EpochPlan(BLOCKS, seed=1), batch_size, accumulate, rank, world_size)
    return WindowLoader(
        WindowDataset(Source(), plan),
        num_steps=num_steps,
        batches_per_step=accumulate,
        first_step=lambda: first,
        num_workers=workers,
    )


def numbers(batches):
    return [(batch.numbers, batch.window_targets) for batch in batches]


def test_workers_change_nothing():
    alone = numbers(loader())
    assert numbers(loader(workers=2)) == alone
    assert len(alone) == len(loader()) == 18


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("step", [1, 4, 8])
def test_resuming_is_the_tail_of_the_whole_run(step, workers):
    whole = numbers(loader())
    resumed = loader(first=step, workers=workers)
    assert numbers(resumed) == whole[2 * step :]
    assert len(resumed) == len(whole)


@pytest.mark.parametrize("accumulate", [1, 3])
def test_window_targets_are_those_of_the_whole_step_on_this_process(accumulate):
    for rank in range(2):
        batches = list(loader(accumulate=accumulate, rank=rank, world_size=2, num_steps=6))
        for start in range(0, len(batches), accumulate):
            window = batches[start : start + accumulate]
            total = sum(batch.num_targets for batch in window)
            assert [batch.window_targets for batch in window] == [total] * accumulate


@pytest.mark.parametrize("workers", [0, 2])
def test_all_processes_together_see_what_one_sees(workers):
    def multiset(world_size, batch_size):
        found = []
        for rank in range(world_size):
            plan_loader = loader(
                batch_size=batch_size, accumulate=1, rank=rank, world_size=world_size,
                num_steps=8, workers=workers,
            )  # fmt: skip
            found += [(step, n) for step, batch in enumerate(plan_loader) for n in batch.numbers]
        return sorted(found)

    assert multiset(1, 4) == multiset(2, 2) == multiset(4, 1)
    assert sorted(n for _, n in multiset(1, 4)) == list(range(TOTAL))


def test_an_idle_process_is_no_error():
    plan = StepPlan(EpochPlan([1]), 2, 1, rank=1, world_size=2)
    assert WindowDataset(Source(), plan)[0][0].numbers == []


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_held_out_records_are_seen_once_in_order(world_size):
    parts = [
        HeldOutDataset(Source(), batch_size=3, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    assert len({len(part) for part in parts}) == 1
    steps = [[part[i][0].numbers for part in parts] for i in range(len(parts[0]))]
    assert [n for step in steps for batch in step for n in batch] == list(range(TOTAL))


def test_loading_leaves_the_global_random_state_alone():
    import torch

    torch.manual_seed(0)
    before = torch.get_rng_state()
    list(loader(workers=1, num_steps=1))
    assert torch.equal(torch.get_rng_state(), before)
