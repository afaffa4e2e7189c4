"""Turn the readings of a gap study into a table (Markdown, CSV, JSON) and a figure.

python scripts/gap_table.py "input='runs/gap_sample_size/*/numbers.json'" output_dir=docs
"""

import sys
from glob import glob
from pathlib import Path

from omegaconf import DictConfig

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from revision.config import entry


def run(cfg: DictConfig) -> Path:
    """Tabulate as `conf/gap_table.yaml` says; returns the path of the table."""
    from revision.studies.figure import write_study
    from revision.studies.table import read_readings

    patterns = [cfg.input] if isinstance(cfg.input, str) else list(cfg.input)
    paths = [Path(path) for pattern in patterns for path in sorted(glob(pattern))]
    if not paths:
        raise ValueError(f"there is no reading at {', '.join(patterns)}")
    readings = read_readings(paths)
    name = cfg.name or readings[0].name
    print(write_study(readings, Path(cfg.output_dir), name))
    return Path(cfg.output_dir) / f"{name}.md"


main = entry(run, "gap_table")

if __name__ == "__main__":
    main()
