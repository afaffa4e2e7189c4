"""All numbers of the geometry report, gathered into one JSON object for each split of the rows.

A split (the fitting rows; held-out rows) is measured the same way: each cloud by itself (`clouds`),
texts against images before and after the map (`before`, `after`), and mapped texts against the
texts they came from (`preservation`). A number is an object

    value             the estimate
    low, high         95 % interval, or null where none is given
    null              what chance gives: the floor of a gap, q / d, random labels; or a bound

The reference frame is that of the fitting rows for both splits: a frame that is fitted on the rows
that it splits would find less of them outside.

Source: see the modules that measure, each for its own numbers.
Letters: x image row, y text row, z mapped text row, n rows, d width, r rank of the frame.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from math import sqrt

import numpy as np
from jaxtyping import Float64

from revision.geometry import angles, marginal, spectrum
from revision.geometry.bootstrap import bootstrap_means, bootstrap_squared_gap
from revision.geometry.frame import Frame, principal_axes, reference_frame
from revision.geometry.intervals import (
    Json,
    interval_number,
    jackknife_covariances,
    length_number,
    number,
    rest_of,
)
from revision.geometry.measure_cosines import divergence, measure_kept, mixing, on_sphere
from revision.geometry.measure_pairs import measure_pairs
from revision.geometry.options import MeasureOptions
from revision.geometry.phantom import matched_drift

MIN_ROWS = 20
NO_SPREAD = 1e-7  # rounding of float32 rows
SMALLEST_FLOOR = 1e-12  # of pairs that are alike, whose gap has no sampling error
DRAWN_POINTS = 256  # of a density

Rows = Float64[np.ndarray, "_ dim"]


@dataclass(frozen=True)
class Split:
    """Rows of one split. Without a map `mapped` is None; `moved` are the images after the map.

    `fit_noise` is what the fit's own sampling error adds to a squared gap after the map, `shift`
    the vector v of the bound on Phi.
    """

    text: Rows
    image: Rows
    paired: bool
    mapped: Rows | None = None
    moved: Rows | None = None
    fit_noise: float = 0.0
    shift: Float64[np.ndarray, " dim"] | None = None

    @property
    def clouds(self) -> dict[str, Rows]:
        """By name; images that the map moves are a cloud of their own."""
        named = {"image": self.image, "text": self.text, "mapped": self.mapped, "moved": self.moved}
        return {name: rows for name, rows in named.items() if rows is not None}


def frame_of(split: Split, options: MeasureOptions) -> Frame:
    """The reference frame of the rows before the map; of at most half the width, so V exists."""
    covariances = spectrum.covariance_of(split.text), spectrum.covariance_of(split.image)
    rank = min(options.rank, max(1, split.text.shape[1] // 2))
    return reference_frame(*covariances, rank=rank)


def measure_split(split: Split, frame: Frame, options: MeasureOptions) -> Json:
    """Everything about one split.

    Raises:
        ValueError: too few rows, or a cloud without spread.
    """
    check_size(len(split.text), len(split.image))
    _check_spread(split.clouds)
    before = _compare(split, split.text, split.image, 0.0, frame, options)
    after = preservation = None
    if split.mapped is not None and split.shift is not None:
        images = split.image if split.moved is None else split.moved
        after = _compare(split, split.mapped, images, split.fit_noise, frame, options)
        preservation = measure_kept(split.text, split.mapped, split.shift, options)
    return {
        "rows": {"text": len(split.text), "image": len(split.image), "paired": split.paired},
        "clouds": {name: _cloud(rows, options) for name, rows in split.clouds.items()},
        "before": before,
        "after": after,
        "preservation": preservation,
    }


def check_size(num_text: int, num_image: int) -> None:
    """Refuse samples too small for any of the numbers to mean something."""
    if min(num_text, num_image) < MIN_ROWS:
        raise ValueError(
            f"{num_text} text and {num_image} image rows are too few to measure a geometry, "
            f"{MIN_ROWS} of each are needed: spectra and intervals would be arbitrary"
        )


def _check_spread(clouds: Mapping[str, Rows]) -> None:
    for name, rows in clouds.items():
        spread = float(rows.std(0).max())
        if spread < NO_SPREAD:
            raise ValueError(
                f"{len(rows)} {name} rows are all alike (largest standard deviation {spread:.2g}, "
                f"rounding is {NO_SPREAD:g}): a cloud without spread has no shape, and its "
                "spectrum would be that of the rounding; look at what embedded or mapped them"
            )


def _cloud(rows: Rows, options: MeasureOptions) -> Json:
    """Shape of one cloud."""
    count = len(rows)
    described = spectrum.describe(spectrum.eigenvalues(spectrum.covariance_of(rows)), count)
    names = [name for name, value in asdict(described).items() if value is not None]
    names.remove("kappa_null")

    def statistics(covariance: np.ndarray) -> Mapping[str, float]:
        found = asdict(spectrum.describe(spectrum.eigenvalues(covariance), count))
        return {name: np.nan if found[name] is None else found[name] for name in names}

    values = spectrum.eigenvalues(spectrum.covariance_of(rows))
    unit = on_sphere(rows)
    pairs = angles.random_pairs(count, seed=options.seed)
    grid, density = angles.cosine_density(angles.pair_cosines(unit, pairs))
    step = len(grid) // DRAWN_POINTS
    length = bootstrap_means(lambda mean: float(mean @ mean), [(rows,)], **options.resampling)
    return {
        **jackknife_covariances(
            [rows],
            statistics,
            {"kappa": described.kappa_null},
            logarithmic=("condition", "kappa"),
        ),
        "mean_norm": length_number(length, null=sqrt(described.trace / count)),
        "fitted_ranks": min(
            spectrum.FIT_LAST_RANK, len(values) // 2, spectrum.usable_ranks(values)
        ),
        "spectrum": values.tolist(),
        "cosine_density": [grid[::step].tolist(), density[::step].tolist()],
    }


def _compare(
    split: Split,
    text: Rows,
    image: Rows,
    fit_noise: float,
    frame: Frame,
    options: MeasureOptions,
) -> Json:
    """Texts, mapped or not, against images."""
    drift = matched_drift(text, image)
    found = {
        **_bias(split, text, image, fit_noise, frame, options),
        "phantom": number(drift.length),
        "phantom_anchor": number(drift.anchored_length),
        **_marginals(text, image, frame),
        "js_bits": divergence(on_sphere(text), on_sphere(image), options),
        **mixing(on_sphere(text), on_sphere(image), options),
        "paired": None,
    }
    if split.paired:
        found["paired"] = measure_pairs(text, image, frame, **options.resampling)
    return found


def _bias(
    split: Split, text: Rows, image: Rows, fit_noise: float, frame: Frame, options: MeasureOptions
) -> Json:
    """The mean gap, whole and in the frame, each beside its floor."""
    groups: list[tuple[np.ndarray, ...]] = [(text, image)] if split.paired else [(text,), (image,)]
    if split.paired:
        residual = spectrum.covariance_of(image - text) / len(text)
    else:
        residual = spectrum.covariance_of(text) / len(text)
        residual = residual + spectrum.covariance_of(image) / len(image)
    inside = float(np.trace(frame.basis.T @ residual @ frame.basis))
    noise = float(np.trace(residual))
    share = float(frame.rank) / len(frame.values)  # of the fit noise, whose shape is not known
    floors = {
        "gap": (None, noise + fit_noise),
        "pmb": (frame.basis, inside + share * fit_noise),
        "cob": (frame.complement, noise - inside + (1 - share) * fit_noise),
    }
    found: Json = {}
    for name, (basis, floor) in floors.items():
        parts = groups if basis is None else [tuple(a @ basis for a in g) for g in groups]
        square = bootstrap_squared_gap(parts, **options.resampling)
        found[name] = length_number(square, null=max(sqrt(max(floor, 0.0)), SMALLEST_FLOOR))
    inside_share = number(np.nan, null=share)
    if found["gap"]["value"] > 0:
        drawn = bootstrap_means(partial(_inside_share, frame.basis), groups, **options.resampling)
        inside_share = interval_number(drawn, share, bounds=(0.0, 1.0))
    return found | {"pmb_share": inside_share, "cob_share": rest_of(inside_share)}


def _inside_share(basis: np.ndarray, one: np.ndarray, two: np.ndarray) -> float:
    return float(np.square((two - one) @ basis).sum() / np.square(two - one).sum())


def _marginals(text: Rows, image: Rows, frame: Frame) -> Json:
    """Covariances against covariances, no pairs needed."""
    covariances = spectrum.covariance_of(text), spectrum.covariance_of(image)
    axes = [principal_axes(c)[1] for c in covariances]
    leading = [each[:, : frame.rank] for each in axes]
    sizes = tuple(size for size in marginal.OVERLAP_SIZES if size < len(frame.values))
    overlaps = marginal.overlap_curve(axes[0], axes[1], sizes)
    return {
        **jackknife_covariances([text, image], _covariance_gaps),
        "overlaps": [number(o.value, null=o.null) | {"size": o.size} for o in overlaps],
        "angles": np.degrees(marginal.principal_angles(leading[0], leading[1])).tolist(),
    }


def _covariance_gaps(text: np.ndarray, image: np.ndarray) -> dict[str, float]:
    values = spectrum.eigenvalues(text), spectrum.eigenvalues(image)
    return {
        "g_sigma": marginal.covariance_gap(text, image),
        "g_sigma_absolute": float(np.linalg.norm(image - text)),
        "c_lambda": _correlation(*values, len(text)),
        "c_lambda_half": _correlation(*values, len(text) // 2),
    }


def _correlation(text: np.ndarray, image: np.ndarray, ranks: int) -> float:
    """C_lambda; not a number where too few eigenvalues can be compared."""
    try:
        return marginal.spectral_correlation(text, image, ranks)
    except ValueError:
        return np.nan
