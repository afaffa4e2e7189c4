"""Run every alignment method on the same features and compare them on held-out rows.

    python scripts/compare_methods.py source=<texts> target=<images> \\
        holdout_source=<texts> holdout_target=<images> output_dir=<dir>

Each method gets `<output_dir>/<method>/`, as `align.py` leaves it, with its own report; a finished
one is not repeated. Ends with `methods.md`, `methods.json` and `methods.png`.
"""

import json
import sys
import time
from pathlib import Path

from omegaconf import DictConfig

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from revision.config import CONF_DIR, as_part, compose, entry  # noqa: E402

TIME_NAME = "cpu_seconds.json"


def run(cfg: DictConfig) -> Path:
    """Compare as `conf/compare_methods.yaml` says; returns the output directory."""
    from revision.alignment.methods import method
    from revision.studies.methods import read_method, write_methods

    output_dir = Path(cfg.output_dir)
    names = cfg.methods or sorted(path.stem for path in (CONF_DIR / "alignment").glob("*.yaml"))
    if unknown := set(cfg.overrides or {}) - set(names):
        raise ValueError(f"overrides for {sorted(unknown)}, which are not among the methods")
    measured = []
    for name in names:
        seconds = _align(cfg, name, output_dir / name)
        needs_pairs = method(name).needs_pairs
        measured.append(
            read_method(output_dir / name, name, needs_pairs=needs_pairs, cpu_seconds=seconds)
        )
    print(write_methods(measured, output_dir))
    return output_dir


def _align(cfg: DictConfig, name: str, directory: Path) -> float:
    """Align by one method; returns the CPU seconds that fit and apply took the first time."""
    import align

    sets = ("source", "target", "holdout_source", "holdout_target")
    arguments = [
        f"alignment={name}",
        *(f"{key}={cfg[key]}" for key in sets),
        f"output_dir={directory}",
        *(cfg.overrides or {}).get(name, []),
    ]
    with as_part():
        if not (directory / TIME_NAME).exists():
            begin = time.process_time()
            align.run(compose("align", [*arguments, "report=null"]))
            seconds = {"fit_and_apply": round(time.process_time() - begin, 3)}
            (directory / TIME_NAME).write_text(json.dumps(seconds) + "\n")
        align.run(compose("align", arguments))
    return float(json.loads((directory / TIME_NAME).read_text())["fit_and_apply"])


main = entry(run, "compare_methods")

if __name__ == "__main__":
    main()
