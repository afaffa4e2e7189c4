"""A feature shard that is being written: rows as they arrive from the device, blocks as they fill.

Place in the pipeline: encoder -> rows -> **blocks of a shard**. No Lightning here.

Rows of whole pictures and texts get unit norm before they are stored; rows of patches keep the norm
that the layer gave them. A feature that no direction can be read from (not finite, or zero) rejects
its record.
"""

from contextlib import ExitStack

import numpy as np
import torch
from torch import Tensor

from revision.encoders.base import is_patches
from revision.encoders.plan import Plan
from revision.encoders.work import Batch
from revision.records import Record, Rejection
from revision.shards import GRID_ROWS, ShardWriter, check_rows


class Arrival:
    """Rows on their way from the device; `rows` waits for them, and nothing before it does."""

    def __init__(self, rows: Tensor) -> None:
        self._copied: torch.cuda.Event | None = None
        if rows.is_cuda:
            host = torch.empty(rows.shape, dtype=rows.dtype, pin_memory=True)
            rows = host.copy_(rows, non_blocking=True)
            self._copied = torch.cuda.Event()
            self._copied.record()
        self._rows = rows

    def rows(self) -> np.ndarray:
        """In float64."""
        if self._copied is not None:
            self._copied.synchronize()
        return self._rows.cpu().double().numpy()  # some accelerators have no float64


class OpenShard:
    """A shard being written. Rows wait until a block is full, then they are stored."""

    def __init__(self, plan: Plan, index: int, dim: int) -> None:
        self.dtype, self.dim = plan.dtype, dim
        self.keeps_norms = is_patches(plan.fingerprint["encoder"])
        self.address = plan.shard_path(index)
        self._stack = ExitStack()
        self._writer = self._stack.enter_context(
            ShardWriter(plan.directory, index, dim, plan.dtype)
        )
        self._start_block()

    def _start_block(self) -> None:
        self._rows: list[np.ndarray] = []
        self._records: list[Record] = []
        self._counts: list[int] = []

    def add(self, batch: Batch, rows: np.ndarray) -> None:
        """Append a batch; `rows` are float64 and get their final norm here, before the cast."""
        for rejection in batch.rejected:
            self._writer.reject(rejection)
        if batch.num_truncated is not None:
            self._writer.num_truncated = (self._writer.num_truncated or 0) + batch.num_truncated
        bad = check_rows(rows, dim=self.dim, address=str(self.address))
        first = 0
        for record, count in zip(batch.records, batch.counts, strict=True):
            own = slice(first, first + count)
            first += count
            if bad[own].any():
                self._writer.reject(self._unusable(record, rows[own][bad[own]][0]))
                continue
            self._records.append(record)
            self._counts.append(count)
            norms = np.linalg.norm(rows[own], axis=1, keepdims=True)
            self._rows.append(rows[own] if self.keeps_norms else rows[own] / norms)
            if self.keeps_norms and sum(self._counts) >= GRID_ROWS:  # a batch may fill many blocks
                self._flush()
        if sum(self._counts) >= GRID_ROWS or len(self._records) >= GRID_ROWS:
            self._flush()

    def _unusable(self, record: Record, row: np.ndarray) -> Rejection:
        kind = "zero" if np.isfinite(row).all() else "not finite"
        return Rejection(record.id, f"the encoder's feature is {kind}", f"{self.address}")

    def _flush(self) -> None:
        rows = np.concatenate([np.empty((0, self.dim)), *self._rows]).astype(self.dtype)
        self._writer.add_block(rows, self._records, self._counts)
        self._start_block()

    def finish(self) -> None:
        self._flush()
        self._stack.close()

    def abandon(self, error: BaseException) -> None:
        """Remove what was written of the shard."""
        try:
            self._stack.__exit__(type(error), error, error.__traceback__)
        except BaseException as raised:  # the writer hands the same error on
            if raised is not error:
                raise
