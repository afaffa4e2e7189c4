"""Turn result rows into a Markdown table and a figure.

    python scripts/results_table.py input=benchmarks/study.json output_dir=docs name=study_scores
    python scripts/results_table.py "input='runs/study/*/results.json'" output_dir=runs/study

Seeds become mean and standard deviation; a single seed keeps its bootstrap interval.
"""

from glob import glob
from pathlib import Path

from omegaconf import DictConfig

from revision.config import entry


def run(cfg: DictConfig) -> Path:
    """Tabulate as `conf/results_table.yaml` says; returns the path of the table."""
    from revision.evaluation.results import merge, read_results, write_results
    from revision.files import write_bytes
    from revision.report.figures import score_figure
    from revision.report.labels import select_settings
    from revision.report.tables import markdown, results_table

    patterns = [cfg.input] if isinstance(cfg.input, str) else list(cfg.input)
    paths = [path for pattern in patterns for path in sorted(glob(pattern))]
    if not paths:
        raise ValueError(f"there is no results file at {', '.join(patterns)}")
    rows = merge([], (row for path in paths for row in read_results(Path(path))))
    if cfg.merged:
        write_results(Path(cfg.merged), rows)
    if cfg.settings:
        rows = select_settings(rows, list(cfg.settings))
    metrics = list(cfg.metrics) if cfg.metrics else None
    table = markdown(results_table(rows, metrics, intervals=cfg.intervals))
    path = Path(cfg.output_dir) / f"{cfg.name}.md"
    write_bytes(path.with_suffix(".png"), score_figure(rows, metrics))
    write_bytes(path, table.encode())
    print(table)
    print(f"{path}, {path.with_suffix('.png')}")
    return path


main = entry(run, "results_table")

if __name__ == "__main__":
    main()
