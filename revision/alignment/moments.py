"""Moments of unit rows in one streaming pass: what every alignment map is fitted on.

One pass over the rows x = r / |r| keeps n, S = sum x and q = sum |x|^2 (`revision.sums`), and

    mean       = S / n
    trace      = E|x - mean|^2 = q / n - |mean|^2     (population form, trace of the covariance)
    covariance = C / n - mean mean^T,   C = sum x x^T (only where a method asks for it)

The subtraction is safe: the trace of contrastive embeddings is of order 1 and its absolute error
below 1e-13 (arXiv:2602.07026v3, Sec. 4, gives the two-pass form; both agree to 1e-12 in the tests).
Against cancellation a trace below 1e-12, that of rows which are all alike, is 0.

Rows that are not finite or have a norm below 1e-6 never reach a sum; their positions are returned.

n, S and q are exact sums, so the mean and the trace are the same bits for every order of rows,
batches, shards, threads and processes. C and whatever else is summed up is a float64 sum in the
order of a grid (`revision.alignment.passes`), which neither threads nor processes change.

Letters: n rows, dim the width, S, q and C the sums above.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

from revision.alignment.passes import CPU, Batches, Sums, accumulate, normalize_
from revision.sums import (
    BLOCK_ROWS,
    MIN_NORM,
    MomentSums,
    exact_sums,
    is_bad,
    to_float64,
    unit_sums,
)

CANCELLED = 1e-12  # where a trace is nothing but the rounding of its two terms

Transform = Callable[[Float64[Tensor, "n dim"]], Float64[Tensor, "n dim"]]
Second = Literal["trace", "diagonal", "covariance"]  # the second moments that a method needs


@dataclass(frozen=True)
class Moments:
    """Count, mean and mean squared norm of unit rows, and the positions of the rows left out.

    `second` holds the second moments that were asked for: variances (dim,), the population
    covariance (dim, dim), or nothing. It may come from a sample of `second_count` rows.
    """

    count: int
    mean: Float64[np.ndarray, " dim"]
    mean_square: float
    rejected: tuple[int, ...] = ()
    second: Float64[np.ndarray, "*square"] | None = None
    sample_count: int | None = None

    @classmethod
    def of_sums(cls, sums: MomentSums, rejected: tuple[int, ...] = ()) -> "Moments":
        """Moments without second ones.

        Raises:
            ValueError: sums over no rows.
        """
        if sums.count == 0:
            raise ValueError(
                f"no usable row: all {len(rejected)} are missing, not finite or of norm below "
                f"{MIN_NORM:g}"
            )
        return cls(sums.count, sums.mean, sums.mean_square, rejected)

    @property
    def trace(self) -> float:
        """Trace of the population covariance; 0 where it would be nothing but rounding."""
        trace = self.mean_square - float(self.mean @ self.mean)
        return trace if trace > CANCELLED else 0.0

    @property
    def variance(self) -> Float64[np.ndarray, " dim"]:
        """Variance of each coordinate, population form."""
        second = self._second("variances", (1, 2))
        return second if second.ndim == 1 else np.ascontiguousarray(np.diagonal(second))

    @property
    def covariance(self) -> Float64[np.ndarray, "dim dim"]:
        """The population covariance."""
        return self._second("a covariance", (2,))

    @property
    def second_count(self) -> int:
        """How many rows the second moments are of."""
        return self.count if self.sample_count is None else self.sample_count

    @property
    def num_rows(self) -> int:
        """Rows seen, good and bad."""
        return self.count + len(self.rejected)

    def merge(self, other: "Moments") -> "Moments":
        """Moments of these rows followed by `other`'s: equal to one pass up to rounding.

        `MomentSums` add up without rounding; this is for moments whose sums are gone.
        """
        if self.mean.shape != other.mean.shape:
            raise ValueError(
                f"moments of width {len(self.mean)} and {len(other.mean)} do not add up; "
                "they come from different encoders"
            )
        count = self.count + other.count
        share = other.count / count
        return Moments(
            count=count,
            mean=self.mean + share * (other.mean - self.mean),
            mean_square=self.mean_square + share * (other.mean_square - self.mean_square),
            rejected=self.rejected + tuple(self.num_rows + row for row in other.rejected),
            second=_merged_second(self, other, share),
        )

    def _second(self, what: str, ranks: tuple[int, ...]) -> np.ndarray:
        if self.second is None or self.second.ndim not in ranks:
            raise ValueError(
                f"these moments hold no {what.removeprefix('a ')}; collect {what} with "
                "moments_of(rows, second='covariance')"
            )
        return self.second


def _merged_second(one: Moments, two: Moments, share: float) -> np.ndarray | None:
    if one.second is None or two.second is None:
        return None
    gap = two.mean - one.mean
    between = np.outer(gap, gap) if one.second.ndim == 2 else gap**2
    return (1 - share) * one.second + share * two.second + share * (1 - share) * between


def moments_of(batches: Batches, *, second: Second = "trace") -> Moments:
    """Moments of all rows of `batches`, with the second moments that `second` asks for.

    Raises:
        ValueError: no usable row, or batches of different widths.
    """

    def statistic(rows: Float64[Tensor, "n dim"]) -> Sums:
        return *_products(rows, second), unit_sums(rows)

    return _moments(accumulate(batches, statistic))


def moments_of_transformed(
    batches: Batches, transform: Transform, *, second: Second = "trace", device: torch.device = CPU
) -> Moments:
    """Moments of `transform(x)` over the good rows; `transform` may overwrite its argument.

    Rows are transformed on `device`, where the tensors that `transform` uses must be.
    """

    def statistic(rows: Float64[Tensor, "n dim"]) -> Sums:
        moved = transform(rows)
        return *_products(moved, second), exact_sums(moved)

    return _moments(accumulate(batches, statistic, device=device))


def _products(rows: Float64[Tensor, "n dim"], second: Second) -> tuple[Tensor, ...]:
    if second == "trace":
        return ()
    return ((rows * rows).sum(0) if second == "diagonal" else rows.T @ rows,)


def _moments(accumulated: tuple[Sums, int, tuple[int, ...]]) -> Moments:
    (*products, sums), _, rejected = accumulated
    moments = Moments.of_sums(sums, rejected)
    return replace(moments, second=_centred(products[0].numpy(), moments)) if products else moments


def _centred(products: np.ndarray, moments: Moments) -> np.ndarray:
    """Second moments about the mean; no variance falls below 0 by rounding."""
    mean = moments.mean
    if products.ndim == 1:
        return np.maximum(products / moments.count - mean**2, 0.0)
    return products / moments.count - np.outer(mean, mean)


def bad_rows(rows: Float[np.ndarray, "n dim"]) -> Bool[np.ndarray, " n"]:
    """True where a row is not finite or (nearly) zero, so that it has no direction."""
    norms = np.empty(len(rows))
    for start in range(0, len(rows), BLOCK_ROWS):
        block = to_float64(rows[start : start + BLOCK_ROWS])
        norms[start : start + BLOCK_ROWS] = torch.linalg.vector_norm(block, dim=-1)
    return is_bad(torch.tensor(norms)).numpy()


def unit_rows(rows: Float[np.ndarray, "n dim"]) -> Float64[np.ndarray, "n dim"]:
    """A few rows in float64 with norm 1. They must have a direction."""
    unit = to_float64(rows)
    normalize_(unit)
    return unit.numpy()
