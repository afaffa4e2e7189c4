"""Procrustes oracle: the rotation that brings texts closest to THEIR images. Needs pairs.

    C = E[(x - mu_x) (y - mu_y)^T] = A S B^T,   W = A B^T,   z = Norm(mu_x + W (y - mu_y))

Among all orthogonal W this one has the least E|x - mu_x - W (y - mu_y)|^2. It sees which text
belongs to which image, so it is no competitor of the methods that do not: it bounds what a rigid
motion can reach.
Source: P. Schoenemann, A generalized solution of the orthogonal Procrustes problem, Psychometrika
31 (1966); no paper on the modality gap reports it.
Departs from it where C has (almost) no rank in a direction, as with fewer pairs than dimensions:
there nothing says how to turn, and the W nearest the identity is taken. With C = A S B^T the
directions of S above 1e-12 of the largest keep A B^T; between the two complements, the same formula
is applied to the identity.
Cost: one pass over each modality, one over both together, one singular value decomposition of a
(d, d) matrix; applying is one (d, d) product per row.
Needs pairs: row i of texts and images must come from the same record.
Letters: x image row, y text row, mu mean, d width.
"""

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from revision.alignment.base import AlignmentMap, Cloud
from revision.alignment.covariance import times
from revision.alignment.pairs import cross_covariance

NO_DIRECTION = 1e-12


class ProcrustesOracle(AlignmentMap):
    """The best rigid motion, given the pairs."""

    name = "procrustes_oracle"
    needs_pairs = True
    buffer_names = (*AlignmentMap.buffer_names, "rotation")
    rotation: Tensor

    def fit(self, source: Cloud, target: Cloud) -> None:
        """As the base, then the rotation, in one pass over the pairs."""
        super().fit(source, target)
        self.rotation = torch.tensor(nearest_rotation(cross_covariance(source, target)))

    def move(self, rows: Float64[Tensor, "n dim"]) -> Float64[Tensor, "n dim"]:
        return times(rows.sub_(self.source_mean), self.rotation).add_(self.target_mean)


def nearest_rotation(cross: Float64[np.ndarray, "dim dim"]) -> Float64[np.ndarray, "dim dim"]:
    """The orthogonal W with the largest tr(W^T cross); the identity where cross says nothing."""
    left, values, right = np.linalg.svd(cross)
    rank = int((values > NO_DIRECTION * values[0]).sum())
    rotation = left[:, :rank] @ right[:rank]
    free_left, free_right = left[:, rank:], right[rank:]
    inner_left, _, inner_right = np.linalg.svd(free_left.T @ free_right.T)
    return rotation + free_left @ (inner_left @ inner_right) @ free_right
