"""Parameter groups and the schedule."""

import pytest
from torch import nn

from revision.training.optim import OptimizerSettings, adamw, cosine_with_warmup, parameter_groups


def model():
    return nn.ModuleDict({"projector": nn.Linear(2, 2), "llm": nn.Linear(2, 2)})


def test_decay_is_for_matrices_and_the_projector_has_its_own_rate():
    settings = OptimizerSettings(learning_rate=1e-3, projector_learning_rate=2e-3, weight_decay=0.1)
    parts = model()
    groups = parameter_groups(parts.named_parameters(), settings)
    found = {
        (group["lr"], group["weight_decay"]): [p.shape for p in group["params"]] for group in groups
    }
    assert found == {
        (2e-3, 0.1): [(2, 2)],
        (2e-3, 0.0): [(2,)],
        (1e-3, 0.1): [(2, 2)],
        (1e-3, 0.0): [(2,)],
    }


def test_frozen_parameters_are_in_no_group():
    parts = model()
    parts["llm"].requires_grad_(False)
    settings = OptimizerSettings(learning_rate=1e-3)
    (group,) = parameter_groups(parts.named_parameters(), settings)
    assert len(group["params"]) == 2


def test_an_empty_set_is_refused():
    parts = model().requires_grad_(False)
    with pytest.raises(ValueError, match="no parameter trains"):
        adamw(parts.named_parameters(), OptimizerSettings(learning_rate=1e-3))


def test_warm_up_rises_to_one_and_the_cosine_falls_to_zero():
    factor = cosine_with_warmup(100, 0.1)
    assert [factor(step) for step in (0, 4, 9)] == pytest.approx([0.1, 0.5, 1.0])
    assert factor(10) == 1.0
    assert factor(55) == pytest.approx(0.5)
    assert 0 < factor(99) < 1e-3
    rates = [factor(step) for step in range(9, 100)]
    assert rates == sorted(rates, reverse=True)


def test_no_step_of_a_short_run_is_wasted():
    factor = cosine_with_warmup(2, 0.03)
    assert min(factor(0), factor(1)) > 0.4


@pytest.mark.parametrize("ratio", [-0.1, 1.0])
def test_a_warm_up_outside_its_range_is_refused(ratio):
    with pytest.raises(ValueError, match=r"stage\.optimizer\.warmup_ratio is .* in \[0, 1\)"):
        OptimizerSettings(learning_rate=1e-3, warmup_ratio=ratio)


def test_a_learning_rate_of_zero_is_refused():
    with pytest.raises(ValueError, match=r"stage\.optimizer\.learning_rate is 0; it must be above"):
        OptimizerSettings(learning_rate=0)
