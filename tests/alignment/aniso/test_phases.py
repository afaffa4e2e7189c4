import math

import numpy as np
import pytest
import torch

from revision.alignment.aniso.phases import PhasePrior, phase_prior, strength, wrap, wrapped_score
from revision.alignment.aniso.polar import Polar


def polar(seed: int, count: int = 200, blocks: int = 6, lag: float = 0.7) -> Polar:
    """Phases of which the first three follow each other with a lag; the others lean to 0."""
    rng = np.random.default_rng(seed)
    phases = 0.8 * rng.standard_normal((count, blocks))
    phases[:, 1:3] = phases[:, :1] - lag + 0.3 * rng.standard_normal((count, 2))
    radii = np.exp(0.3 * rng.standard_normal((count, blocks)))
    return Polar(torch.tensor(radii), wrap(torch.tensor(phases)))


@pytest.fixture
def prior() -> PhasePrior:
    return phase_prior(polar(0), 2, 1e-12)


def test_drift_is_the_gradient_of_the_potential_by_autograd(prior):
    phases = polar(1, 20).phases.requires_grad_()
    (gradient,) = torch.autograd.grad(prior.potential(phases).sum(), phases)
    assert (gradient - prior.drift(phases)).abs().max() < 1e-12


def test_drift_is_the_gradient_of_the_potential_by_differences(prior):
    phases, step = polar(1, 5).phases, 1e-5
    for block in range(6):
        shift = step * torch.eye(6, dtype=torch.float64)[block]
        slope = (prior.potential(phases + shift) - prior.potential(phases - shift)) / (2 * step)
        assert (slope - prior.drift(phases)[:, block]).abs().max() < 1e-7


def test_potential_is_its_written_formula(prior):
    """Summed term by term, from statistics by complex means."""
    images, phi = polar(0), polar(2, 1).phases[0]
    turns = torch.exp(1j * images.phases)
    moments = (turns[:, :, None] * turns[:, None, :].conj()).mean(0)
    energy = images.radii.square().mean(0)
    expected = (energy / energy.sum() * (1 - (phi - turns.mean(0).angle()).cos())).sum()
    for k, l in prior.pairs.tolist():  # noqa: E741
        bend = phi[k] - phi[l] - moments[k, l].angle()
        expected = expected + moments[k, l].abs() * (1 - bend.cos())
    assert abs(float(prior.potential(phi[None])[0] - expected)) < 1e-12


def test_lags_are_antisymmetric_and_the_graph_has_no_loops(prior):
    off = ~torch.eye(6, dtype=torch.bool)
    assert (prior.lags + prior.lags.T)[off].abs().max() < 1e-15
    assert torch.equal(prior.couplings, prior.couplings.T)
    assert (prior.couplings.diagonal() == 0).all() and (prior.pairs[:, 0] < prior.pairs[:, 1]).all()


def test_every_block_keeps_its_strongest_neighbours(prior):
    phases = polar(0).phases
    strengths = torch.exp(1j * (phases[:, :, None] - phases[:, None, :])).mean(0).abs()
    for block, row in enumerate(strengths.fill_diagonal_(0)):
        assert (prior.couplings[block, row.topk(2).indices] > 0).all()


def test_a_lag_between_two_blocks_is_found(prior):
    assert float(prior.lags[0, 1]) == pytest.approx(0.7, abs=0.1)
    assert {(0, 1), (0, 2)} <= set(map(tuple, prior.pairs.tolist()))


def test_coupling_of_independent_phases_is_their_leaning_and_no_more():
    """Phases that lean towards 0 on their own look coupled: A_kl is no evidence by itself."""
    rng = np.random.default_rng(5)
    phases = torch.tensor(0.8 * rng.standard_normal((4000, 6)))
    images = Polar(torch.ones_like(phases), phases)
    numbers = strength(images, phase_prior(images, 2, 1e-12))
    assert numbers["coupling"] > 0.4 > 10 * numbers["coupling_by_chance"]
    assert numbers["coupling"] == pytest.approx(numbers["coupling_if_independent"], abs=0.02)


def test_a_safe_step_descends_and_a_hub_makes_a_larger_one_climb():
    """30 blocks with lag 0 to block 0: the potential's curvature there is 30."""
    blocks = 31
    couplings = torch.zeros(blocks, blocks, dtype=torch.float64)
    couplings[0, 1:] = couplings[1:, 0] = 1.0
    zeros = torch.zeros(blocks, dtype=torch.float64)
    pairs = torch.triu(couplings).nonzero()
    star = PhasePrior(zeros, zeros + 1 / blocks, couplings, torch.zeros_like(couplings), pairs)
    phases = polar(6, 100, blocks).phases
    safe = strength(Polar(torch.ones_like(phases), phases), star)["safe_drift_step"]
    before = star.potential(phases)
    assert (star.potential(phases - safe * star.drift(phases)) <= before).all()
    assert (star.potential(phases - 0.2 * star.drift(phases)) > before).double().mean() > 0.5


def test_wrap_keeps_the_angle_and_ends_in_its_interval():
    angles = torch.linspace(-20, 20, 999, dtype=torch.float64)
    wrapped = wrap(angles)
    assert (wrapped >= -math.pi).all() and (wrapped < math.pi).all()
    assert (torch.exp(1j * angles) - torch.exp(1j * wrapped)).abs().max() < 1e-13


def log_density(offset: float, variance: float) -> float:
    """The wrapped Gaussian's, with many more windings than the code under test."""
    images = offset + 2 * math.pi * np.arange(-40, 41)
    return float(np.log(np.exp(-(images**2) / (2 * variance)).sum()))


@pytest.mark.parametrize("std", [0.05, 0.4, 1.5])
def test_score_is_the_derivative_of_the_wrapped_log_density(std):
    step, widest = 1e-5, min(3.1, 20 * std)
    for offset in np.linspace(-widest, widest, 9):
        slope = log_density(offset + step, std**2) - log_density(offset - step, std**2)
        found = wrapped_score(torch.tensor([offset]), torch.tensor([std**2]).double())
        assert float(found) == pytest.approx(slope / (2 * step), rel=1e-6, abs=1e-7)


def test_score_is_periodic():
    offsets, variance = polar(3, 10).phases, torch.tensor(1.0).double()
    shifted = wrapped_score(offsets + 2 * math.pi, variance)
    assert (shifted - wrapped_score(offsets, variance)).abs().max() < 1e-13
