"""The numbers of the geometry report that come from cosines of rows, as JSON: angles, neighbours.

Rows are taken at norm 1, also where a map leaves them elsewhere. Neighbours are searched among at
most `neighbour_rows` of each cloud, and a cloud's draws resample its rows with their neighbours
kept. The draws of a divergence and of Psi use a quarter of the pairs that the value uses.

Source: `angles`, `neighbours` and `preservation` define every number here.
Letters: y text row, z mapped text row, x image row.
"""

from math import inf

import numpy as np
from jaxtyping import Float64

from revision.geometry import angles, neighbours
from revision.geometry.bootstrap import bootstrap, bootstrap_rows, pair_weights
from revision.geometry.intervals import Json, interval_number, number
from revision.geometry.options import MeasureOptions
from revision.geometry.preservation import pearson, phi_bound

Rows = Float64[np.ndarray, "_ dim"]
Vector = Float64[np.ndarray, " dim"]


def on_sphere(rows: Rows) -> Rows:
    """Rows at norm 1, where a map leaves them elsewhere."""
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), np.finfo(float).tiny)


def evenly(rows: np.ndarray, count: int) -> np.ndarray:
    """At most `count` rows, at even distances."""
    count = min(count, len(rows))
    return rows[np.arange(count) * len(rows) // count]


def divergence(text: Rows, image: Rows, options: MeasureOptions) -> Json:
    """Jensen-Shannon divergence of the cosines within each cloud, in bits."""
    sides = []
    for rows in (text, image):
        pairs = angles.random_pairs(len(rows), angles.NUM_PAIRS // 4, options.seed)
        cosines = angles.pair_cosines(rows, pairs)
        sides.append((pairs, cosines, angles.silverman(cosines)))

    def statistic(*counts: np.ndarray) -> float:
        densities = [
            angles.cosine_density(c, weights=pair_weights(n, p), bandwidth=h)[1]
            for (p, c, h), n in zip(sides, counts, strict=True)
        ]
        return angles.jensen_shannon(*densities).bits

    drawn = bootstrap(statistic, [len(text), len(image)], **options.resampling)
    value = angles.angle_divergence(text, image, seed=options.seed).bits
    found = interval_number(drawn)
    shift = value - drawn.estimate
    return number(value, max(0.0, found["low"] + shift), min(1.0, found["high"] + shift))


def mixing(text: Rows, image: Rows, options: MeasureOptions) -> Json:
    """Who the neighbours are, in a pool of at most `neighbour_rows` of each cloud."""
    text, image = (evenly(rows, options.neighbour_rows) for rows in (text, image))
    size = min(options.neighbours, len(text) + len(image) - 1)
    (found,) = neighbours.mixing(image, text, (size,))
    drawn = {
        "mixing_rate": (found.of_aligned, len(image) / (len(image) + len(text) - 1)),
        "touched": ((found.of_aligned > 0).astype(np.float64), 1.0),
        "m_text": (found.penetration_rows, 1.0),
        "m_image": (found.coverage_rows, 1.0),
    }
    return {
        name: interval_number(bootstrap_rows(rows, **options.resampling), null, bounds=(0.0, inf))
        for name, (rows, null) in drawn.items()
    } | {"neighbours": size}


def measure_kept(text: Rows, mapped: Rows, shift: Vector, options: MeasureOptions) -> Json:
    """What of the texts a map keeps; row i of both is the same text. `shift` bounds Phi."""
    mapped = on_sphere(mapped)
    bound = phi_bound(text, mapped, shift)
    found = {
        "phi": interval_number(
            bootstrap_rows((text * mapped).sum(1), **options.resampling), null=bound
        ),
        "psi": _psi(text, mapped, options),
    }
    few = [evenly(rows, options.neighbour_rows) for rows in (text, mapped)]
    wanted = {"omega_10": 10, "omega": options.neighbours}
    sizes = {name: min(size, len(few[0]) - 1) for name, size in wanted.items()}
    lists = [neighbours.nearest_others(rows, max(sizes.values())) for rows in few]
    for name, size in sizes.items():
        kept = neighbours.neighbour_overlap(lists[0], lists[1], size)
        drawn = bootstrap_rows(kept, **options.resampling)
        found[name] = interval_number(drawn, null=size / (len(few[0]) - 1))
    return found


def _psi(text: Rows, mapped: Rows, options: MeasureOptions) -> Json:
    pairs = angles.random_pairs(len(text), seed=options.seed)
    cosines = [angles.pair_cosines(rows, pairs) for rows in (text, mapped)]
    some = angles.random_pairs(len(text), angles.NUM_PAIRS // 4, options.seed)
    before, after = (angles.pair_cosines(rows, some) for rows in (text, mapped))

    def statistic(counts: np.ndarray) -> float:
        return pearson(before, after, pair_weights(counts, some))

    drawn = bootstrap(statistic, [len(text)], **options.resampling)
    found, value = interval_number(drawn), pearson(cosines[0], cosines[1])
    shift = value - drawn.estimate
    return number(value, found["low"] + shift, min(1.0, found["high"] + shift), 0.0)
