"""Rows of a stream that are kept in memory: evenly spaced, at most a stated number."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from revision.alignment.base import Cloud
from revision.alignment.moments import bad_rows, unit_rows
from revision.alignment.passes import grid


def sampled(cloud: Cloud, transform: Callable[[Tensor], Tensor], max_rows: int) -> Tensor:
    """`transform(unit rows)` of min(count, max_rows) good rows of `cloud`, stacked in order.

    Row i of n is kept where floor(i k / n) is new, so all k kept rows are spread evenly and do not
    depend on batches or shards.
    """
    count = cloud.moments.count
    wanted, position = min(count, max_rows), 0
    kept = []
    for cell in grid(cloud.rows()):
        good = cell[~bad_rows(cell)]
        places = np.arange(position, position + len(good))
        chosen = good[places * wanted // count != (places - 1) * wanted // count]
        position += len(good)
        if len(chosen):
            kept.append(transform(torch.from_numpy(unit_rows(chosen))))
    return torch.cat(kept)
