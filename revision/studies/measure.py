"""One job of a gap study: a map fitted on a sample, and its numbers on rows it has not seen.

Cheap by design: a study is a multirun of many such jobs over sample sizes, trials, domains or
steps of a map, and `revision.studies.table` turns their `numbers.json` into a table.

    raw_gap, in_sample_gap, gap    |mean(z) - mean(x)|: untouched, fitting rows, held-out rows
    floor, ratio                   what sampling noise gives the held-out gap; gap / floor
    predicted_gap                  |(m_x - m'_x) - s (m_y - m'_y)|: the gap from means alone

The floor is that of `revision.geometry.floor`, less what the fitting rows have in common: texts and
images are drawn independently of each other, and where o records are in both samples the fit noise
loses 2 s o tr(S_xy) / (N_x N_y), with S_xy the covariance of held-out pairs.

Source: arXiv:2602.07026v3, App. E.1-E.3 and Table 5 (studies); the predictions follow from the
means (docs/gap_studies.md).

Letters: x image, y text, z aligned text row; m fitted means, m' means of the held-out rows; s scale
of the map; N fitting rows.
"""

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain
from math import sqrt
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float64

from revision.alignment.base import AlignmentMap, Cloud
from revision.alignment.methods.none import NoAlignment
from revision.alignment.methods.realign import ReAlign
from revision.alignment.moments import moments_of, moments_of_transformed
from revision.geometry.angles import angle_divergence
from revision.geometry.floor import paired_noise, predicted_gap, unpaired_noise
from revision.geometry.neighbours import mixing, nearest_others, neighbour_overlap
from revision.geometry.precision import Mean, cosine_loss, exact_mean, mean_of, stored
from revision.geometry.preservation import phi, phi_bound, psi
from revision.geometry.spectrum import (
    covariance_of,
    effective_rank,
    eigenvalues,
    power_law_exponent,
)
from revision.studies.sample import Pool

NEIGHBOURS = (10, 20)
STEPS = ("none", "anchor", "anchor_trace", "anchor_centroid", "all")

Text = Float64[np.ndarray, "n_y dim"]
Image = Float64[np.ndarray, "n_x dim"]
Numbers = dict[str, float]


@dataclass(frozen=True)
class Sample:
    """Fitting rows of one modality: those of its pools, one pool after the other."""

    pools: Sequence[Pool]
    storage: str = "as_stored"

    def __len__(self) -> int:
        return sum(len(pool) for pool in self.pools)

    def batches(self) -> Iterator[np.ndarray]:
        rows = chain.from_iterable(pool.batches() for pool in self.pools)
        return (stored(batch, self.storage) for batch in rows)

    @property
    def effective_rows(self) -> float:
        """N of the sampling error of a mean: fewer than the rows where some are repeated."""
        repeats = [np.unique(pool.positions, return_counts=True)[1] for pool in self.pools]
        return len(self) ** 2 / float(np.square(np.concatenate(repeats)).sum())

    def shared_with(self, other: "Sample") -> int:
        """How many pairs of a row here and a row there belong to one record."""
        here, there = (Counter(id for p in s.pools for id in p.ids()) for s in (self, other))
        return sum(count * there[id] for id, count in here.items())


@dataclass
class Cost:
    """Wall time, and how far the resident memory rose; None where the system does not say."""

    seconds: float = 0.0
    peak_mib: float | None = None


@dataclass(frozen=True)
class Fitted:
    """A map, what it was fitted on, what that cost, and what the arithmetic of a study adds."""

    alignment: AlignmentMap
    source: Sample
    target: Sample
    cost: Cost
    extra: Numbers


def ablation(step: str) -> AlignmentMap:
    """ReAlign as far as `step`: the steps of the paper's ablation, and the two it left out."""
    if step not in STEPS:
        raise ValueError(f"step is one of {', '.join(STEPS)}, not {step!r}")
    if step == "none":
        return NoAlignment()
    return ReAlign(trace="trace" in step or step == "all", centroid=step in STEPS[3:])


def fit(
    alignment: AlignmentMap,
    source: Sample,
    target: Sample,
    accumulator: str | None = None,
) -> Fitted:
    """Fit on both samples, on the means of another accumulator if one is given.

    Raises:
        ValueError: the map wants pairs, or comparisons other than with untouched images.
    """
    if alignment.needs_pairs or alignment.is_random or alignment.changes_images:
        raise ValueError(
            f"alignment '{alignment.name}' wants pairs, adds noise or changes the images; studies "
            "draw unpaired rows and compare with images as they are: use scripts/measure_gap.py"
        )
    extra: Numbers = {}
    with measured() as cost:
        text, image = (_cloud(sample, alignment) for sample in (source, target))
        if accumulator is not None:
            text, image = (_with_mean_of(cloud, accumulator) for cloud in (text, image))
        alignment.fit(text, image)
    if accumulator is not None:
        start = time.perf_counter()
        mean_of(text.rows(), accumulator)
        extra["mean_seconds"] = time.perf_counter() - start
        extra["mean_error"] = _distance(alignment.source_mean.numpy(), exact_mean(text.rows()))
    if source.storage != "as_stored":
        original = replace(source, storage="as_stored")
        extra["cosine_loss"] = cosine_loss(original.batches(), source.storage)
    return Fitted(alignment, source, target, cost, extra)


def numbers_of(fitted: Fitted, text: Text, image: Image, *, paired: bool) -> Numbers:
    """All numbers of a fitted map on held-out unit rows, which may be `paired`."""
    alignment = fitted.alignment
    with torch.no_grad():
        aligned = alignment.transform(torch.tensor(text)).numpy()
    test_noise, fit_noise = _noise(fitted, text, image, aligned, paired=paired)
    floor = predicted_gap(test_noise, fit_noise)
    gaps = _gaps(fitted, text.mean(0), image.mean(0), aligned.mean(0))
    cosine = {"paired_cosine": phi(image, aligned)} if paired else {}
    peak = {} if fitted.cost.peak_mib is None else {"peak_mib": fitted.cost.peak_mib}
    return {
        "fit_rows": len(fitted.source),
        "test_rows": len(image),
        **gaps,
        "floor": floor,
        "test_floor": sqrt(test_noise),
        "ratio": gaps["gap"] / floor,
        **cosine,
        **_preserved(alignment, text, aligned),
        **_likeness(text, image, aligned),
        **fitted.extra,
        "seconds": fitted.cost.seconds,
        **peak,
    }


def _gaps(fitted: Fitted, text: Mean, image: Mean, aligned: Mean) -> Numbers:
    """Distances of means; `text`, `image` and `aligned` are those of the held-out rows."""
    alignment = fitted.alignment
    at_fit = moments_of_transformed(fitted.source.batches(), alignment.transform).mean
    image_miss = alignment.target_mean.numpy() - image
    text_miss = alignment.source_mean.numpy() - text
    return {
        "raw_gap": _distance(text, image),
        "in_sample_gap": _distance(at_fit, alignment.target_mean.numpy()),
        "gap": _distance(aligned, image),
        "predicted_gap": _distance(image_miss, alignment.gain * text_miss),
        "image_distance": float(np.linalg.norm(image_miss)),
        "text_distance": float(np.linalg.norm(text_miss)),
        "scale": alignment.gain,
        "source_trace": float(alignment.source_trace),
        "target_trace": float(alignment.target_trace),
    }


def _noise(
    fitted: Fitted, text: Text, image: Image, aligned: Text, *, paired: bool
) -> tuple[float, float]:
    """Mean squares of what sampling adds to the held-out gap: by the test rows, by the fit."""
    scale = fitted.alignment.gain
    num_source, num_target = fitted.source.effective_rows, fitted.target.effective_rows
    fit_noise = float(
        fitted.alignment.target_trace / num_target
        + scale**2 * fitted.alignment.source_trace / num_source
    )
    if not paired:
        traces = [float(rows.var(0).sum()) for rows in (image, aligned)]
        return unpaired_noise(traces[0], len(image), traces[1], len(aligned)), fit_noise
    common = phi(text, image) - float(text.mean(0) @ image.mean(0))
    share = fitted.source.shared_with(fitted.target) / (len(fitted.source) * len(fitted.target))
    return paired_noise(aligned, image), max(0.0, fit_noise - 2 * scale * share * common)


def _preserved(alignment: AlignmentMap, text: Text, aligned: Text) -> Numbers:
    before, after = (nearest_others(rows, max(NEIGHBOURS)) for rows in (text, aligned))
    kept = {k: float(neighbour_overlap(before, after, k).mean()) for k in NEIGHBOURS}
    return {
        "phi": phi(text, aligned),
        "phi_bound": phi_bound(text, aligned, alignment.shift.numpy()),
        "psi": psi(text, aligned),
        **{f"omega_{k}": share for k, share in kept.items()},
    }


def _likeness(text: Text, image: Image, aligned: Text) -> Numbers:
    (mixed,) = mixing(image, aligned, (max(NEIGHBOURS),))
    spectra = {"text": text, "image": image, "aligned": aligned}
    values = {name: eigenvalues(covariance_of(rows)) for name, rows in spectra.items()}
    return {
        "mixing_rate": mixed.rate,
        "mixing_z": mixed.penetration,
        "mixing_x": mixed.coverage,
        "js_bits": angle_divergence(aligned, image).bits,
        **{f"alpha_{name}": power_law_exponent(v) for name, v in values.items()},
        **{f"erank_{name}": effective_rank(v) for name, v in values.items()},
    }


@contextmanager
def measured() -> Iterator[Cost]:
    """Fill in what the block cost. Linux keeps a peak that can be reset; others have none."""
    cost, before = Cost(), _reset_peak()
    start = time.perf_counter()
    yield cost
    cost.seconds = time.perf_counter() - start
    if before is not None:
        cost.peak_mib = max(0.0, (_memory("VmHWM") - before) / 1024)


def _reset_peak() -> int | None:
    try:
        Path("/proc/self/clear_refs").write_text("5")
        return _memory("VmRSS")
    except (OSError, ValueError):
        return None


def _memory(name: str) -> int:
    """A line of this process' status, in KiB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1])
    raise ValueError(f"/proc/self/status has no {name}")


def _cloud(sample: Sample, alignment: AlignmentMap) -> Cloud:
    return Cloud(moments_of(sample.batches(), second=alignment.second_moments), sample.batches)


def _with_mean_of(cloud: Cloud, accumulator: str) -> Cloud:
    return replace(cloud, moments=replace(cloud.moments, mean=mean_of(cloud.rows(), accumulator)))


def _distance(one: Mean, other: Mean) -> float:
    return float(np.linalg.norm(one - other))
