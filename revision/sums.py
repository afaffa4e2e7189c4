"""Exact sums over unit rows: the streaming part of moments, and what a shard keeps beside its rows.

A row r enters as x = r / |r|, re-normalised in float64, because stored embeddings are float16 or
float32 and not exactly unit norm. Rows that are not finite or have a norm below 1e-6 have no
direction and never reach a sum.

    n = number of rows,   S = sum x,   q = sum |x|^2        (q = n, unless x was moved since)

Every number is first rounded to a multiple of 2^-44 (6e-14, three orders below what float32 storage
keeps of a unit row), and such numbers add up without any error, as integers. The sums are therefore
the same bits for every order of rows, batches, shards, threads and processes, and sums of parts
merge exactly. For float16 rows |r|^2 is exact as well, so the bits are those of every machine.

Letters: r stored row, x unit row, n, S and q the sums above, dim the width.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

BLOCK_ROWS = 256  # 2.6 MB of float64 at width 1280: larger blocks leave the cache
MIN_NORM = 1e-6
RESOLUTION = 2.0**-44  # of the exact sums: 256 numbers of at most 2 fill the 53 bits of a float64
ROUNDER = 1.5 * 2.0**8
LIMB = 2**32


@dataclass(frozen=True, eq=False)
class MomentSums:
    """Exact sums over unit rows, in units of 2^-44: parts of any size add up without rounding.

    `limbs` are the high and low 32 bits of S: integers that hold 2^40 rows and more.
    """

    count: int
    limbs: Int64[np.ndarray, "2 dim"]
    square_sum: int

    @classmethod
    def zero(cls, dim: int) -> "MomentSums":
        """Sums over no rows."""
        return cls(0, np.zeros((2, dim), np.int64), 0)

    def __add__(self, other: "MomentSums") -> "MomentSums":
        if self.limbs.shape != other.limbs.shape:
            raise ValueError(
                f"sums of width {self.limbs.shape[1]} and {other.limbs.shape[1]} do not add up; "
                "they come from different encoders"
            )
        limbs = _carried(self.limbs + other.limbs)
        return MomentSums(self.count + other.count, limbs, self.square_sum + other.square_sum)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, MomentSums):
            return NotImplemented
        return np.array_equal(self.to_array(), other.to_array())

    def is_close(self, other: "MomentSums") -> bool:
        """Equal but for one unit of each row: float32 rows may have norms whose last bit depends on
        the processor, and then round to the other side."""
        if (self.count, self.square_sum) != (other.count, other.square_sum):
            return False
        high, low = self.limbs - other.limbs
        return bool((np.abs(high * LIMB + low) <= self.count).all())

    @property
    def mean(self) -> Float64[np.ndarray, " dim"]:
        """S / n; the same bits whatever the sums were added up from."""
        high, low = self.limbs.astype(np.float64)
        return (high * (LIMB / self.count) + low / self.count) * RESOLUTION

    @property
    def mean_square(self) -> float:
        return self.square_sum / self.count * RESOLUTION

    def to_array(self) -> Int64[np.ndarray, "2 dim_and_2"]:
        """High and low 32 bits of n, q / 2^-44 and S / 2^-44, as they are stored."""
        numbers = np.array([[n >> 32, n & (LIMB - 1)] for n in (self.count, self.square_sum)])
        return np.concatenate([numbers.T, self.limbs], axis=1)

    @classmethod
    def from_array(cls, stored: Int64[np.ndarray, "2 dim_and_2"]) -> "MomentSums":
        """The inverse of `to_array`."""
        count, square_sum = ((int(high) << 32) + int(low) for high, low in stored[:, :2].T)
        return cls(count, np.ascontiguousarray(stored[:, 2:]), square_sum)


@dataclass(frozen=True)
class Scan:
    """What one look at stored rows tells: sums over the good ones, which are bad, and how far the
    norms of the good ones are from 1."""

    sums: MomentSums
    bad: Bool[np.ndarray, " n"]
    norm_error: float


def scan(rows: Float[np.ndarray, "n dim"]) -> Scan:
    """Sums over stored rows: those of `revision.alignment.moments`, bit for bit."""
    sums, masks, norm_error = MomentSums.zero(rows.shape[1]), [np.zeros(0, bool)], 0.0
    for start in range(0, len(rows), BLOCK_ROWS):
        unit = to_float64(rows[start : start + BLOCK_ROWS])
        norms = divide_by_norms_(unit)
        bad = is_bad(norms)
        if bad.any():
            unit, norms = unit[~bad], norms[~bad]
        if len(norms):
            norm_error = max(norm_error, float((norms - 1).abs().max()))
        sums += unit_sums(unit)
        masks.append(bad.numpy())
    return Scan(sums, np.concatenate(masks), norm_error)


def unit_sums(rows: Float64[Tensor, "n dim"]) -> MomentSums:
    """Sums over rows of norm 1, whose squares need no adding up. Rows are rounded in place."""
    limbs = np.zeros((2, rows.shape[1]), np.int64)
    for block in rows.split(BLOCK_ROWS):
        ones = torch.ones(len(block), dtype=torch.float64, device=rows.device)
        units = ((ones @ _rounded(block)) / RESOLUTION).cpu().numpy().astype(np.int64)
        limbs += np.array([units >> 32, units & (LIMB - 1)])
    return MomentSums(len(rows), _carried(limbs), round(len(rows) / RESOLUTION))


def exact_sums(rows: Float64[Tensor, "n dim"]) -> MomentSums:
    """Sums over rows of norm below 11 with elements in [-2, 2]; rows are rounded in place."""
    squares = _rounded(torch.linalg.vector_norm(rows, dim=1).square_()) / RESOLUTION
    sums = unit_sums(rows)
    return MomentSums(sums.count, sums.limbs, int(squares.long().sum()))


def to_float64(
    rows: np.ndarray | Tensor, device: torch.device | None = None
) -> Float64[Tensor, "n *stack dim"]:
    """A float64 copy of `rows` on `device`, by default where they are.

    Raises:
        ValueError: numbers of another type than floating point.
    """
    given = (from_numpy(rows) if isinstance(rows, np.ndarray) else rows.detach()).to(device)
    if not given.is_floating_point():
        raise ValueError(f"embedding rows must be floating point, not {given.dtype}")
    if given.itemsize < 4:
        given = given.float()  # float16 to float64 at once takes 1.6 times as long
    return given.to(torch.float64, copy=True)


def from_numpy(rows: np.ndarray) -> Tensor:
    """The same memory as a tensor; a copy where it is read-only, as mapped files are."""
    return torch.from_numpy(rows) if rows.flags.writeable else torch.tensor(rows)


def divide_by_norms_(rows: Float64[Tensor, "n *stack dim"]) -> Float64[Tensor, "n *stack"]:
    """Bring each row to norm 1 in place; returns the norms."""
    norms = torch.linalg.vector_norm(rows, dim=-1)
    rows.mul_(norms.reciprocal().unsqueeze(-1))  # a division takes 2.6 times as long
    return norms


def is_bad(norms: Float64[Tensor, "*rows"]) -> Bool[Tensor, "*rows"]:
    """True for norms that no direction can be read with."""
    return ~((norms >= MIN_NORM) & (norms < torch.inf))


def _rounded(numbers: Tensor) -> Tensor:
    """In place to the nearest multiple of 2^-44: adding 384 leaves no smaller bits."""
    return numbers.add_(ROUNDER).sub_(ROUNDER)


def _carried(limbs: np.ndarray) -> np.ndarray:
    return np.array([limbs[0] + (limbs[1] >> 32), limbs[1] & (LIMB - 1)])
