"""Noise on text rows: what text-only training adds so that a projector meets a whole region.

    z = Norm(a + e)        a the mapped text row, e drawn anew for each row and epoch

    gaussian     e = sigma n,               n ~ N(0, I)
    fixed_norm   e = (r / sqrt(d)) n        the same E|e|^2 = r^2 at every width
    ball         e uniform in the ball of radius r (not scaled by sqrt(d), so almost nothing)
    scaled       e = sigma u n,             u ~ U(0, 1), one number per row

Sources: CapDec, arXiv:2211.00575, DavidHuji/CapDec@4451bfd train.py:18-39 (variance 0.016; ball);
IFCap, arXiv:2409.18046, boreng0817/IFCap@84602a7 src/utils.py:36-52; CLOSE, allenai/close@80f8db0
close/model/language_adapters.py:22-34 (std); LinCIR, navervision/lincir@1dec42d
train_phi.py:229-234 (scaled). The expected cosine of a unit row with its gaussian copy is about
1 / sqrt(1 + sigma^2 d): a variance given as a standard deviation changes it by an order of
magnitude, so fields are called `std` or `variance`, never `noise`.
With a map, a is where `move` puts the row, before the last projection, as in C3; it need not be of
norm 1. Rows that were aligned and stored before are of norm 1, so that `collapse` in the shards and
noise in the training is less noise than both in one map (see `Disturbed`).
Departs from the sources in where randomness comes from: e is a function of (seed, row key, width)
alone, and the key one of (record id, epoch), so batches, workers and shards change nothing. Key and
column are hashed to 64 bits (splitmix64's mixer), whose halves give two normal numbers by the
formula of Box and Muller in float32 (largest value 6.7). Departs from LinCIR, which adds its noise
to rows that have not been normalised: the same noise needs std = 1 / (norm of those rows).
Letters: d width, sigma standard deviation per coordinate, r norm or radius.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from hashlib import blake2b
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float, Float32, Float64, Int64, UInt64
from torch import Tensor

WEYL = 0x9E3779B97F4A7C15
MIXERS = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))
BLOCK_ROWS = 64  # 3.5 ns per number at width 1280; 16 rows take 4.5


@dataclass(frozen=True, kw_only=True)
class Noise(ABC):
    """Draws one vector per row key; the same key gives the same vector wherever it is drawn."""

    name: ClassVar[str]
    seed: int = 0

    def options(self) -> dict[str, Any]:
        """Constructor arguments."""
        return asdict(self)

    @abstractmethod
    def draw(self, keys: Int64[Tensor, " n"], dim: int) -> Float64[Tensor, "n dim"]:
        """The vectors of these rows."""


@dataclass(frozen=True, kw_only=True)
class GaussianNoise(Noise):
    """Independent normal numbers, of which either `std` or `variance` is given.

    Raises:
        ValueError: none of the two, or both.
    """

    name = "gaussian"
    std: float | None = None
    variance: float | None = None

    def __post_init__(self) -> None:
        if (self.std is None) == (self.variance is None):
            raise ValueError(
                f"gaussian noise got std={self.std} and variance={self.variance}; give exactly one "
                "of them (std = sqrt(variance)), they differ by an order of magnitude"
            )
        for field, size in (("std", self.std), ("variance", self.variance)):
            if size is not None:
                _check_size(field, size)

    @property
    def sigma(self) -> float:
        """The standard deviation, whichever of the two was given."""
        return math.sqrt(self.variance or 0.0) if self.std is None else self.std

    def draw(self, keys: Int64[Tensor, " n"], dim: int) -> Float64[Tensor, "n dim"]:
        return normal(keys, dim, self.seed).mul_(self.sigma)


@dataclass(frozen=True, kw_only=True)
class FixedNormNoise(Noise):
    """Normal numbers whose vector has norm `norm` (root mean square) at every width."""

    name = "fixed_norm"
    norm: float

    def __post_init__(self) -> None:
        _check_size("norm", self.norm)

    def draw(self, keys: Int64[Tensor, " n"], dim: int) -> Float64[Tensor, "n dim"]:
        return normal(keys, dim, self.seed).mul_(self.norm / math.sqrt(dim))


@dataclass(frozen=True, kw_only=True)
class BallNoise(Noise):
    """Uniform in the ball of `radius`: a random direction times radius * u^(1/d)."""

    name = "ball"
    radius: float

    def __post_init__(self) -> None:
        _check_size("radius", self.radius)

    def draw(self, keys: Int64[Tensor, " n"], dim: int) -> Float64[Tensor, "n dim"]:
        directions = torch.nn.functional.normalize(normal(keys, dim, self.seed), eps=1e-30)
        # not `pow`: torch finishes an incomplete vector of it by other code, with other last bits
        lengths = (uniform(keys, self.seed).log_() / dim).exp_() * self.radius
        return directions.mul_(lengths[:, None])


@dataclass(frozen=True, kw_only=True)
class ScaledNoise(Noise):
    """Normal numbers times one uniform number per row: from no noise at all to `std`."""

    name = "scaled"
    std: float = 1.0

    def __post_init__(self) -> None:
        _check_size("std", self.std)

    def draw(self, keys: Int64[Tensor, " n"], dim: int) -> Float64[Tensor, "n dim"]:
        lengths = uniform(keys, self.seed) * self.std
        return normal(keys, dim, self.seed).mul_(lengths[:, None])


NOISES: dict[str, type[Noise]] = {
    kind.name: kind for kind in (GaussianNoise, FixedNormNoise, BallNoise, ScaledNoise)
}


class Disturbed:
    """Noise on rows that have no map to go through: Norm(Norm(z) + e), as a map rounds it."""

    is_random = True
    normalize = True

    def __init__(self, noise: Noise) -> None:
        self.noise = noise

    def __call__(
        self, rows: Float[Tensor, "n dim"], keys: Int64[Tensor, " n"] | None
    ) -> Float32[Tensor, "n dim"]:
        assert keys is not None, "is_random"
        unit = torch.nn.functional.normalize(rows.double(), eps=1e-30)
        unit.add_(self.noise.draw(keys, rows.shape[1]).to(rows.device))
        return torch.nn.functional.normalize(unit, eps=1e-30).float()


def noise_card(noise: Noise | None) -> dict[str, Any] | None:
    """What `noise_of` needs to make the same noise again."""
    return None if noise is None else {"name": noise.name, "options": noise.options()}


def noise_of(card: dict[str, Any] | None) -> Noise | None:
    """The noise that `noise_card` described.

    Raises:
        ValueError: there is no noise of this name.
    """
    if card is None:
        return None
    if card["name"] not in NOISES:
        raise ValueError(f"unknown noise {card['name']!r}; known are {', '.join(NOISES)}")
    return NOISES[card["name"]](**card["options"])


def row_keys(ids: Sequence[str], epoch: int) -> Int64[Tensor, " n"]:
    """Keys of the text rows of these records: rows of one id have one noise in an epoch.

    Example:
        >>> row_keys(["cat", "dog"], 0).equal(row_keys(["dog", "cat"], 0).flip(0))
        True
        >>> row_keys(["cat"], 0).equal(row_keys(["cat"], 1))
        False
    """
    salt = epoch.to_bytes(8, "little")
    digests = (blake2b(id.encode("utf-8", "surrogatepass"), digest_size=8, salt=salt) for id in ids)
    joined = b"".join(digest.digest() for digest in digests)
    return torch.from_numpy(np.frombuffer(joined, dtype="<i8").astype(np.int64))


def normal(keys: Int64[Tensor, " n"], dim: int, seed: int) -> Float64[Tensor, "n dim"]:
    """Standard normal numbers of each key, as exact as float32."""
    half = (dim + 1) // 2
    drawn = torch.empty(len(keys), dim, dtype=torch.float64)
    rows, columns = _row_hashes(keys, seed), _mix(np.arange(half, dtype=np.uint64))
    for start in range(0, len(keys), BLOCK_ROWS):
        hashes = _mix(rows[start : start + BLOCK_ROWS, None] ^ columns)
        radii = _unit_interval(hashes.astype(np.uint32)).log_().mul_(-2).sqrt_()
        angles = _unit_interval((hashes >> np.uint64(32)).astype(np.uint32)).mul_(2 * math.pi)
        block = drawn[start : start + BLOCK_ROWS]
        block[:, :half] = angles.cos().mul_(radii)
        block[:, half:] = angles.sin_().mul_(radii)[:, : dim - half]
    return drawn


def uniform(keys: Int64[Tensor, " n"], seed: int) -> Float64[Tensor, " n"]:
    """One number in [0, 1) of each key, independent of its normal numbers."""
    hashes = _mix(~_row_hashes(keys, seed))
    return torch.from_numpy((hashes >> np.uint64(11)).astype(np.float64) * 2.0**-53)


def _row_hashes(keys: Tensor, seed: int) -> UInt64[np.ndarray, " n"]:
    salted = _mix(np.array([seed % 2**64], dtype=np.uint64))
    return _mix(keys.cpu().numpy().view(np.uint64) ^ salted)


def _unit_interval(integers: np.ndarray) -> Tensor:
    """Integers of 32 bits to (0, 1] in float32."""
    return torch.from_numpy(integers.astype(np.float32)).add_(0.5).mul_(2.0**-32)


def _mix(x: UInt64[np.ndarray, "*shape"]) -> UInt64[np.ndarray, "*shape"]:
    """splitmix64: a bijection of 64-bit integers. Works on a copy."""
    x = x + np.uint64(WEYL)
    for shift, factor in zip((30, 27), MIXERS, strict=True):
        x ^= x >> np.uint64(shift)
        x *= factor
    x ^= x >> np.uint64(31)
    return x


def _check_size(field: str, size: float) -> None:
    if not 0 <= size < math.inf:
        raise ValueError(f"{field} of a noise must be a finite number >= 0, not {size}")
