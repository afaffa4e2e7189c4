"""Exact nearest neighbours of unit rows, and how far two clouds mix locally.

Pool Q = X and Z; N_k(u) the k rows of Q without u of the largest cosine to u; p_k(u) the share of
image rows in N_k(u); H2(p) = -p log2 p - (1 - p) log2(1 - p).

    mixing rate  mean of p_k over u in Z; beside it the share of rows with any image neighbour
    M_k^Z, M_k^X mean of H2(p_k) over u in Z ("penetration"), over u in X ("coverage"), each
                 divided by its expectation under random labels
    overlap      |N_k^Y(i) and N_k^Z(i)| / k for row i in two versions of the same rows

Under random labels k p_k is hypergeometric: k draws from the other n_x + n_z - 1 rows, n_x of them
images for u in Z (n_x - 1 for u in X). So 0 <= M <= 1 / E[H2], about 1.04 for k = 20 and equal
large clouds, 0 for clouds that are apart and 1 for clouds of one distribution.

Source: arXiv:2602.07026v3, App. D.3, F.4 (mixing rate, overlap; the rate is not defined there);
arXiv:2605.07825, App. B.2 (M_k, by permutation; the closed form is ours).

Search: scikit-learn's brute force on squared distances, which order unit rows as cosines do. In
float64: faiss-cpu's flat index takes half the time (20 000 x 1280 on one thread: 8.6 s against
18 s; x 256: 2.0 against 4.1) but rounds to float32, and would be a second dependency beside the one
that clusters. Beyond the pool (`mixing` joins a copy of both clouds) 100 000 rows took 73 MB. Time
grows with the square of the rows: 25 times as much for 100 000.
Distances within 1e-12 count as equal, and the row that comes first in Q wins.

Letters: X image rows, Y text rows, Z aligned text rows, k neighbours, n_x, n_z rows.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64
from scipy.special import entr
from scipy.stats import hypergeom
from sklearn.neighbors import NearestNeighbors

TIE = 1e-12
BLOCK_RESULTS = 1_000_000  # neighbours asked for at a time: 16 MB

Rows = Float64[np.ndarray, "n dim"]
Neighbours = Int64[np.ndarray, "n k"]


@dataclass(frozen=True)
class Mixing:
    """Share of image rows among the k neighbours of every aligned text row and every image row.

    The means are properties; intervals come from resampling these per-row numbers.
    """

    size: int
    of_aligned: Float64[np.ndarray, " n_z"]
    of_image: Float64[np.ndarray, " n_x"]

    @property
    def rate(self) -> float:
        return float(self.of_aligned.mean())

    @property
    def touched(self) -> float:
        """Share of aligned text rows with at least one image among their neighbours."""
        return float((self.of_aligned > 0).mean())

    @property
    def penetration(self) -> float:
        """M_k^Z."""
        return float(self.penetration_rows.mean())

    @property
    def coverage(self) -> float:
        """M_k^X."""
        return float(self.coverage_rows.mean())

    @property
    def penetration_rows(self) -> Float64[np.ndarray, " n_z"]:
        images, texts = len(self.of_image), len(self.of_aligned)
        return binary_entropy(self.of_aligned) / expected_entropy(self.size, images, texts - 1)

    @property
    def coverage_rows(self) -> Float64[np.ndarray, " n_x"]:
        images, texts = len(self.of_image), len(self.of_aligned)
        return binary_entropy(self.of_image) / expected_entropy(self.size, images - 1, texts)


def mixing(
    image: Float64[np.ndarray, "n_x dim"],
    aligned: Float64[np.ndarray, "n_z dim"],
    sizes: tuple[int, ...] = (20,),
) -> tuple[Mixing, ...]:
    """Local mixing for every k of `sizes`, from one search over the pool."""
    found = nearest_others(np.concatenate([image, aligned]), max(sizes))
    from_image = found < len(image)
    shares = [from_image[:, :size].mean(1) for size in sizes]
    return tuple(
        Mixing(size, share[len(image) :], share[: len(image)])
        for size, share in zip(sizes, shares, strict=True)
    )


def nearest_others(rows: Rows, count: int) -> Neighbours:
    """The `count` nearest other rows of each row, nearest first and ties by position.

    Raises:
        ValueError: not more rows than neighbours.
    """
    if not 1 <= count < len(rows):
        raise ValueError(
            f"{len(rows)} rows have {len(rows) - 1} neighbours each, not {count}; "
            "take more rows or fewer neighbours"
        )
    search = NearestNeighbors(metric="sqeuclidean", algorithm="brute").fit(rows)
    found = np.empty((len(rows), count), np.int64)
    pending, width = np.arange(len(rows)), count + 2
    while len(pending):
        width = min(width, len(rows))
        undecided = []
        for block in _blocks(pending, width):
            distances, indices = search.kneighbors(rows[block], width)
            nearest, certain = _decide(distances, indices, block, count)
            decided = certain | (width == len(rows))
            found[block[decided]] = nearest[decided]
            undecided.append(block[~decided])
        pending, width = np.concatenate(undecided), 4 * width
    return found


def neighbour_overlap(
    one: Int64[np.ndarray, "n k_one"], two: Int64[np.ndarray, "n k_two"], count: int
) -> Float64[np.ndarray, " n"]:
    """Share of the `count` nearest that two lists of neighbours of the same row have in common."""
    if min(one.shape[1], two.shape[1]) < count:
        raise ValueError(
            f"overlap of {count} neighbours asked of lists of {one.shape[1]} and {two.shape[1]}; "
            "search for more"
        )
    both = np.sort(np.concatenate([one[:, :count], two[:, :count]], axis=1), axis=1)
    return (both[:, 1:] == both[:, :-1]).sum(1) / count


def binary_entropy(shares: Float64[np.ndarray, "*any"]) -> Float64[np.ndarray, "*any"]:
    """H2 in bits; 0 at 0 and 1."""
    return (entr(shares) + entr(1 - shares)) / np.log(2)


def expected_entropy(count: int, images: int, texts: int) -> float:
    """E[H2] of `count` neighbours drawn without regard to the origin of the rows."""
    drawn = np.arange(count + 1)
    chances = hypergeom(images + texts, images, count).pmf(drawn)
    return float(chances @ binary_entropy(drawn / count))


def _blocks(positions: np.ndarray, width: int) -> list[np.ndarray]:
    step = max(1, BLOCK_RESULTS // width)
    return [positions[start : start + step] for start in range(0, len(positions), step)]


def _decide(
    distances: np.ndarray, indices: np.ndarray, block: np.ndarray, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """The nearest `count` by distance, then position; and whether they are certain.

    They are not where the farthest row found is as near as the last of them: rows not found may be
    as near, too, and come first.
    """
    distances = np.where(indices == block[:, None], np.inf, distances)  # the row itself goes last
    order = np.argsort(distances, axis=1, kind="stable")
    distances = np.take_along_axis(distances, order, 1)
    indices = np.take_along_axis(indices, order, 1)
    is_farther = np.diff(distances, axis=1) > TIE
    ranks = np.cumsum(is_farther, axis=1)  # of columns 1, 2, ...; column 0 has rank 0
    ranks = np.concatenate([np.zeros_like(ranks[:, :1]), ranks], axis=1)
    places = np.lexsort((indices, ranks), axis=1)[:, :count]
    return np.take_along_axis(indices, places, 1), ranks[:, -2] > ranks[:, count - 1]
