"""Fit an alignment map on text and image shards, align the text shards, and report the gap.

    python align.py alignment=realign source=<text shards> target=<image shards> output_dir=<dir>

writes `<output_dir>/alignment/` (the map), `<output_dir>/shards/` (the aligned text, a feature
set), `<output_dir>/gap.json`, `gap.png` and `quarantine.jsonl`. Run again, it resumes at the first
missing piece; a finished directory is only checked.
"""

from pathlib import Path

from omegaconf import DictConfig

from revision.alignment.apply import apply_alignment
from revision.alignment.fit import FeatureSets, fit_alignment, read_sets
from revision.alignment.report import MAP_NAME, summary, write_report
from revision.config import build, entry


def run(cfg: DictConfig) -> Path:
    """Fit, apply and report as `cfg` says; returns the output directory."""
    output_dir = Path(cfg.output_dir)
    fitting = read_sets(Path(cfg.source), Path(cfg.target))
    unseen = _read_unseen(cfg)

    alignment = fit_alignment(build(cfg.alignment), fitting, output_dir / MAP_NAME)
    apply_alignment(alignment, Path(cfg.source), output_dir / "shards")
    numbers = write_report(alignment, fitting, unseen, output_dir)
    print(f"{output_dir}: {summary(numbers)}")
    return output_dir


def _read_unseen(cfg: DictConfig) -> FeatureSets | None:
    sides = [cfg.holdout_source, cfg.holdout_target]
    if sides == [None, None]:
        return None
    if None in sides:
        raise ValueError("holdout_source and holdout_target go together: give both or neither")
    return read_sets(*map(Path, sides))


main = entry(run, "align")

if __name__ == "__main__":
    main()
