"""The two networks of AnisoAlign: phase score s_phi and bounded refinement g_eta.

    sqrt(lambda_t) s_phi(phi, t, log rho) = -o_1 sin phi + o_2 cos phi,   (o_1, o_2) = MLP(..)
    (dtheta, drho, dv) = tanh of MLP([sin theta; cos theta; log rho; v])

An MLP is widths and one flat vector of parameters, so that a trained network is one tensor: easy to
save, to average, to freeze, and its names do not depend on its depth.

Source: arXiv:2605.07825, Sec. 4 and App. A.7-A.8, gives inputs and outputs but neither architecture
nor size; both MLPs (3 x 1024, SiLU) are ours. The periodic read-out is that of
KingJamesSong/OrientationDiffusion@1c9af47 train_orientation_diffusion.py:82-87.
Departs from the paper in standardising log rho (by the quantiles of the images' radii), in giving
the network the logarithm of the noise's standard deviation for t, and in regressing the score times
sqrt(lambda_t) = sqrt(2) sigma_t, whose size does not depend on t.
Letters: phi, theta phases, rho radii, v part outside the frame, t time with noise sigma_t.
"""

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Float, Float32
from torch import Tensor, nn

FREQUENCIES = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0)  # of log std, whose range is about 3.4


@dataclass(frozen=True)
class MLP:
    """Linear layers of these widths with SiLU between them, as a function of their parameters."""

    widths: tuple[int, ...]

    def initial(self, generator: torch.Generator, *, zero_last: bool) -> Float32[Tensor, " params"]:
        """Uniform in +-1/sqrt(inputs), as torch's own layers; or a last layer of zeros."""
        layers = []
        for inputs, outputs in pairwise(self.widths):
            bound = 1 / math.sqrt(inputs)
            size = (inputs + 1) * outputs
            layers.append((torch.rand(size, generator=generator) * 2 - 1) * bound)
        if zero_last:
            layers[-1].zero_()
        return torch.cat(layers)

    def __call__(
        self, parameters: Float[Tensor, " params"], inputs: Float[Tensor, "n inputs"]
    ) -> Float[Tensor, "n outputs"]:
        layers = parameters.split([(i + 1) * o for i, o in pairwise(self.widths)])
        hidden = inputs
        for place, (layer, outputs) in enumerate(zip(layers, self.widths[1:], strict=True)):
            hidden = nn.functional.silu(hidden) if place else hidden
            hidden = nn.functional.linear(
                hidden, layer[outputs:].view(outputs, -1), layer[:outputs]
            )
        return hidden


@dataclass(frozen=True)
class LogScale:
    """Standardises log radii per block."""

    centre: Float[Tensor, " blocks"]
    width: Float[Tensor, " blocks"]

    @classmethod
    def of(cls, quantiles: Float[Tensor, "blocks q"]) -> "LogScale":
        """Mean and standard deviation over even quantiles, in float32."""
        logs = quantiles.log()
        return cls(logs.mean(1).float(), logs.std(1).float().clamp(min=1e-3))

    def __call__(self, log_radii: Float[Tensor, "n blocks"]) -> Float[Tensor, "n blocks"]:
        return (log_radii - self.centre) / self.width


@dataclass(frozen=True)
class PhaseScore:
    """s_phi: periodic in each phase whatever its parameters."""

    mlp: MLP
    scale: LogScale

    @classmethod
    def of(cls, scale: LogScale, width: int, depth: int) -> "PhaseScore":
        blocks = len(scale.centre)
        inputs = 3 * blocks + 2 * len(FREQUENCIES) + 1
        return cls(MLP((inputs, *[width] * depth, 2 * blocks)), scale)

    def __call__(
        self,
        parameters: Float[Tensor, " params"],
        phases: Float[Tensor, "n blocks"],
        log_radii: Float[Tensor, "n blocks"],
        std: Float[Tensor, "n 1"],
    ) -> Float[Tensor, "n blocks"]:
        """The score times `std` = sqrt(lambda_t), the standard deviation of the noise."""
        sin, cos, time = phases.sin(), phases.cos(), std.log()
        angles = time * torch.tensor(FREQUENCIES, dtype=time.dtype, device=time.device)
        known = [sin, cos, self.scale(log_radii), time, angles.sin(), angles.cos()]
        first, second = self.mlp(parameters, torch.cat(known, dim=1)).chunk(2, dim=1)
        return second * cos - first * sin


@dataclass(frozen=True)
class Refiner:
    """g_eta: three changes in (-1, 1), of phases, log radii and the part outside the frame."""

    mlp: MLP
    scale: LogScale

    @classmethod
    def of(cls, scale: LogScale, dim: int, width: int, depth: int) -> "Refiner":
        blocks = len(scale.centre)
        return cls(MLP((3 * blocks + dim, *[width] * depth, 2 * blocks + dim)), scale)

    def __call__(
        self,
        parameters: Float[Tensor, " params"],
        phases: Float[Tensor, "n blocks"],
        log_radii: Float[Tensor, "n blocks"],
        residual: Float[Tensor, "n dim"],
        basis: Float[Tensor, "dim rank"],
    ) -> tuple[Tensor, Tensor, Tensor]:
        """tanh of (dtheta, drho, P_V dv)."""
        known = [phases.sin(), phases.cos(), self.scale(log_radii), residual]
        raw = self.mlp(parameters, torch.cat(known, dim=1))
        blocks = phases.shape[1]
        phase, radius, outside = raw.split([blocks, blocks, residual.shape[1]], dim=1)
        outside = outside - outside @ basis @ basis.T
        return phase.tanh(), radius.tanh(), outside.tanh()
