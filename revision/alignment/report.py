"""The geometry report of feature sets on disk: `report.json`, `report.html`, `figures/*.png`.

`write_report` is the last step of `align.py`: it measures a fitted map on a sample of its fitting
rows and, where they are given, of held-out rows. `scripts/measure_gap.py` calls
`save_report` for sets with no map or with a map of another place. Rows without a direction are
listed in `quarantine.jsonl`.

`report.json` is written last and names its inputs: a report of the same inputs is not made again.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from revision.alignment.apply import rejections_at
from revision.alignment.base import AlignmentMap
from revision.alignment.fit import FeatureSets
from revision.alignment.parts import fitted_parts, part_of
from revision.alignment.storage import alignment_digest, read_card
from revision.alignment.survey import Survey
from revision.files import write_bytes
from revision.geometry.options import MeasureOptions
from revision.records import Rejection, json_line
from revision.report.gap import write_page
from revision.report.gap_figures import gap_figures

MAP_NAME = "alignment"
REPORT_NAME, PAGE_NAME, QUARANTINE_NAME = "report.json", "report.html", "quarantine.jsonl"
FIGURES_DIR = "figures"
SCHEMA_VERSION = 2

Json = dict[str, Any]


def write_report(
    alignment: AlignmentMap,
    fitting: FeatureSets,
    unseen: FeatureSets | None,
    directory: Path,
    options: MeasureOptions,
) -> Json:
    """Measure, draw and write everything, unless `directory` has the report of these inputs.

    `fitting` are the sets of the fit, of which the map in `directory` says which rows it took: the
    others are the held-out rows where no `unseen` sets are given. Returns the report.

    Raises:
        ValueError: too few rows to measure, or a cloud without spread.
    """
    inputs = inputs_of(options, alignment, fitting, unseen)
    if (finished := finished_report(directory, inputs)) is not None:
        return finished
    fitted = read_card(directory / MAP_NAME)["provenance"]
    seen, rest = fitted_parts(fitting, fitted.get("fit", {}), options.num_rows)
    others = part_of(unseen, options.num_rows) if unseen is not None else rest
    survey = Survey(seen, others, alignment, options, fitted.get("domain", {}))
    rejections = [
        rejection
        for side, reader in fitting._asdict().items()
        for rejection in rejections_at(reader, fitted[side]["rejected_rows"])
    ]
    if unseen is not None:
        rejections += survey.rejections(unseen)
    return save_report(survey, rejections, inputs, directory)


def save_report(
    survey: Survey, rejections: Sequence[Rejection], inputs: Json, directory: Path
) -> Json:
    """Measure, draw and write; returns the content of `report.json`."""
    report = survey.report() | {"num_quarantined": len(rejections), "inputs": inputs}
    figures = gap_figures(report, survey.clouds)
    report["figures"] = [f"{FIGURES_DIR}/{name}.png" for name in figures]
    lines = b"".join(json_line(asdict(rejection)) for rejection in rejections)
    write_bytes(directory / QUARANTINE_NAME, lines)
    for name, content in figures.items():
        write_bytes(directory / FIGURES_DIR / f"{name}.png", content)
    write_page(directory / PAGE_NAME, report, figures)
    content = json.dumps(report, indent=1, allow_nan=False).encode()
    write_bytes(directory / REPORT_NAME, content + b"\n")
    return report


def inputs_of(
    options: MeasureOptions, alignment: AlignmentMap | None, *pairs: FeatureSets | None
) -> Json:
    """What a report depends on: digests of the shards and of the map, and the options."""
    digests = [
        {side: [s.sha256 for s in reader.header.shards] for side, reader in sets._asdict().items()}
        for sets in pairs
        if sets is not None
    ]
    fitted = alignment is not None and alignment.is_fitted
    return {
        "schema_version": SCHEMA_VERSION,
        "sets": digests,
        "alignment": alignment_digest(alignment) if alignment is not None and fitted else None,
        "options": asdict(options),
    }


def finished_report(directory: Path, inputs: Json) -> Json | None:
    """The report of these inputs, if all of it is there."""
    path = directory / REPORT_NAME
    if not path.exists():
        return None
    report: Json = json.loads(path.read_text())
    files = [PAGE_NAME, QUARANTINE_NAME, *report.get("figures", ())]
    whole = report.get("inputs") == inputs and all((directory / f).exists() for f in files)
    return report if whole else None


def summary(report: Mapping[str, Any]) -> str:
    """The report in one line."""
    numbers = report["summary"]
    line = f"gap {numbers['raw_gap']:.4g} raw"
    if numbers["in_sample_gap"] is not None:
        line += f", {numbers['in_sample_gap']:.3g} in-sample"
    if unseen := numbers["held_out"]:
        line += f"; held-out {unseen['raw_gap']:.4g} raw"
        if unseen["gap"] is not None:
            line += f", {unseen['gap']:.3g} aligned"
        line += f" ({unseen['ratio']:.2f} x the sampling floor {unseen['floor']:.3g})"
    if report["num_quarantined"]:
        line += f"; {report['num_quarantined']} rows rejected, listed in {QUARANTINE_NAME}"
    return line
