"""The report in words: what is fine, what to know, what to mend, each with number and threshold.

`verdict` reads the JSON object that `revision.geometry.measure` fills and computes nothing new.
The thresholds are ours; where a paper gives a number that bears on one, it is named in the reason.
They are wide on purpose: a finding that is no cause for action is a notice, not a warning.
"""

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from revision.geometry.findings import (
    FEW_COPIES,
    MANY_COPIES,
    SEVERITIES,
    Finding,
    Json,
    clean_rows,
    row_findings,
)

NAMES = {
    "source": "text",
    "target": "image",
    "holdout_source": "held-out text",
    "holdout_target": "held-out image",
}
SEEN_GAP = 2.0
REACHED_FLOOR, MISSED_FLOOR = 1.5, 3.0
LOW_MIXING = 0.5
LOW_OVERLAP = 0.5
EXPONENT_DIFFERENCE = 0.3
DOMAIN_Z, DOMAIN_SHARE = 5.0, 0.1
ROWS_PER_DIM = 10
PHI_SLACK = 1e-6  # mapped rows are float32


def verdict(report: Json) -> list[dict[str, Any]]:
    """All findings on a report as JSON objects, the gravest first, otherwise in reading order."""
    found = [
        *_splits(report),
        *_raw_gap(report),
        *_mapped_gap(report),
        *_mixing(report),
        *_preservation(report),
        *_shape(report),
        *_domain(report),
        *_seen_before(report),
        *_sample_size(report),
    ]
    by_set = {
        NAMES[side]: (quality, list(row_findings(NAMES[side], quality)))
        for side, quality in report["quality"].items()
    }
    found += [finding for _, findings in by_set.values() for finding in findings]
    found += clean_rows({name: quality for name, (quality, said) in by_set.items() if not said})
    return [asdict(f) for f in sorted(found, key=lambda f: SEVERITIES.index(f.severity))]


def trusted(report: Json) -> tuple[str, Json]:
    """The split that conclusions rest on, and how to call its rows."""
    if report["held_out"]:
        return "held-out rows", report["held_out"]
    return "the rows that were given", report["in_sample"]


def _splits(report: Json) -> Iterator[Finding]:
    if report["held_out"] or not report["alignment"]:
        return
    yield Finding(
        "warning",
        "held-out rows",
        "no held-out rows were given: everything after the map was measured on the rows that the "
        "map was fitted on.",
        "An in-sample centroid gap can be made as small as one likes and says nothing. Give "
        "holdout_source and holdout_target: rows that took no part in the fit.",
    )


def _raw_gap(report: Json) -> Iterator[Finding]:
    where, split = trusted(report)
    gap = split["before"]["gap"]
    ratio = gap["value"] / gap["null"]
    seen = ratio > SEEN_GAP
    yield Finding(
        "ok" if seen else "notice",
        "gap",
        f"on {where} the centroids of texts and images lie {gap['value']:.3f} apart, "
        f"{ratio:.1f} times the sampling floor {gap['null']:.3f}"
        + ("." if seen else ": there is no gap to speak of."),
        f"The floor is what two samples of one distribution give. Under {SEEN_GAP:g} times the "
        "floor a gap cannot be told from chance, and a map has nothing to close.",
    )


def _mapped_gap(report: Json) -> Iterator[Finding]:
    split = report["held_out"]
    if not split or not split["after"]:
        return
    gap, raw = split["after"]["gap"], split["before"]["gap"]["value"]
    ratio = gap["value"] / gap["null"]
    reached = "it is at its floor" if ratio <= REACHED_FLOOR else "it is above its floor"
    yield Finding(
        "ok" if ratio <= REACHED_FLOOR else "notice" if ratio <= MISSED_FLOOR else "warning",
        "gap",
        f"the map takes the held-out gap from {raw:.3f} to {gap['value']:.3f}; {reached} "
        f"({gap['null']:.3f}, ratio {ratio:.2f}).",
        "The floor holds the sampling error of these rows and of the fitting rows; no map beats it "
        f"by merit, and every map with a centroid step reaches it. Up to {REACHED_FLOOR:g} is "
        f"chance; above {MISSED_FLOOR:g} the held-out rows come from another distribution, or the "
        "map has no centroid step.",
    )


def _mixing(report: Json) -> Iterator[Finding]:
    where, split = trusted(report)
    cloud = split["after"] or split["before"]
    text, image = cloud["m_text"]["value"], cloud["m_image"]["value"]
    mixed = min(text, image) >= LOW_MIXING
    still = "still " if split["after"] else ""
    outcome = (
        "texts and images share their places, not only their centre"
        if mixed
        else f"a row's neighbours {still}tell its modality"
    )
    yield Finding(
        "ok" if mixed else "notice",
        "mixing",
        f"on {where} the mixing of neighbourhoods is {text:.2f} around texts and {image:.2f} "
        f"around images: {outcome}.",
        "1 is what random labels give, 0 is two separate clouds. Equal centroids do not mix "
        "clouds: arXiv:2605.07825 reports 0.36 and 0.31 for ReAlign on held-out pairs. Under "
        f"{LOW_MIXING} a model can learn from texts where no image ever lies. "
        "Mixing grows as rows get fewer: compare only equal numbers of rows.",
    )


def _preservation(report: Json) -> Iterator[Finding]:
    where, split = trusted(report)
    kept = split["preservation"]
    if not kept:
        return
    if kept["phi"]["value"] > kept["phi"]["null"] + PHI_SLACK:
        yield Finding(
            "error",
            "preservation",
            f"Phi {kept['phi']['value']:.6f} lies above its bound {kept['phi']['null']:.6f}.",
            "No map with this centroid can exceed the bound (Cauchy-Schwarz): a value above it "
            "means that the rows before and after do not belong together.",
        )
    overlap = kept["omega"]["value"]
    yield Finding(
        "ok" if overlap >= LOW_OVERLAP else "warning",
        "preservation",
        f"on {where} the map keeps {overlap:.0%} of a text's nearest neighbours, and Phi is "
        f"{kept['phi']['value']:.3f} of at most {kept['phi']['null']:.3f}.",
        f"arXiv:2602.07026 reports 87 % for ReAlign and 10 % for a blockwise map. Under "
        f"{LOW_OVERLAP:.0%} most of what the text embedding knew is gone, however small the gap.",
    )


def _shape(report: Json) -> Iterator[Finding]:
    where, split = trusted(report)
    clouds = split["clouds"]
    name = "mapped" if "mapped" in clouds else "text"
    text, image = (clouds[c]["exponent"]["value"] for c in (name, "image"))
    differ = abs(text - image) > EXPONENT_DIFFERENCE
    yield Finding(
        "notice" if differ else "ok",
        "spectrum",
        f"on {where} the spectra of {'mapped texts' if name == 'mapped' else 'texts'} and images "
        f"fall as k^-{text:.2f} and k^-{image:.2f}"
        + (": the clouds differ in shape." if differ else "."),
        f"Published exponents spread by 0.5 (1.33 and 1.83 in arXiv:2602.07026, App. D.1); a "
        f"difference over {EXPONENT_DIFFERENCE} is visible on a log-log plot. Shifting and scaling "
        "cannot change an exponent, and C_lambda cannot see it: two power laws always give 1.",
    )


def _domain(report: Json) -> Iterator[Finding]:
    _, split = trusted(report)
    raw = split["before"]["gap"]["value"]
    for name, test in report["domain"].items():
        other, material = test["z"] > DOMAIN_Z, test["distance"] > DOMAIN_SHARE * raw
        yield Finding(
            "warning" if other and material else "notice" if other else "ok",
            "domain",
            f"the mean of the {name} rows is {test['distance']:.3f} from that of the "
            f"fitting rows, {test['ratio']:.2f} times its sampling error (z {test['z']:.1f}; "
            f"trace z {test['trace_z']:.1f})"
            + (": they come from another distribution." if other else "."),
            f"z under {DOMAIN_Z:g} is chance. Beyond it, what counts is the distance: it is the "
            f"part of the gap that the map leaves; over {DOMAIN_SHARE:.0%} of the raw gap, fit on "
            "the corpus that you map.",
        )


def _seen_before(report: Json) -> Iterator[Finding]:
    for name, share in report["seen_before"].items():
        if share > FEW_COPIES:
            yield Finding(
                "warning" if share > MANY_COPIES else "notice",
                "held-out rows",
                f"{share:.1%} of the held-out {name} rows are exact copies of fitting rows.",
                "They took part in the fit, so they are not held out and pull the held-out "
                "numbers towards the in-sample ones. Of larger sets than the sample the share "
                f"is a lower bound. Above {MANY_COPIES:.0%} split by content: the same text or "
                "picture on one side only.",
            )


def _sample_size(report: Json) -> Iterator[Finding]:
    where, split = trusted(report)
    count, dim = min(split["rows"]["text"], split["rows"]["image"]), report["dim"]
    if count < ROWS_PER_DIM * dim:
        yield Finding(
            "warning" if count < dim else "notice",
            "sample size",
            f"{where}: {count:,} rows at width {dim}: spectra, condition numbers, C_lambda "
            "and O_q carry visible sampling error.",
            f"Under {ROWS_PER_DIM} rows a dimension, even an isotropic cloud shows a condition "
            "number over 3.7; under 1 its covariance is singular. Means, gaps and traces are "
            "not concerned.",
        )
