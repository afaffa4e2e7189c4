import math

import torch

from revision.alignment.aniso.networks import MLP, LogScale, PhaseScore, Refiner

BLOCKS, DIM = 4, 11


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def scale() -> LogScale:
    return LogScale.of(torch.rand(BLOCKS, 9, generator=seeded(1)).sort(1).values.double() + 0.1)


def state(count: int = 7) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = seeded(2)
    shapes = (count, BLOCKS), (count, BLOCKS), (count, DIM)
    phases, log_radii, residual = (torch.randn(s, generator=generator) for s in shapes)
    return phases, log_radii, residual


def test_an_mlp_is_torchs_linear_layers():
    mlp = MLP((3, 8, 2))
    parameters = mlp.initial(seeded(), zero_last=False)
    first, second = torch.nn.Linear(3, 8), torch.nn.Linear(8, 2)
    pieces = parameters.split([8, 24, 2, 16])
    for layer, bias, weight in ((first, *pieces[:2]), (second, *pieces[2:])):
        layer.load_state_dict({"bias": bias, "weight": weight.view_as(layer.weight)})
    inputs = torch.randn(5, 3, generator=seeded(3))
    assert torch.equal(mlp(parameters, inputs), second(torch.nn.functional.silu(first(inputs))))


def test_phase_score_is_periodic_in_each_phase():
    network = PhaseScore.of(scale(), width=16, depth=2)
    parameters = network.mlp.initial(seeded(), zero_last=False).double()
    phases, log_radii, _ = (t.double() for t in state())
    std = torch.full((7, 1), 0.3).double()
    here = network(parameters, phases, log_radii, std)
    for block in range(BLOCKS):
        turned = phases.clone()
        turned[:, block] += 2 * math.pi
        assert (network(parameters, turned, log_radii, std) - here).abs().max() < 1e-12
    assert here.abs().max() > 1e-3


def test_phase_score_reads_its_two_heads_against_sine_and_cosine():
    """-o_1 sin phi + o_2 cos phi, with heads that are constants."""
    network = PhaseScore.of(scale(), width=16, depth=2)
    parameters = network.mlp.initial(seeded(), zero_last=True).double()
    heads = torch.arange(1.0, 2 * BLOCKS + 1).double()
    parameters[-17 * 2 * BLOCKS :][: 2 * BLOCKS] = heads  # the last layer's bias
    phases, log_radii, _ = (t.double() for t in state())
    found = network(parameters, phases, log_radii, torch.full((7, 1), 0.3).double())
    expected = -heads[:BLOCKS] * phases.sin() + heads[BLOCKS:] * phases.cos()
    assert (found - expected).abs().max() < 1e-12


def test_phase_score_hears_the_radii_and_the_noise_level():
    network = PhaseScore.of(scale(), width=16, depth=2)
    parameters = network.mlp.initial(seeded(), zero_last=False)
    phases, log_radii, _ = state()
    std = torch.full((7, 1), 0.3)
    here = network(parameters, phases, log_radii, std)
    assert not torch.allclose(here, network(parameters, phases, log_radii + 1, std))
    assert not torch.allclose(here, network(parameters, phases, log_radii, 2 * std))


def test_refiner_starts_with_no_change_at_all():
    network = Refiner.of(scale(), DIM, width=16, depth=2)
    basis = torch.linalg.qr(torch.randn(DIM, 2 * BLOCKS, generator=seeded(4))).Q
    parameters = network.mlp.initial(seeded(), zero_last=True)
    assert all((change == 0).all() for change in network(parameters, *state(), basis))


def test_refiner_is_bounded_and_what_it_adds_outside_has_no_part_in_the_frame():
    network = Refiner.of(scale(), DIM, width=16, depth=2)
    basis = torch.linalg.qr(torch.randn(DIM, 2 * BLOCKS, generator=seeded(4))).Q
    parameters = network.mlp.initial(seeded(), zero_last=False)
    _, _, outside = network(parameters, *state(), basis)
    assert (outside.atanh() @ basis).abs().max() < 1e-6 < outside.abs().max()
    changes = network(50 * parameters, *state(), basis)
    assert all(0.5 < change.abs().max() <= 1 for change in changes)


def test_log_scale_standardises_what_its_quantiles_describe():
    radii = torch.randn(3001, 2, generator=seeded(5)).mul(0.4).exp().double()
    levels = torch.linspace(0, 1, 201, dtype=torch.float64)
    standard = LogScale.of(torch.quantile(radii, levels, dim=0).T)(radii.log())
    assert standard.mean(0).abs().max() < 0.05 and (standard.std(0) - 1).abs().max() < 0.05
