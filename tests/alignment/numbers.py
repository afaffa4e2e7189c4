"""What a fitted map does to its fitting texts: the numbers that laws of the methods are about."""

from dataclasses import dataclass

import numpy as np
import torch

from revision.alignment import AlignmentMap
from revision.geometry.preservation import phi, phi_bound


@dataclass(frozen=True)
class Numbers:
    phi: float
    phi_bound: float
    raw_gap: float
    in_sample_gap: float


def numbers_of(alignment: AlignmentMap, text: np.ndarray) -> Numbers:
    rows = text.astype(np.float64)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    aligned = alignment.transform(torch.tensor(rows)).numpy()
    target = alignment.target_mean.numpy()
    return Numbers(
        phi(rows, aligned),
        phi_bound(rows, aligned, alignment.shift.numpy()),
        float(np.linalg.norm(target - rows.mean(0))),
        float(np.linalg.norm(target - aligned.mean(0))),
    )
