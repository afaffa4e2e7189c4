"""The controls that compare a record with all others: its class of length, and the subset."""

from collections import Counter
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool

from revision.captions.columns import BARE, WHOLE, Columns, kth_smallest, terciles
from revision.captions.controls import Controls


@dataclass(frozen=True)
class Choice:
    """Words that a caption must have, and the largest key of the subset; None takes all.

    A record without a caption has no length and is taken by any.
    """

    length: tuple[int | None, int | None] | None = None
    terciles: tuple[int, int] | None = None
    largest_key: int | None = None

    @staticmethod
    def make(columns: Columns, controls: Controls) -> "Choice":
        choice = Choice()
        wanted = controls.caption_length
        if isinstance(wanted, str):
            low, high = bounds = _terciles(columns)
            classes = {"short": (None, low), "medium": (low + 1, high), "long": (high + 1, None)}
            choice = Choice(classes[wanted], bounds)
        elif wanted is not None:
            choice = Choice((wanted[0], wanted[1]))
        return choice._with_subset(columns, controls.num_samples)

    def _with_subset(self, columns: Columns, num_samples: int | None) -> "Choice":
        num_left = sum(int(self.of_length(rows).sum()) for rows in columns.chunks())
        if num_samples is None or num_samples == num_left:
            return self
        if num_samples > num_left:
            raise ValueError(
                f"num_samples={num_samples}, but {num_left} records are left by the other caption "
                "controls; choose between 1 and that"
            )
        key = kth_smallest(
            lambda: (rows["key"][self.of_length(rows)] for rows in columns.chunks()), num_samples
        )
        return replace(self, largest_key=key)

    def of_length(self, rows: np.ndarray) -> Bool[np.ndarray, " rows"]:
        """The rows that are candidates for the subset."""
        is_left = rows["state"] >= BARE
        if self.length is None:
            return is_left
        low, high = self.length
        fits = rows["words"] >= (low or 0)
        if high is not None:
            fits &= rows["words"] <= high
        return is_left & (fits | (rows["state"] == BARE))

    def kept(self, rows: np.ndarray) -> Bool[np.ndarray, " rows"]:
        candidates = self.of_length(rows)
        if self.largest_key is None:
            return candidates
        return candidates & (rows["key"] <= np.uint64(self.largest_key))


def _terciles(columns: Columns) -> tuple[int, int]:
    counts: Counter[int] = Counter()
    for rows in columns.chunks():
        numbers, times = np.unique(rows["words"][rows["state"] >= WHOLE], return_counts=True)
        counts.update(dict(zip(numbers.tolist(), times.tolist(), strict=True)))
    return terciles(counts) if counts else (0, 0)
