"""Strategies: what is sharded, and what is refused. That they train is a law (test_laws.py)."""

import pytest
from torch import nn

from revision.training import strategies
from revision.training.strategies import _layers


def test_deepspeed_without_its_package_is_refused_in_one_sentence(monkeypatch):
    monkeypatch.setattr(strategies.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="needs the package deepspeed, which is not installed"):
        strategies.deepspeed(stage=2)


def test_layers_are_sharded_one_by_one_and_no_layer_inside_another():
    inner = nn.ModuleList([nn.Linear(1, 1)])
    outer = nn.ModuleList([nn.ModuleDict({"experts": inner}), nn.Linear(1, 1)])
    model = nn.ModuleDict({"layers": outer, "head": nn.Linear(1, 1)})
    assert _layers(model) == [outer[0], outer[1]]
