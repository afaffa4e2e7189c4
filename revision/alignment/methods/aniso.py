"""AnisoAlign: the closed-form initialisation, refined by two small trained networks.

    Stage I     phase prior and its score s_phi, from images only, then frozen
    Stage II    (dtheta, drho, dv) = tanh g_eta(theta', log rho', v'), from texts only
                theta^ = theta' + a_theta dtheta,    rho^_k = rho'_k exp(a_rho drho_k)
                v^     = v' + a_v P_V tanh(P_V ..)
    e' = Norm(Q_U c^ + v^),    z = Norm(e' - mean(e') + mu_x)

The losses are in `aniso/fitting.py`, the phase prior in `aniso/phases.py`, the primed initial state
in `methods/aniso_init.py`. g_eta ends with a layer of zeros: before training the map is aniso_init,
bit for bit. Unpaired. Cost: aniso_init's, one more pass over each modality, and the training: a
step of 1024 rows took 0.19 s of one CPU core in stage I and 0.36 s (D = 256) or 0.52 s (D = 1280)
in stage II. The default 20,000 steps of 4096 rows are for a GPU: by those numbers about 16 hours of
such a core. Memory: max_rows x (r + D) float32 for texts (614 MB at 100,000, r 256, D 1280).

Source: arXiv:2605.07825, Sec. 4 and App. A.7-A.8; it has no public code.
Departs from the paper: P_V tanh(..) where the paper has tanh alone, which leaves V; phases are not
wrapped, since only their sines and cosines are used.
Not in the paper, hence ours: every default below, both architectures, the weights of the losses and
the proximal term. Take care: no loss depends on v^, so dv stays exactly 0 (see `aniso/fitting.py`).
The paper's own table puts the initialisation below ReAlign; only the losses lift it above.
`history` holds loss curves, seconds and the strength of the phase prior of the last fit.
Letters: as in `methods/aniso_init.py`; a bounds, ^ refined.
"""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch
from jaxtyping import Float64
from torch import Tensor, nn

from revision.alignment.aniso.fitting import Denoising, Phases, Texts, fit_refiner, fit_score
from revision.alignment.aniso.networks import LogScale, PhaseScore, Refiner
from revision.alignment.aniso.phases import PhasePrior, phase_prior, strength
from revision.alignment.aniso.polar import Polar
from revision.alignment.aniso.sampling import sampled
from revision.alignment.aniso.settings import (
    Bounds,
    LossWeights,
    Perturbation,
    Training,
    read_group,
)
from revision.alignment.base import Cloud
from revision.alignment.covariance import TILE_ROWS
from revision.alignment.methods.aniso_init import AnisoInit, Rotation

Numbers = Mapping[str, int | float]


class AnisoAlign(AnisoInit):
    """AnisoAlign with both stages of training.

    `neighbours` is p of the phase graph. `training`, `perturbation`, `bounds` and `weights` replace
    defaults by name (`aniso/settings.py`). `seed` decides batches, noise and both networks, and
    leaves torch's global generator alone.
    """

    name = "aniso"
    buffer_names = (*AnisoInit.buffer_names, "refiner")
    refiner: Tensor  # parameters of g_eta, float32

    def __init__(
        self,
        *,
        rank: int | None = None,
        num_quantiles: int = 513,
        rotation: Rotation = "identity",
        seed: int = 0,
        epsilon: float = 1e-12,
        max_rows: int = 100_000,
        centroid: bool = True,
        neighbours: int = 4,
        width: int = 1024,
        depth: int = 3,
        training: Numbers | None = None,
        perturbation: Numbers | None = None,
        bounds: Numbers | None = None,
        weights: Numbers | None = None,
    ) -> None:
        super().__init__(
            rank=rank,
            num_quantiles=num_quantiles,
            rotation=rotation,
            seed=seed,
            epsilon=epsilon,
            max_rows=max_rows,
            centroid=centroid,
        )
        if min(neighbours, width, depth) < 1:
            raise ValueError(
                f"neighbours {neighbours}, width {width} and depth {depth} must be at least 1"
            )
        self.neighbours, self.width, self.depth = neighbours, width, depth
        self.plan = read_group(Training, training)
        self.perturbation = read_group(Perturbation, perturbation)
        self.bounds, self.weights = read_group(Bounds, bounds), read_group(LossWeights, weights)
        self.history: dict[str, Any] = {}

    def options(self) -> dict[str, Any]:
        own = {"neighbours": self.neighbours, "width": self.width, "depth": self.depth}
        groups = {
            "training": asdict(self.plan),
            "perturbation": asdict(self.perturbation),
            "bounds": asdict(self.bounds),
            "weights": asdict(self.weights),
        }
        return super().options() | own | groups

    def estimate(self, source: Cloud, target: Cloud) -> None:
        """As aniso_init, then both stages of training on the device that there is."""
        super().estimate(source, target)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        generator = torch.Generator().manual_seed(self.seed)
        images = self._image_polar(target)
        exact = phase_prior(images, self.neighbours, self.epsilon)
        denoising = Denoising(exact.float32(device), self._score(device), self.perturbation)
        score, stage_one = fit_score(denoising, _phases(images, device), self.plan, generator)
        texts = self._texts(source, device)
        refined, stage_two = fit_refiner(
            self._refiner(device),
            denoising,
            score,
            texts,
            self.basis.to(device, torch.float32),
            bounds=self.bounds,
            weights=self.weights,
            plan=self.plan,
            generator=generator,
        )
        self.refiner = refined.cpu()
        self.history = {
            "stage_one": stage_one,
            "stage_two": stage_two,
            "phase_prior": strength(images, exact),
            "potential": self._potentials(exact, images, texts),
        }

    def place(self, rows: Float64[Tensor, "n dim"]) -> Float64[Tensor, "n dim"]:
        return self._assembled(*self.refined(*self.initial(rows)))

    def refined(
        self, polar: Polar, residual: Float64[Tensor, "n dim"]
    ) -> tuple[Polar, Float64[Tensor, "n dim"]]:
        """(rho^, theta^) and v^ of an initial state.

        The network runs in float64: in float32 a row's result showed its place in the batch.
        """
        count, refiner = len(residual), self._refiner(residual.device)
        changes = refiner(
            self.refiner.double(),
            _full_tiles(polar.phases),
            _full_tiles(polar.radii.log()),
            _full_tiles(residual),
            self.basis,
        )
        turn, stretch, outside = (change[:count] for change in changes)
        phases = polar.phases + self.bounds.phase * turn
        radii = polar.radii * (self.bounds.radius * stretch).exp()
        return Polar(radii, phases), residual + self.bounds.residual * self._outside(outside)

    def _score(self, device: torch.device) -> PhaseScore:
        return PhaseScore.of(self._log_scale(device), self.width, self.depth)

    def _refiner(self, device: torch.device) -> Refiner:
        return Refiner.of(self._log_scale(device), self.dim, self.width, self.depth)

    def _log_scale(self, device: torch.device) -> LogScale:
        return LogScale.of(self.target_quantiles.to(device))

    def _image_polar(self, target: Cloud) -> Polar:
        both = sampled(target, lambda rows: torch.cat(self._polar(rows), dim=1), self.max_rows)
        return Polar(*both.chunk(2, dim=1))

    def _texts(self, source: Cloud, device: torch.device) -> Texts:
        def state(rows: Tensor) -> Tensor:
            (radii, phases), residual = self.initial(rows)
            return torch.cat([phases, radii.log(), residual], dim=1).float()

        rank = self.basis.shape[1]
        rows = sampled(source, state, self.max_rows).to(device)
        return Texts(*rows.split([rank // 2, rank // 2, self.dim], dim=1))

    def _potentials(self, prior: PhasePrior, images: Polar, texts: Texts) -> dict[str, float]:
        """Mean Psi of images, of initial and of refined texts (of at most one batch of them)."""
        few = slice(None, None, -(-len(texts.phases) // self.plan.batch))
        state = (t[few].cpu().double() for t in (texts.log_radii, texts.phases, texts.residual))
        log_radii, phases, residual = state
        refined, _ = self.refined(Polar(log_radii.exp(), phases), residual)
        named = {"images": images.phases, "initial": phases, "refined": refined.phases}
        return {name: float(prior.potential(p).mean()) for name, p in named.items()}

    def _checked_rank(self, num_text: int, num_image: int) -> int:
        rank = super()._checked_rank(num_text, num_image)
        if self.neighbours >= rank // 2:
            raise ValueError(
                f"a frame of rank {rank} has {rank // 2} blocks, too few for {self.neighbours} "
                f"neighbours each; lower neighbours, or raise rank to {2 * self.neighbours + 2}"
            )
        return rank


def _phases(polar: Polar, device: torch.device) -> Phases:
    columns = polar.phases, polar.radii.log()
    return Phases(*(column.to(device, torch.float32) for column in columns))


def _full_tiles(rows: Float64[Tensor, "n columns"]) -> Float64[Tensor, "m columns"]:
    """Rows of zeros complete the last tile: see `covariance.times`."""
    return nn.functional.pad(rows, (0, 0, 0, -len(rows) % TILE_ROWS))
