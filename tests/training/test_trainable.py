"""The trainable set: chosen by pattern, counted, and refused where a pattern means nothing."""

import pytest
import torch
from torch import nn

from revision.training.trainable import describe_trainable, select_trainable, trainable_names


def model():
    return nn.ModuleDict(
        {"projector": nn.Linear(2, 3), "llm": nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.5))}
    )


def test_patterns_choose_and_everything_else_is_frozen():
    parts = model()
    assert select_trainable(parts, ["projector.*"]) == ["projector.weight", "projector.bias"]
    assert select_trainable(parts, ["*.bias"]) == ["projector.bias", "llm.0.bias"]
    assert trainable_names(parts) == ["projector.bias", "llm.0.bias"]


def test_a_frozen_part_is_in_eval_mode():
    parts = model()
    select_trainable(parts, ["projector.*"])
    assert parts["projector"].training
    assert not parts["llm"].training
    ones = torch.ones(1, 3)
    assert torch.equal(parts["llm"](ones), parts["llm"](ones))


def test_a_pattern_that_matches_nothing_is_refused():
    with pytest.raises(ValueError, match=r"'connector\.\*' matches none of the model's 4 .*llm"):
        select_trainable(model(), ["projector.*", "connector.*"])


def test_the_table_counts_every_part():
    parts = model()
    select_trainable(parts, ["projector.*"])
    lines = describe_trainable(parts).splitlines()
    assert [line.split() for line in lines[1:]] == [
        ["projector", "9", "of", "9", "parameters", "train"],
        ["llm", "0", "of", "12", "parameters", "train"],
        ["total", "9", "of", "21", "parameters", "train"],
    ]
