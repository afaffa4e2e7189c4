"""The two training loops of AnisoAlign: phase score of the images, then refinement of the texts.

    Stage I     L_I  = E[lambda_t |s_phi(phi~, t, log rho) - score|^2],      images only
    Stage II    L_II = the same at the refined phases theta^ and radii rho^ of texts, s_phi frozen
                L_Phi = (1/|E|) sum_{(k,l) in E} w_kl (1 - cos(turn_k - turn_l))
                objective = L_II + a L_Phi + b mean(tanh^2)
    phi~ = phi - tau grad Psi(phi) + s eps,   eps ~ N(0, I),   s = sqrt(2) sigma_t,   lambda_t = s^2
    score = d/dphi~ log q(phi~ | phi - tau grad Psi(phi), s^2)
    turn = theta^ - theta,    w_kl = rho_k rho_l / sum_E rho_u rho_v

s is log-uniform. The score depends on the noise alone, so g_eta learns only through the inputs of
s_phi and through the Jacobian of grad Psi: the parameters of s_phi take no gradient, its inputs do.
Phases enter only through sines and cosines, so they are wrapped only inside the score.

Source: arXiv:2605.07825, Sec. 4.2-4.4 and App. A.7-A.8. Not in the paper, hence ours: optimiser
(AdamW, constant rate), steps, batch, averaging of parameters, distribution of s, tau, the weights
a and b, the last term of the objective, which keeps the refinement small, and the choice of the
parameters by their loss on a tenth of the rows: 671 images are learnt by heart in 400 steps.
Take care: L_Phi carries both 1/|E| and weights w that sum to 1, so it is about 1/|E| of a mean over
pairs; with a = 1 it is negligible beside L_II, a sum over m blocks. No term depends on v^, so from
a last layer of zeros the change of v stays exactly zero. Both are the paper's.
Letters: theta, rho phases and radii of texts after initialisation, E pairs of the phase graph, Psi
its potential, v the part outside the frame, m blocks; ~ perturbed, ^ refined.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float32
from torch import Tensor

from revision.alignment.aniso.networks import PhaseScore, Refiner
from revision.alignment.aniso.phases import PhasePrior, wrapped_score
from revision.alignment.aniso.settings import Bounds, LossWeights, Perturbation, Training
from revision.progress import track

LOGGED = 100  # points of a loss curve
UNSEEN = 10  # one row in ten takes no part in the training
PROBED = 1024  # rows for a loss on unseen ones, repeated with other noise where there are fewer
EPSILON = 1e-8  # in float32

Terms = dict[str, Tensor]  # "loss" is minimised, the others are logged
Objective = Callable[[Tensor, Tensor, torch.Generator], Terms]  # of parameters, rows, and draws
History = dict[str, Any]  # of numbers and of lists of numbers, for JSON


@dataclass(frozen=True)
class Phases:
    """Phases and log radii of rows, in float32."""

    phases: Float32[Tensor, "n blocks"]
    log_radii: Float32[Tensor, "n blocks"]


@dataclass(frozen=True)
class Texts(Phases):
    """Initialised text rows: also their part outside the frame."""

    residual: Float32[Tensor, "n dim"]


@dataclass(frozen=True)
class Denoising:
    """L_I and L_II are this loss, of image phases and of refined text phases."""

    prior: PhasePrior
    score: PhaseScore
    perturbation: Perturbation

    def __call__(
        self, parameters: Tensor, phases: Tensor, log_radii: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """The loss, and that of a score of zero: what is possible without any prior."""
        draws = self.perturbation.draw(phases.shape, generator)
        std, noise = (t.to(phases.device) for t in draws)
        mean = phases - self.perturbation.drift_step * self.prior.drift(phases)
        wanted = std * wrapped_score(noise, std.square())
        found = self.score(parameters, mean + noise, log_radii, std)
        return (found - wanted).square().sum(1).mean(), wanted.square().sum(1).mean()


def fit_score(
    denoising: Denoising, images: Phases, plan: Training, generator: torch.Generator
) -> tuple[Float32[Tensor, " params"], History]:
    """Stage I: parameters of s_phi. History: `loss` is L_I, `null` that of a score of zero."""

    def terms(parameters: Tensor, rows: Tensor, draws: torch.Generator) -> Terms:
        loss, null = denoising(parameters, images.phases[rows], images.log_radii[rows], draws)
        return {"loss": loss, "null": null}

    start = denoising.score.mlp.initial(generator, zero_last=False).to(images.phases.device)
    loop = Loop(plan, plan.prior_steps, len(images.phases), "phase prior (aniso, stage I)")
    return loop.minimise(terms, start, generator)


def fit_refiner(
    refiner: Refiner,
    denoising: Denoising,
    score_parameters: Float32[Tensor, " score_params"],
    texts: Texts,
    basis: Float32[Tensor, "dim rank"],
    *,
    bounds: Bounds,
    weights: LossWeights,
    plan: Training,
    generator: torch.Generator,
) -> tuple[Float32[Tensor, " params"], History]:
    """Stage II: parameters of g_eta. History: `loss` is the objective, `score` L_II."""
    phase_loss = PhaseDifferences.of(denoising.prior)
    frozen = score_parameters.detach().requires_grad_(False)

    def terms(parameters: Tensor, rows: Tensor, draws: torch.Generator) -> Terms:
        phases, log_radii = texts.phases[rows], texts.log_radii[rows]
        changes = refiner(parameters, phases, log_radii, texts.residual[rows], basis)
        turn, stretch = bounds.phase * changes[0], bounds.radius * changes[1]
        score, null = denoising(frozen, phases + turn, log_radii + stretch, draws)
        kept = phase_loss(turn, log_radii)
        proximal = torch.cat(changes, dim=1).square().mean()
        loss = score + weights.phase_differences * kept + weights.proximal * proximal
        named = {"score": score, "null": null, "phase_differences": kept, "proximal": proximal}
        return {"loss": loss} | named

    start = refiner.mlp.initial(generator, zero_last=True).to(texts.phases.device)
    loop = Loop(plan, plan.refine_steps, len(texts.phases), "refinement (aniso, stage II)")
    return loop.minimise(terms, start, generator)


@dataclass(frozen=True)
class PhaseDifferences:
    """L_Phi. Products with one-hot columns pick the pairs, which is reproducible on a GPU too."""

    first: Float32[Tensor, "blocks edges"]
    second: Float32[Tensor, "blocks edges"]

    @classmethod
    def of(cls, prior: PhasePrior) -> "PhaseDifferences":
        one_hot = torch.eye(len(prior.anchors), device=prior.anchors.device)
        return cls(*(one_hot[:, column] for column in prior.pairs.unbind(1)))

    def __call__(
        self, turns: Float32[Tensor, "n blocks"], log_radii: Float32[Tensor, "n blocks"]
    ) -> Float32[Tensor, ""]:
        """Of turns theta^ - theta; weights from the radii before refinement."""
        radii = log_radii.exp()
        products = (radii @ self.first) * (radii @ self.second)
        shares = products / (products.sum(1, keepdim=True) + EPSILON)
        bends = 2 * (turns @ (self.first - self.second) / 2).sin().square()  # 1 - cos
        return (shares * bends).sum(1).mean() / max(self.first.shape[1], 1)


class Loop:
    """AdamW on nine rows in ten; the averaged parameters that do best on the tenth are kept."""

    def __init__(self, plan: Training, steps: int, num_rows: int, description: str) -> None:
        places = torch.arange(num_rows)
        self.plan, self.steps, self.description = plan, steps, description
        self.unseen, self.seen = places[::UNSEEN], places[places % UNSEEN != 0]
        self.probe = self.unseen.repeat(-(-PROBED // len(self.unseen)))[:PROBED]

    @torch.enable_grad()
    def minimise(
        self, terms: Objective, start: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, History]:
        """The parameters, and every term averaged between log points with the loss on the probe."""
        began = time.perf_counter()
        parameters, average = start.clone().requires_grad_(), start.clone()
        optimiser = torch.optim.AdamW([parameters], lr=self.plan.learning_rate)
        kept = Kept(start.clone(), self._unseen_loss(terms, start))
        history: History = {"unseen_at_start": kept.loss, "step": []}
        sums: list[Terms] = []
        for step in track(range(1, self.steps + 1), self.description):
            found = terms(parameters, self._batch(generator), generator)
            optimiser.zero_grad()
            found["loss"].backward()
            optimiser.step()
            decay = min(self.plan.ema, step / (9 + step))  # a short run must forget its start
            average.lerp_(parameters.detach(), 1 - decay)
            sums.append({name: value.detach() for name, value in found.items()})
            if step % max(1, self.steps // LOGGED) == 0 or step == self.steps:
                unseen = self._unseen_loss(terms, average)
                kept = kept if kept.loss <= unseen else Kept(average.clone(), unseen, step)
                _log(history, step, sums, unseen)
                sums = []
        history |= {"kept_step": kept.step, "seconds": time.perf_counter() - began}
        return kept.parameters, history

    def _batch(self, generator: torch.Generator) -> Tensor:
        size = min(self.plan.batch, len(self.seen))
        return self.seen[torch.randint(len(self.seen), (size,), generator=generator)]

    @torch.no_grad()
    def _unseen_loss(self, terms: Objective, parameters: Tensor) -> float:
        """Always with the same noise, so that two of them can be compared."""
        return float(terms(parameters, self.probe, torch.Generator().manual_seed(0))["loss"])


@dataclass(frozen=True)
class Kept:
    """The best parameters so far, by their loss on unseen rows; step 0 is the start."""

    parameters: Tensor
    loss: float
    step: int = 0


def _log(history: History, step: int, terms: list[Terms], unseen: float) -> None:
    means = {name: float(torch.stack([t[name] for t in terms]).mean()) for name in terms[0]}
    if not all(map(math.isfinite, means.values())):
        raise ValueError(
            f"the losses are not finite after {step} steps ({means}); lower learning_rate, or the "
            "map would be one of numbers that mean nothing"
        )
    for name, value in {"step": step, "unseen": unseen, **means}.items():
        history.setdefault(name, []).append(value)
