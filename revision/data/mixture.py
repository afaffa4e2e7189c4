"""Mixtures: several sources as one, each with a weight, in the place of a single source.

A weight is the number of passes over its source in one epoch of the mixture: 1 is all of it once,
2 all of it twice, 0.5 a half, of which the next epoch sees the other one. Source i gives its own
epochs behind each other, an endless stream; with n_i records and weight w_i,

    epoch e            the stream of source i from floor(e w_i n_i) to floor((e + 1) w_i n_i)
    chunk c of M       the c-th of M equal parts of that (again by cumulative floors), of every
                       source, permuted together; a chunk has about `_CHUNK` records

so the counts of an epoch are exact, the proportions hold in every chunk, and any position is found
without the ones before it. What stands at a position is a *visit*, record and own epoch in one
number, because a source of weight 0.5 is in its first epoch while the mixture is in its second:

    visit = own_epoch * N + offset_i + number,     N = sum of the records of all sources

Letters: e epoch of the mixture, i source, n_i its records (or those of its subset), w_i its weight.
"""

from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from math import floor
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from revision.data.plan import EpochPlan, Recent, slice_pieces
from revision.data.samples import IGNORE, Batch

_CHUNK = 4096


class MixtureOrder:
    """The order of the visits of a `MixtureSource` whose parts have the orders `plans`.

    Raises ValueError for a weight that is not positive.
    """

    def __init__(
        self, plans: Sequence[EpochPlan], weights: Sequence[float], *, seed: int = 0
    ) -> None:
        for index, weight in enumerate(weights):
            if not weight > 0:
                raise ValueError(
                    f"source {index} of the mixture has weight {weight}; a weight is the number "
                    "of passes in an epoch: give one above 0, or leave the source out"
                )
        self.plans, self.seed = list(plans), seed
        self.passes = [
            plan.num_samples * Fraction(str(weight))  # decimals as written: 0.1 is a tenth
            for plan, weight in zip(plans, weights, strict=True)
        ]
        self.offsets = np.cumsum([0, *(plan.starts[-1] for plan in plans)])
        self._chunk_ends = Recent(self._ends_of_epoch)
        self._chunk = Recent(self._visits_of_chunk)

    def length(self, epoch: int) -> int:
        """The number of visits of `epoch`."""
        return sum(last - first for first, last in self._streams(epoch))

    def records(self, epoch: int, first: int, last: int) -> Int64[np.ndarray, " n"]:
        """The visits at the positions `first`..`last`-1 of `epoch`."""
        ends = self._chunk_ends(epoch)
        return slice_pieces(ends, lambda chunk: self._chunk(epoch, chunk), first, last)

    def _streams(self, epoch: int) -> list[tuple[int, int]]:
        """Which part of its stream each source gives to `epoch`."""
        return [(floor(epoch * passes), floor((epoch + 1) * passes)) for passes in self.passes]

    def _num_chunks(self, epoch: int) -> int:
        return max(1, -(-self.length(epoch) // _CHUNK))

    def _ends_of_epoch(self, epoch: int) -> Int64[np.ndarray, " chunks"]:
        total = self._num_chunks(epoch)
        behind = np.arange(1, total + 1)
        counts = [last - first for first, last in self._streams(epoch)]
        return np.array([behind * count // total for count in counts]).sum(axis=0)

    def _visits_of_chunk(self, epoch: int, chunk: int) -> Int64[np.ndarray, " m"]:
        total = self._num_chunks(epoch)
        visits = [np.empty(0, np.int64)]
        for source, (first, last) in enumerate(self._streams(epoch)):
            part = [first + c * (last - first) // total for c in (chunk, chunk + 1)]
            visits += self._stream(source, *part)
        rng = np.random.default_rng([self.seed, epoch, chunk])
        return rng.permutation(np.concatenate(visits))

    def _stream(self, source: int, first: int, last: int) -> list[Int64[np.ndarray, " m"]]:
        """The visits `first`..`last`-1 of a source, whose epochs follow each other."""
        plan, visits = self.plans[source], []
        while first < last:
            epoch, position = divmod(first, plan.num_samples)
            stop = min(position + last - first, plan.num_samples)
            numbers = plan.records(epoch, position, stop)
            visits.append(numbers + self.offsets[source] + epoch * self.offsets[-1])
            first += stop - position
        return visits


class MixtureSource:
    """The records of all `sources`, numbered behind each other; a number may also be a visit.

    A batch holds the samples of each source together, those with pixels last: the order of the
    samples of a batch changes nothing, that of its pictures has to be known (`Batch.visual`
    stands before `Batch.pixels`).

    Raises ValueError for sources whose features differ in width or number of rows.
    """

    def __init__(self, sources: Sequence[Any]) -> None:
        shapes = [(source.rows_per_image, source.dim) for source in sources]
        if len(set(shapes)) > 1:
            raise ValueError(
                f"a picture is {' or '.join(f'{n} x {width}' for n, width in shapes)} numbers in "
                "the sources of the mixture, and one projector reads one shape; embed them with "
                "the same encoder and the same pooling"
            )
        self.sources, self.dim = list(sources), sources[0].dim
        self.block_sizes = [size for source in sources for size in source.block_sizes]
        self.offsets = np.cumsum([0, *(sum(source.block_sizes) for source in sources)])

    def __len__(self) -> int:
        return int(self.offsets[-1])

    def batch(self, numbers: Sequence[int], epoch: int = 0) -> Batch:
        """The batch of these visits; each knows its own epoch, so `epoch` is not used."""
        if not len(numbers):
            return self.sources[0].batch([])
        epochs, records = np.divmod(np.asarray(numbers, np.int64), len(self))
        owners = self._owners(records)
        batches = []
        for owner, own_epoch in sorted(set(zip(owners.tolist(), epochs.tolist(), strict=True))):
            chosen = records[(owners == owner) & (epochs == own_epoch)] - self.offsets[owner]
            batches.append(self.sources[owner].batch(chosen.tolist(), own_epoch))
        return join(sorted(batches, key=lambda batch: batch.pixels is not None))

    def lengths(self) -> "JoinedLengths":
        """The LLM positions of every visit, by indexing as in an array."""
        return JoinedLengths(self)

    def _owners(self, records: Int64[np.ndarray, " n"]) -> Int64[np.ndarray, " n"]:
        return np.searchsorted(self.offsets, records, side="right") - 1


class JoinedLengths:
    """`lengths[visits]` of a mixture, without a copy of the lengths of its sources."""

    def __init__(self, mixture: MixtureSource) -> None:
        self.mixture = mixture
        self.parts = [source.lengths() for source in mixture.sources]

    def __getitem__(self, visits: Int64[np.ndarray, " n"]) -> Int64[np.ndarray, " n"]:
        records = visits % len(self.mixture)
        owners = self.mixture._owners(records)
        found = np.empty(len(records), np.int64)
        for owner, part in enumerate(self.parts):
            own = owners == owner
            found[own] = part[records[own] - self.mixture.offsets[owner]]
        return found


def join(batches: Sequence[Batch]) -> Batch:
    """One batch of the samples of all, padded to the longest."""
    if len(batches) == 1:
        return batches[0]
    width = max(batch.input_ids.shape[1] for batch in batches)
    return replace(
        batches[0],
        ids=[id for batch in batches for id in batch.ids],
        input_ids=torch.cat([_widen(batch.input_ids, width, 0) for batch in batches]),
        labels=torch.cat([_widen(batch.labels, width, IGNORE) for batch in batches]),
        lengths=torch.cat([batch.lengths for batch in batches]),
        visual=_join_images([batch.visual for batch in batches]),
        pixels=_join_images([batch.pixels for batch in batches]),
        window_targets=sum(batch.window_targets for batch in batches),
    )


def _widen(rows: Tensor, width: int, filler: int) -> Tensor:
    return torch.nn.functional.pad(rows, (0, width - rows.shape[1]), value=filler)


def _join_images(images: Sequence[Tensor | None]) -> Tensor | None:
    given = [part for part in images if part is not None]
    return torch.cat(given) if given else None
