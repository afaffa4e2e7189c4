"""The numbers of the geometry report that need pairs, as JSON.

Kappas, the angle and the coupling have no interval: they hang on the smallest eigenvalues or on a
single direction, and are read beside what chance gives. Texts are clustered by K-means, at most
5000 of them into at most 50 clusters of 10 on average.

Source: `decomposition`, `paired`, `coupling` and `clusters` define every number here.
Departs from arXiv:2605.07825, App. B.2, in centring the residual after a map, too: otherwise the
mean gap that a map leaves would count as its leading direction.
Letters: x image row, y text row (mapped or not), row i of both from one record.
"""

from typing import Any

import numpy as np
from jaxtyping import Float64

from revision.geometry.bootstrap import bootstrap_means, bootstrap_rows
from revision.geometry.clusters import cluster_gaps, cluster_text, cluster_transfer
from revision.geometry.coupling import measure_coupling
from revision.geometry.decomposition import SubspaceShape, decompose, residual_coordinates
from revision.geometry.frame import Frame
from revision.geometry.intervals import (
    Json,
    interval_number,
    jackknife_covariances,
    number,
    rest_of,
)
from revision.geometry.measure_cosines import evenly
from revision.geometry.paired import direction_cosines, paired_gap
from revision.geometry.spectrum import anisotropy, effective_dimension, eigenvalues

NO_RESIDUAL = 1e-7  # rounding of float32 rows
CLUSTERED_ROWS = 5000
CLUSTERS, PAIRS_PER_CLUSTER = 50, 10

Rows = Float64[np.ndarray, "n dim"]


def measure_pairs(text: Rows, image: Rows, frame: Frame, *, draws: int, seed: int) -> Json | None:
    """Cosines, residual, its energies and shape in the fixed frame, and U-V coupling.

    None where pairs differ by the mean gap alone, so that there is no residual to describe.
    """
    resampling = {"draws": draws, "seed": seed}
    gaps = image - text
    if gaps.std(0).max() < NO_RESIDUAL:
        return None
    found, parts = paired_gap(text, image), decompose(text, image, frame)
    energy_share = _energy_share(gaps, **resampling)
    return {
        **_residual(gaps, frame),
        "cosine": interval_number(bootstrap_rows((text * image).sum(1), **resampling)),
        "r_energy": energy_share,
        "r_dist": _distance_share(gaps, **resampling),
        "rho": rest_of(energy_share),
        "direction": interval_number(bootstrap_rows(direction_cosines(gaps), **resampling)),
        "direction_peak": number(found.direction.peak),
        "energy": found.residual.energy.tolist(),
        **_shape("u", parts.inside),
        **_shape("v", parts.outside),
        "spread_angle": _optional(parts.spread_angle, parts.spread_angle_null),
        "concentration": _optional(parts.concentration),
        **_coupling(gaps, frame, seed),
        **_clusters(text, image, **resampling),
    }


def _residual(gaps: Rows, frame: Frame) -> Json:
    """Energy and shape of the centred residual, and its energies in U and in V."""
    dim = gaps.shape[1]

    def shape(covariance: np.ndarray) -> dict[str, float]:
        values = eigenvalues(covariance)
        inside = float(np.trace(frame.basis.T @ covariance @ frame.basis))
        return {
            "center_discrepancy": float(values.sum()),
            "anisotropy": anisotropy(values),
            "d_eff": effective_dimension(values),
            "residual_u": inside,
            "residual_v": float(values.sum()) - inside,
            "eta_u": inside / float(values.sum()),
        }

    nulls = {"anisotropy": 1.0, "d_eff": float(dim), "eta_u": frame.rank / dim}
    return jackknife_covariances([gaps], shape, nulls)


def _energy_share(gaps: Rows, *, draws: int, seed: int) -> Json:
    """R_energy = tr S_r / E|x - y|^2 = 1 - |m|^2 / E|x - y|^2."""
    energies = np.square(gaps).sum(1, keepdims=True)

    def share(mean: Any, energy: Any) -> float:
        return 1 - float(mean @ mean) / float(energy[0])

    drawn = bootstrap_means(share, [(gaps, energies)], draws=draws, seed=seed)
    return interval_number(drawn, bounds=(0.0, 1.0))


def _distance_share(gaps: Rows, *, draws: int, seed: int) -> Json:
    """R_dist = E|r| / E|x - y|, with the mean gap kept as it is."""
    lengths = (np.linalg.norm(a, axis=1)[:, None] for a in (gaps - gaps.mean(0), gaps))

    def share(residual: Any, whole: Any) -> float:
        return float(residual[0] / whole[0])

    drawn = bootstrap_means(share, [tuple(lengths)], draws=draws, seed=seed)
    return interval_number(drawn)


def _shape(subspace: str, shape: SubspaceShape) -> Json:
    return {
        f"kappa_{subspace}": _optional(shape.kappa, shape.kappa_null),
        f"anisotropy_{subspace}": _optional(shape.anisotropy, 1.0),
    }


def _coupling(gaps: Rows, frame: Frame, seed: int) -> Json:
    delta, zeta = residual_coordinates(gaps, frame)
    found = measure_coupling(delta, zeta, seed=seed)
    return {
        "coupling": number(found.strength),
        "coupling_r2": number(found.explained, null=found.null),
        "coupling_r2_held_out": number(found.explained_held_out, null=found.null_held_out),
    }


def _clusters(text: Rows, image: Rows, *, draws: int, seed: int) -> Json:
    """Is the gap the same for all topics? Beside random subsets of the clusters' sizes."""
    text, image = (evenly(rows, CLUSTERED_ROWS) for rows in (text, image))
    num_clusters = min(CLUSTERS, len(text) // PAIRS_PER_CLUSTER, len(np.unique(text, axis=0)))
    labels = cluster_text(text, num_clusters, seed=seed)
    shuffled = np.random.default_rng(seed).permutation(labels)
    found = cluster_gaps(text, image, labels, seed=seed)
    gains = [cluster_transfer(text, image, by, seed=seed).gain for by in (labels, shuffled)]
    cosines = bootstrap_rows(found.cosines, draws=draws, seed=seed)
    return {
        "cluster_cosine": interval_number(cosines, float(found.null.mean()), bounds=(-1.0, 1.0)),
        "cluster_gain": number(gains[0], null=gains[1]),
    }


def _optional(value: float | None, null: float | None = None) -> Json:
    return number(float("nan") if value is None else value, null=null)
