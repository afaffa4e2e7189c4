"""Measure the modality gap between texts and images, and write a report to read.

    python scripts/measure_gap.py source=<text shards> target=<image shards> output_dir=<dir>
    python scripts/measure_gap.py ... alignment=realign     # and what a map would do to it
    python scripts/measure_gap.py ... map=<align.py's output_dir>/alignment

Without a map, or with one to fit, every other row is held out: frame and map come from the rest. A
map from a directory was fitted elsewhere; its rows count as in-sample only if they are these.
"""

import sys
from pathlib import Path

from omegaconf import DictConfig

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from revision.config import build, entry


def run(cfg: DictConfig) -> Path:
    """Measure as `conf/measure_gap.yaml` says; returns the output directory."""
    from revision.alignment.fit import read_sets
    from revision.alignment.report import finished_report, inputs_of, save_report, summary
    from revision.alignment.survey import survey_sets
    from revision.geometry.options import MeasureOptions

    if cfg.map and cfg.alignment:
        raise ValueError("give map=<a fitted map> or alignment=<a method to fit here>, not both")
    options, sets = MeasureOptions(**cfg.report), read_sets(Path(cfg.source), Path(cfg.target))
    alignment = build(cfg.alignment) if cfg.alignment else None
    directory = Path(cfg.output_dir)
    map_dir = Path(cfg.map) if cfg.map else None
    inputs = inputs_of(options, alignment, sets) | {"map": cfg.map, "paired": cfg.paired}
    report = finished_report(directory, inputs)
    if report is None:
        survey = survey_sets(sets, options, to_fit=alignment, map_dir=map_dir, paired=cfg.paired)
        report = save_report(survey, survey.rejections(sets), inputs, directory)
    print(f"{directory / 'report.html'}: {summary(report)}")
    return directory


main = entry(run, "measure_gap")

if __name__ == "__main__":
    main()
