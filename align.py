"""Fit an alignment map on text and image shards, align the text shards, and report the gap.

    python align.py alignment=realign source=<text shards> target=<image shards> output_dir=<dir>

writes `<output_dir>/alignment/` (the map), `<output_dir>/shards/` (the aligned text, a feature
set), and the geometry report of both: `report.html`, `report.json`, `figures/*.png` and
`quarantine.jsonl`. Run again, it resumes at the first missing piece; a finished directory is only
checked. `report=null` leaves the report out; `apply=false` the shards: `train.py
data.alignment=<output_dir>/alignment` then maps the texts on the fly, to the same rows.

`torchrun --nproc-per-node=4 align.py ...` shares the work among processes, on any number of nodes
that see one file system, and writes the same bytes.
"""

from pathlib import Path

from omegaconf import DictConfig

from revision import parallel
from revision.alignment.apply import apply_alignment
from revision.alignment.base import AlignmentMap
from revision.alignment.fit import (
    FeatureSets,
    FitOptions,
    check_moments,
    fit_alignment,
    read_sets,
)
from revision.config import build, entry


def run(cfg: DictConfig) -> Path:
    """Fit, apply and report as `cfg` says; returns the output directory."""
    output_dir, device = Path(cfg.output_dir), parallel.device_of(cfg.device)
    mapped = read_sets(Path(cfg.source), Path(cfg.target))
    fit_sets = Path(cfg.fit_source or cfg.source), Path(cfg.fit_target or cfg.target)
    fitting = read_sets(*fit_sets, prefix="fit_" if cfg.fit_source or cfg.fit_target else "")
    unseen = _read_unseen(cfg)
    options = FitOptions(
        rows=cfg.fit_rows,
        seed=cfg.fit_seed,
        where=dict(cfg.fit_where or {}),
        covariance_rows=cfg.covariance_rows,
        num_workers=cfg.num_workers,
        device=device,
    )
    with parallel.joined():
        if cfg.verify_moments:
            check_moments(fitting)
        map_dir = output_dir / "alignment"
        alignment = fit_alignment(_unfitted(cfg), fitting, map_dir, options, mapped=mapped)
        if cfg.apply:
            apply_alignment(
                alignment.to(device),
                Path(cfg.source),
                output_dir / "shards",
                num_workers=cfg.num_workers,
            )
        is_first = parallel.rank() == 0
    alignment.cpu()
    if is_first and cfg.report is not None:
        # 2 s and 160 MB of plotting and search libraries that `report=null` does without
        from revision.alignment.report import summary, write_report
        from revision.geometry.options import MeasureOptions

        measured = MeasureOptions(**cfg.report)
        report = write_report(alignment, fitting, unseen, output_dir, measured)
        print(f"{output_dir}: {summary(report)}")
    elif is_first:
        print(f"{output_dir}: {'alignment and shards' if cfg.apply else 'alignment'}, no report")
    return output_dir


def _unfitted(cfg: DictConfig) -> AlignmentMap:
    alignment: AlignmentMap = build(cfg.alignment)
    if cfg.get("noise"):
        alignment.add_noise(build(cfg.noise))
    return alignment


def _read_unseen(cfg: DictConfig) -> FeatureSets | None:
    sides = [cfg.holdout_source, cfg.holdout_target]
    if sides == [None, None]:
        return None
    if None in sides:
        raise ValueError("holdout_source and holdout_target go together: give both or neither")
    return read_sets(*map(Path, sides), prefix="holdout_")


main = entry(run, "align")

if __name__ == "__main__":
    main()
