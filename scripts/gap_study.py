"""One job of a gap study, or with -m a whole study: a table and a figure at its end.

    python scripts/gap_study.py -m experiment=gap_sample_size source=<texts> target=<images>

A job fits a map on a sample and writes `numbers.json`: gap in-sample and held-out, floor, Phi, Psi,
Omega, M, JS, spectra, seconds. Jobs that are done are not repeated. Launchers that start processes
of their own (joblib, submitit) leave the table to `scripts/gap_table.py`.
"""

import sys
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from revision.config import build, claim_directory, entry, run_directory

STUDIES: dict[Path, str] = {}  # directories and names of the studies this process has run jobs of


def run(cfg: DictConfig) -> Path:
    """Run the job that `conf/gap_study.yaml` describes; returns its directory."""
    from revision.studies.job import run_job
    from revision.studies.measure import ablation
    from revision.studies.table import write_reading

    directory = run_directory(cfg)
    if is_sweep := HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN:
        STUDIES[Path(cfg.run_root) / cfg.name] = cfg.name
    claim_directory(directory, cfg, neutral=("columns", "figure"))
    path = directory / "numbers.json"
    if not path.exists():
        alignment = build(cfg.alignment) if cfg.step is None else ablation(cfg.step)
        config: Any = OmegaConf.to_container(cfg, resolve=True)
        reading = run_job(config, alignment, HydraConfig.get().job.num if is_sweep else 0)
        write_reading(path, reading)
    return directory


def tabulate() -> None:
    """Table and figure of every study that this process has run."""
    from revision.studies.figure import write_study
    from revision.studies.table import read_readings

    for directory, name in STUDIES.items():
        readings = read_readings(sorted(directory.glob("*/numbers.json")))
        print(write_study(readings, directory, name))


main = entry(run, "gap_study")

if __name__ == "__main__":
    main()
    tabulate()
