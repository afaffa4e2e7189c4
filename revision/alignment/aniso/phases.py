"""The phase prior of the images: statistics, potential, drift, and the wrapped Gaussian's score.

    M_kl = E[exp(i (theta_k - theta_l))],   A_kl = |M_kl|,   eta_kl = arg M_kl = -eta_lk
    psi_k = arg E[exp(i theta_k)],          alpha_k = E[rho_k^2] / (sum_u E[rho_u^2] + e)
    E: for each k the p largest A_kl, l != k; the union of these undirected pairs
    Psi(phi) = sum_k alpha_k (1 - cos(phi_k - psi_k))
             + sum_{(k,l) in E} A_kl (1 - cos(phi_k - phi_l - eta_kl))
    [grad Psi]_k = alpha_k sin(phi_k - psi_k) + sum_{l: (k,l) in E} A_kl sin(phi_k - phi_l - eta_kl)
    log q(delta) = log sum_n N(delta + 2 pi n; 0, v),        n = -3 .. 3
    score        = -(1/v) sum_n w_n (delta + 2 pi n),        w = softmax_n(-(delta + 2 pi n)^2 / 2v)

With u_k = exp(i phi_k) and G_kl = A_kl exp(i eta_kl) on E, the second sum of the drift is
Im(u_k conj((G u)_k)): two real m x m products a batch instead of a table of n x m x m.

Source: arXiv:2605.07825, Sec. 4.2 and App. A.7; the sum over n has seven terms as in
KingJamesSong/OrientationDiffusion@1c9af47. p is ours (4), the paper gives none.
Take care: phases are taken about the origin, so two phases that are independent of each other but
both lean towards their own mean direction have A_kl = |E e^{i theta_k}| |E e^{i theta_l}| > 0, and
independent uniform phases of N rows still have A_kl of about 1/sqrt(N). The p largest A_kl then
choose the blocks that lean most, as neighbours of nearly all others; such a hub of 100 pairs makes
a step of tau = 0.1 overshoot. `strength` gives all three numbers.
Letters: theta image phases, rho image radii, phi phases, delta offset from the mean phase, v
variance, m blocks, n rows (or winding number, in the sums over n).
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from revision.alignment.aniso.polar import Polar

WINDINGS = 3


@dataclass(frozen=True)
class PhasePrior:
    """Anchors psi, their weights alpha, couplings A (0 off the graph), lags eta, pairs k < l."""

    anchors: Float[Tensor, " blocks"]
    weights: Float[Tensor, " blocks"]
    couplings: Float[Tensor, "blocks blocks"]
    lags: Float[Tensor, "blocks blocks"]
    pairs: Int64[Tensor, "edges 2"]

    def float32(self, device: torch.device) -> "PhasePrior":
        """The same on `device`, for training."""
        return PhasePrior(
            anchors=self.anchors.to(device, torch.float32),
            weights=self.weights.to(device, torch.float32),
            couplings=self.couplings.to(device, torch.float32),
            lags=self.lags.to(device, torch.float32),
            pairs=self.pairs.to(device),
        )

    def potential(self, phases: Float[Tensor, "n blocks"]) -> Float[Tensor, " n"]:
        """Psi of each row."""
        first, second = self.pairs.unbind(1)
        bends = phases[:, first] - phases[:, second] - self.lags[first, second]
        anchored = (1 - (phases - self.anchors).cos()) @ self.weights
        return anchored + (1 - bends.cos()) @ self.couplings[first, second]

    def drift(self, phases: Float[Tensor, "n blocks"]) -> Float[Tensor, "n blocks"]:
        """Gradient of Psi at each row."""
        cos, sin = phases.cos(), phases.sin()
        real, imaginary = self.couplings * self.lags.cos(), self.couplings * self.lags.sin()
        near_cos = cos @ real.T - sin @ imaginary.T
        near_sin = sin @ real.T + cos @ imaginary.T
        pulled = sin * near_cos - cos * near_sin
        return self.weights * (phases - self.anchors).sin() + pulled


def phase_prior(images: Polar, neighbours: int, epsilon: float) -> PhasePrior:
    """Statistics of image phases; `neighbours` is p."""
    cos, sin = images.phases.cos(), images.phases.sin()
    count = len(cos)
    real, imaginary = (cos.T @ cos + sin.T @ sin) / count, (sin.T @ cos - cos.T @ sin) / count
    strengths = torch.hypot(real, imaginary)
    linked = _graph(strengths, neighbours)
    energy = images.radii.square().mean(0)
    return PhasePrior(
        anchors=torch.atan2(sin.mean(0), cos.mean(0)),
        weights=energy / (energy.sum() + epsilon),
        couplings=strengths * linked,
        lags=torch.atan2(imaginary, real),
        pairs=torch.triu(linked, diagonal=1).nonzero(),
    )


def strength(images: Polar, prior: PhasePrior) -> dict[str, float]:
    """Mean A_kl on the graph beside what unrelated phases would show; a tau that surely descends.

    2 / (max alpha + 2 max_k sum_l A_kl) bounds the curvature of Psi: beyond about that tau a drift
    step may climb instead.
    """
    first, second = prior.pairs.unbind(1)
    leaning = torch.hypot(images.phases.cos().mean(0), images.phases.sin().mean(0))
    return {
        "pairs": float(len(prior.pairs)),
        "coupling": float(prior.couplings[first, second].mean()),
        "coupling_if_independent": float((leaning[first] * leaning[second]).mean()),
        "coupling_by_chance": 1 / math.sqrt(len(images.phases)),
        "safe_drift_step": 2 / float(prior.weights.max() + 2 * prior.couplings.sum(1).max()),
    }


def wrap(angles: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """The same angles in [-pi, pi)."""
    return torch.remainder(angles + math.pi, 2 * math.pi) - math.pi


def wrapped_score(
    offsets: Float[Tensor, "*shape"], variances: Float[Tensor, "*broadcast"]
) -> Float[Tensor, "*shape"]:
    """Derivative of the wrapped Gaussian's log density at `offsets` from its mean."""
    turns = torch.arange(-WINDINGS, WINDINGS + 1, dtype=offsets.dtype, device=offsets.device)
    images = wrap(offsets)[..., None] + 2 * math.pi * turns
    shares = torch.softmax(-images.square() / (2 * variances[..., None]), dim=-1)
    return -(shares * images).sum(-1) / variances


def _graph(strengths: Float64[Tensor, "blocks blocks"], neighbours: int) -> Tensor:
    """Symmetric 0/1 matrix: k and l are linked if l is among the p strongest of k, or k of l."""
    others = strengths.clone().fill_diagonal_(-1.0)
    order = others.sort(dim=1, descending=True, stable=True).indices[:, :neighbours]
    chosen = torch.zeros_like(strengths).scatter_(1, order, 1.0)
    return torch.maximum(chosen, chosen.T)
