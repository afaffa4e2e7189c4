"""What the training module does with a window, whatever the model is."""

from types import SimpleNamespace

import pytest
import torch

from revision.training.module import TrainingModule, _step_seed
from revision.training.optim import OptimizerSettings


def module_among(other_targets):
    """A module in one of two processes; the window of the other one has `other_targets`."""
    settings = OptimizerSettings(learning_rate=1e-3)
    module = TrainingModule(
        torch.nn.Linear(2, 2), trainable=["weight"], optimizer=settings, total_steps=9
    )
    strategy = SimpleNamespace(reduce=lambda own, reduce_op: own + other_targets)
    module._trainer = SimpleNamespace(strategy=strategy, global_step=3)
    return module


def test_a_process_may_have_records_without_targets():
    """What one process does with them must not depend on how many processes there are."""
    module = module_among(5)
    module._start_window(SimpleNamespace(window_targets=0))
    assert float(module.window_targets) == 5


def test_a_step_without_targets_is_refused():
    with pytest.raises(ValueError, match="step 4: none of its records has a target token"):
        module_among(0)._start_window(SimpleNamespace(window_targets=0))
    module_among(0)._start_window(SimpleNamespace(window_targets=1))


def test_any_seed_is_one_for_torch():
    seeds = {
        _step_seed(seed, step, rank)
        for seed in (0, 2**32 - 1)
        for step in (0, 1)
        for rank in (0, 1)
    }
    assert len(seeds) == 8
    for seed in seeds:
        torch.Generator().manual_seed(seed)
