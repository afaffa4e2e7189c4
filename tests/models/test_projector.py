"""The projector: one row becomes the right number of tokens, as the public code makes them."""

import pytest
import torch

from revision.models.projector import Projector

ROWS = torch.randn(3, 1, 5, generator=torch.Generator().manual_seed(0))


def test_repeat_equals_projecting_every_copy():
    projector = Projector(5, 4, tokens="repeat", num_tokens=576)
    upstream = projector.layers(ROWS.expand(3, 576, 5))
    assert torch.allclose(projector(ROWS), upstream, atol=1e-6)
    assert projector(ROWS).shape == (3, 576, 4)


def test_repeat_projects_each_row_once():
    projector = Projector(5, 4, tokens="repeat", num_tokens=576)
    seen = []
    projector.layers.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].shape))
    projector(ROWS)
    assert seen == [(3, 1, 5)]


@pytest.mark.parametrize("kind", ["linear", "mlp2x_gelu"])
def test_expand_gives_distinct_tokens_of_the_same_row(kind):
    projector = Projector(5, 4, kind, tokens="expand", num_tokens=3)
    tokens = projector(ROWS)
    assert tokens.shape == (3, 3, 4)
    assert not torch.allclose(tokens[:, 0], tokens[:, 1])
    assert torch.allclose(projector(ROWS[1:2]), tokens[1:2], atol=1e-6)


def test_many_rows_stay_in_order():
    projector = Projector(5, 4, tokens="repeat", num_tokens=2)
    tokens = projector(ROWS.transpose(0, 1))
    single = projector.layers(ROWS[:, 0])
    assert torch.allclose(tokens[0], single.repeat_interleave(2, 0), atol=1e-6)


def test_mlp2x_gelu_is_the_public_architecture():
    names = {name: tuple(p.shape) for name, p in Projector(5, 4).layers.named_parameters()}
    assert names == {"0.weight": (4, 5), "0.bias": (4,), "2.weight": (4, 4), "2.bias": (4,)}


def test_options_rebuild_it():
    projector = Projector(5, 4, "linear", "expand", 3)
    again = Projector(**projector.options())
    again.load_state_dict(projector.state_dict())
    assert torch.equal(again(ROWS), projector(ROWS))


def test_refusals():
    with pytest.raises(ValueError, match="unknown projector kind 'mlp3'"):
        Projector(5, 4, "mlp3")
    with pytest.raises(ValueError, match="unknown tokens='repeat:576'"):
        Projector(5, 4, tokens="repeat:576")
    with pytest.raises(ValueError, match="tokens='single' cannot make num_tokens=4"):
        Projector(5, 4, tokens="single", num_tokens=4)


def test_match_scale_starts_at_the_size_of_the_embeddings() -> None:
    projector = Projector(64, 32, tokens="expand", num_tokens=4, scale_input=True)
    projector.match_scale(0.13)
    rows = torch.nn.functional.normalize(torch.randn(500, 1, 64), dim=-1)
    assert abs(projector(rows).square().mean().sqrt().item() / 0.13 - 1) < 0.05


def test_scaled_input_is_the_scaled_row() -> None:
    projector = Projector(16, 4, "linear")
    scaled = Projector(16, 4, "linear", scale_input=True)
    scaled.load_state_dict(projector.state_dict())
    rows = torch.randn(3, 1, 16)
    assert torch.equal(scaled(rows), projector(rows * 4))
