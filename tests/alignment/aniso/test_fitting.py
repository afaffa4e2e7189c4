from dataclasses import dataclass, field, replace

import pytest
import torch

from revision.alignment.aniso.fitting import (
    Denoising,
    Loop,
    PhaseDifferences,
    Phases,
    Texts,
    fit_refiner,
    fit_score,
)
from revision.alignment.aniso.networks import LogScale, PhaseScore, Refiner
from revision.alignment.aniso.phases import phase_prior
from revision.alignment.aniso.polar import Polar
from revision.alignment.aniso.settings import Bounds, LossWeights, Perturbation, Training

BLOCKS, ROWS, DIM = 4, 256, 10
PLAN = Training(prior_steps=200, refine_steps=30, batch=128, learning_rate=3e-3)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def coupled(seed: int = 0, spread: float = 0.2) -> Polar:
    """A uniform phase that all others follow: nothing is known of a block alone."""
    generator = seeded(seed)
    first = 6.3 * torch.rand(ROWS, 1, generator=generator).double()
    phases = first + torch.arange(BLOCKS) + spread * torch.randn(ROWS, BLOCKS, generator=generator)
    radii = (0.3 * torch.randn(ROWS, BLOCKS, generator=generator)).exp().double()
    return Polar(radii, phases)


def parts(images: Polar) -> tuple[Denoising, Phases]:
    prior = phase_prior(images, 2, 1e-12).float32(torch.device("cpu"))
    scale = LogScale.of(images.radii.T.sort(1).values.contiguous())
    score = PhaseScore.of(scale, width=32, depth=2)
    rows = Phases(images.phases.float(), images.radii.log().float())
    return Denoising(prior, score, Perturbation()), rows


def refine(denoising: Denoising, score: torch.Tensor, rows: Phases, plan: Training, **options):
    residual = 0.1 * torch.randn(ROWS, DIM, generator=seeded(7))
    basis = torch.linalg.qr(torch.randn(DIM, 2 * BLOCKS, generator=seeded(8))).Q
    return fit_refiner(
        Refiner.of(denoising.score.scale, DIM, width=16, depth=2),
        denoising,
        score,
        Texts(rows.phases, rows.log_radii, residual),
        basis,
        bounds=options.get("bounds", Bounds()),
        weights=options.get("weights", LossWeights()),
        plan=plan,
        generator=seeded(1),
    )


def test_stage_one_learns_a_coupling_that_no_prior_free_score_knows():
    """Each phase alone is uniform, so without the prior the best score is zero: `null`."""
    denoising, rows = parts(coupled())
    parameters, history = fit_score(denoising, rows, PLAN, seeded())
    assert history["loss"][-1] < 0.75 * history["loss"][0]
    with torch.no_grad():
        _, fresh = parts(coupled(seed=5))
        loss, null = denoising(parameters, fresh.phases, fresh.log_radii, seeded(9))
    assert loss < 0.7 * null
    assert 0.8 * BLOCKS < null < BLOCKS


def test_stage_one_finds_nothing_in_independent_uniform_phases():
    phases = 6.3 * torch.rand(ROWS, BLOCKS, generator=seeded(3)).double()
    denoising, rows = parts(Polar(coupled().radii, phases))
    still = replace(denoising, perturbation=Perturbation(0.0, 1.0, 1.0))
    parameters, _ = fit_score(still, rows, PLAN, seeded())
    fresh = Phases(6.3 * torch.rand(ROWS, BLOCKS, generator=seeded(4)), rows.log_radii)
    with torch.no_grad():
        loss, null = still(parameters, fresh.phases, fresh.log_radii, seeded(9))
    assert loss > 0.95 * null


@dataclass(frozen=True)
class Listening(PhaseScore):
    """A score of zero that remembers what it was asked."""

    heard: list[torch.Tensor] = field(default_factory=list)

    def __call__(self, parameters, phases, log_radii, std):
        self.heard.extend([phases.detach(), log_radii.detach(), std])
        return 0 * phases


def test_the_score_is_asked_behind_a_drift_step_and_noise():
    """phi~ = phi - tau grad Psi(phi) + s eps, with the gradient taken by autograd here."""
    denoising, rows = parts(coupled())
    score = Listening(denoising.score.mlp, denoising.score.scale)
    phases = rows.phases.clone().requires_grad_()
    (slope,) = torch.autograd.grad(denoising.prior.potential(phases).sum(), phases)
    std, noise = denoising.perturbation.draw(phases.shape, seeded(2))
    loss, null = replace(denoising, score=score)(
        torch.zeros(1), rows.phases, rows.log_radii, seeded(2)
    )
    assert (score.heard[0] - (rows.phases - 0.1 * slope + noise)).abs().max() < 1e-5
    assert torch.equal(score.heard[1], rows.log_radii) and torch.equal(score.heard[2], std)
    assert loss == null > 0


def test_a_score_learns_through_the_phases_that_it_is_given_while_its_parameters_stay():
    denoising, rows = parts(coupled())
    frozen = denoising.score.mlp.initial(seeded(), zero_last=False)
    phases = rows.phases.clone().requires_grad_()
    loss, _ = denoising(frozen, phases, rows.log_radii, seeded(2))
    loss.backward()
    assert phases.grad is not None and phases.grad.abs().min(dim=1).values.max() > 0
    assert frozen.grad is None and not frozen.requires_grad


def test_stage_two_lowers_the_score_loss_of_texts_with_other_phases():
    denoising, rows = parts(coupled())
    score, _ = fit_score(denoising, rows, PLAN, seeded())
    _, off = parts(coupled(seed=6, spread=0.8))
    _, history = refine(denoising, score, off, replace(PLAN, refine_steps=150))
    relative = [s / n for s, n in zip(history["score"], history["null"], strict=True)]
    assert sum(relative[-20:]) < 0.97 * sum(relative[:20])
    assert history["proximal"][0] == 0 < history["proximal"][-1]


def test_no_loss_reaches_the_part_outside_the_frame():
    denoising, rows = parts(coupled())
    score, _ = fit_score(denoising, rows, replace(PLAN, prior_steps=20), seeded())
    parameters, _ = refine(denoising, score, rows, PLAN)
    mlp = Refiner.of(denoising.score.scale, DIM, width=16, depth=2).mlp
    last = parameters[-(16 + 1) * (2 * BLOCKS + DIM) :]
    bias, weight = last[: mlp.widths[-1]], last[mlp.widths[-1] :].view(-1, 16)
    assert (bias[2 * BLOCKS :] == 0).all() and (weight[2 * BLOCKS :] == 0).all()
    assert bias[: 2 * BLOCKS].abs().min() > 0


def test_phase_difference_loss_is_its_written_formula():
    denoising, rows = parts(coupled())
    turns = 0.2 * torch.randn(ROWS, BLOCKS, generator=seeded(3))
    pairs, radii, expected = denoising.prior.pairs.tolist(), rows.log_radii.exp(), 0.0
    total = sum(radii[:, k] * radii[:, l] for k, l in pairs)  # noqa: E741
    for k, l in pairs:  # noqa: E741
        share = radii[:, k] * radii[:, l] / total
        expected += (share * (1 - (turns[:, k] - turns[:, l]).cos())).mean() / len(pairs)
    found = PhaseDifferences.of(denoising.prior)(turns, rows.log_radii)
    assert float(found) == pytest.approx(float(expected), rel=1e-4)


def test_turning_all_blocks_together_costs_no_phase_difference():
    denoising, rows = parts(coupled())
    turns = torch.full((ROWS, BLOCKS), 0.2)
    assert PhaseDifferences.of(denoising.prior)(turns, rows.log_radii) == 0


def test_a_large_weight_keeps_phase_differences():
    denoising, rows = parts(coupled())
    score, _ = fit_score(denoising, rows, PLAN, seeded())
    ends = [
        refine(denoising, score, rows, PLAN, weights=LossWeights(weight, 0.0))[1]
        for weight in (0.0, 1e5)
    ]
    free, bound = (history["phase_differences"][-1] for history in ends)
    assert bound < 0.5 * free


def test_one_seed_gives_one_network_and_the_global_generator_is_left_alone():
    denoising, rows = parts(coupled())
    plan = replace(PLAN, prior_steps=5)
    before = torch.get_rng_state()
    first, second, other = (fit_score(denoising, rows, plan, seeded(s))[0] for s in (0, 0, 1))
    assert torch.equal(first, second) and not torch.equal(first, other)
    assert torch.equal(before, torch.get_rng_state())


def test_training_works_under_no_grad():
    denoising, rows = parts(coupled())
    with torch.no_grad():
        _, history = fit_score(denoising, rows, replace(PLAN, prior_steps=5), seeded())
    assert len(history["loss"]) == 5 == history["step"][-1]


def test_a_diverging_loss_is_refused():
    denoising, rows = parts(coupled())
    broken = replace(rows, log_radii=rows.log_radii + torch.inf)
    with pytest.raises(ValueError, match=r"not finite after 2 steps.*lower learning_rate"):
        fit_score(denoising, broken, PLAN, seeded())


def test_phase_differences_are_weighed_by_the_radii_before_refinement(monkeypatch):
    denoising, rows = parts(coupled())
    heard = []
    weighed = PhaseDifferences.__call__

    def listen(self, turns, log_radii):
        heard.append(log_radii.detach())
        return weighed(self, turns, log_radii)

    monkeypatch.setattr(PhaseDifferences, "__call__", listen)
    score = denoising.score.mlp.initial(seeded(), zero_last=False)
    refine(denoising, score, rows, replace(PLAN, refine_steps=5))
    assert all(torch.isin(radii, rows.log_radii).all() for radii in heard)


def test_unseen_rows_take_no_part_in_the_training():
    loop = Loop(PLAN, 5, 101, "test")
    assert sorted([*loop.seen.tolist(), *loop.unseen.tolist()]) == list(range(101))
    assert len(loop.unseen) == 11 and torch.isin(loop.probe, loop.unseen).all()


def test_the_averaged_parameters_are_kept():
    """After one step the average has gone nine tenths of it: Adam's first step is its rate."""
    start = torch.zeros(3)

    def terms(parameters, rows, draws):
        return {"loss": (parameters - 3.0).square().sum()}

    kept, history = Loop(PLAN, 1, 100, "test").minimise(terms, start, seeded())
    assert history["kept_step"] == 1
    assert kept.tolist() == pytest.approx([0.9 * PLAN.learning_rate] * 3, rel=1e-4)
