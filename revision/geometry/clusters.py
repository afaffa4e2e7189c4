"""Is the gap one vector everywhere? Gaps of clusters of the text, and their transfer. Needs pairs.

    cluster gap       mean gap of the pairs of cluster k, and its cosine with the mean gap m of all
    null              the same for random subsets of the same sizes, about
                      1 / sqrt(1 + tr S_r / (|m|^2 n_k)) for n_k far below n
    cluster transfer  c = mean gap of the pairs of some clusters; E cos(y + c, x) against
                      E cos(y, x) on the pairs of the other clusters

Source: arXiv:2503.22655v2, Sec. 2 (K-means of the text with K of 50, 100, 200, 500; shares of 50/50
and 80/19). The null is ours: a small cluster has a low cosine by chance alone, so cosines of 0.8
say something only beside it. Caution: clusters of the texts select what texts have for themselves,
noise included, and that is part of their gap; a cosine below the null shows that the gap varies
with the text, not that topics have gaps of their own. Clustering is scikit-learn's K-means, one
start.

Letters: x image row, y text row, m mean gap, n_k pairs of a cluster, S_r covariance of x - y.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64
from sklearn.cluster import KMeans

from revision.geometry.paired import check_pairs

ITERATIONS = 100

Rows = Float64[np.ndarray, "n dim"]
Labels = Int64[np.ndarray, " n"]
PerCluster = Float64[np.ndarray, " clusters"]


@dataclass(frozen=True)
class ClusterGaps:
    """Cosines of the cluster gaps with the mean gap; by size, label order, empty ones left out."""

    sizes: Int64[np.ndarray, " clusters"]
    cosines: PerCluster
    null: PerCluster


@dataclass(frozen=True)
class ClusterTransfer:
    """Mean paired cosine on clusters that took no part in the estimate of the shift."""

    num_source: int
    num_target: int
    raw: float
    shifted: float

    @property
    def gain(self) -> float:
        return self.shifted - self.raw


def cluster_text(text: Rows, count: int, *, seed: int = 0) -> Labels:
    """K-means labels 0..count-1 of unit text rows.

    Raises:
        ValueError: fewer rows than clusters.
    """
    if count > len(text):
        raise ValueError(
            f"{len(text)} text rows do not form {count} clusters: some would be empty; "
            "take more rows or fewer clusters"
        )
    means = KMeans(count, n_init=1, max_iter=ITERATIONS, random_state=seed).fit(text)
    return means.labels_.astype(np.int64)


def cluster_gaps(text: Rows, image: Rows, labels: Labels, *, seed: int = 0) -> ClusterGaps:
    """Direction of the gap in every cluster, beside random subsets of the same sizes."""
    check_pairs(text, image)
    gaps = image - text
    shuffled = np.random.default_rng(seed).permutation(labels)
    sizes, cosines = _label_cosines(gaps, labels)
    return ClusterGaps(sizes, cosines, null=_label_cosines(gaps, shuffled)[1])


def cluster_transfer(
    text: Rows, image: Rows, labels: Labels, *, source_share: float = 0.5, seed: int = 0
) -> ClusterTransfer:
    """Estimate the shift on a share of the clusters and try it on the others.

    Raises:
        ValueError: a share that leaves no cluster on one side.
    """
    check_pairs(text, image)
    present = np.random.default_rng(seed).permutation(np.unique(labels))
    num_source = round(source_share * len(present))
    if not 0 < num_source < len(present):
        raise ValueError(
            f"a share of {source_share} makes {num_source} of {len(present)} clusters the source: "
            "both sides need one, or the shift would be tried on its own rows"
        )
    is_source = np.isin(labels, present[:num_source])
    shift = (image - text)[is_source].mean(0)
    y, x = text[~is_source], image[~is_source]
    return ClusterTransfer(
        num_source=int(is_source.sum()),
        num_target=len(y),
        raw=_mean_cosine(y, x),
        shifted=_mean_cosine(y + shift, x),
    )


def _label_cosines(gaps: Rows, labels: Labels) -> tuple[np.ndarray, np.ndarray]:
    """Sizes of the clusters that are not empty, and the cosine of each mean gap with all's."""
    present, places, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    sums = np.zeros((len(present), gaps.shape[1]))
    np.add.at(sums, places, gaps)
    mean = gaps.mean(0)
    lengths = np.linalg.norm(sums, axis=1) * np.linalg.norm(mean)
    return sizes, np.divide(sums @ mean, lengths, out=np.zeros(len(sums)), where=lengths > 0)


def _mean_cosine(one: Rows, two: Rows) -> float:
    lengths = np.linalg.norm(one, axis=1) * np.linalg.norm(two, axis=1)
    return float(((one * two).sum(1) / lengths).mean())
