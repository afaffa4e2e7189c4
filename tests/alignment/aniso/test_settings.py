import pytest
import torch

from revision.alignment.aniso.settings import (
    Bounds,
    LossWeights,
    Perturbation,
    Training,
    read_group,
)


def test_given_numbers_replace_defaults_and_whole_numbers_become_floats():
    assert read_group(Bounds, {"phase": 1}) == Bounds(phase=1.0)
    assert read_group(Training, None) == Training()


def test_an_unknown_name_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="Bounds has no phases; it has phase, radius, residual"):
        read_group(Bounds, {"phases": 0.1})


@pytest.mark.parametrize(
    ("kind", "given", "message"),
    [
        (Training, {"batch": 0}, "steps of 0 rows"),
        (Training, {"prior_steps": -1}, "-1 and 20000 steps"),
        (Training, {"ema": 1.0}, "ema in"),
        (Training, {"learning_rate": 0.0}, "learning_rate must be > 0"),
        (Perturbation, {"smallest_std": 2.0}, "from 2.0 to 1.5"),
        (Perturbation, {"largest_std": 9.0}, "beyond which phases are uniform"),
        (Bounds, {"radius": -0.1}, "must not be negative"),
        (LossWeights, {"proximal": -1.0}, "rewards what it should prevent"),
    ],
)
def test_numbers_that_cannot_work_are_refused(kind, given, message):
    with pytest.raises(ValueError, match=message):
        read_group(kind, given)


def test_noise_has_the_deviation_that_is_drawn_with_it():
    draws = Perturbation().draw(torch.Size([20000, 2]), torch.Generator().manual_seed(0))
    std, noise = draws
    assert 0.05 <= std.min() < 0.06 and 1.4 < std.max() <= 1.5
    assert (noise / std).std() == pytest.approx(1.0, abs=0.02)
    assert std.log().mean() == pytest.approx(
        float(torch.tensor([0.05, 1.5]).log().mean()), abs=0.03
    )
