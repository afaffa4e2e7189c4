"""The loss is a sum with its count: parts add up to the whole."""

import torch
from torch.nn import functional

from revision.models.loss import cross_entropy_sum

GENERATOR = torch.Generator().manual_seed(0)
LOGITS = torch.randn(7, 11, generator=GENERATOR)
TARGETS = torch.randint(11, (7,), generator=GENERATOR)


def test_mean_is_the_usual_cross_entropy():
    loss = cross_entropy_sum(LOGITS, TARGETS)
    assert torch.allclose(loss.mean, functional.cross_entropy(LOGITS, TARGETS))
    assert loss.num_targets == 7


def test_parts_add_up():
    parts = [cross_entropy_sum(LOGITS[a:b], TARGETS[a:b]) for a, b in [(0, 2), (2, 7)]]
    whole = cross_entropy_sum(LOGITS, TARGETS)
    assert torch.allclose(parts[0].loss + parts[1].loss, whole.loss)
    assert sum(part.num_targets for part in parts) == whole.num_targets


def test_half_precision_logits_are_summed_in_float32():
    assert cross_entropy_sum(LOGITS.bfloat16(), TARGETS).loss.dtype == torch.float32


def test_no_target_is_a_zero_with_a_zero_gradient():
    logits = LOGITS.clone().requires_grad_()
    loss = cross_entropy_sum(logits[:0], TARGETS[:0])
    loss.loss.backward()
    assert loss.loss == 0
    assert loss.mean == 0
    assert torch.equal(logits.grad, torch.zeros_like(LOGITS))
