"""`metrics.csv`: one line per number, `step,metric,value`, that survives being killed.

Lines are appended and flushed before the checkpoint of the same step is written; a resumed run
first removes the lines of steps that it will repeat. So no step is lost and none is twice.
"""

import csv
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only

from revision.files import write_bytes

HEADER = ("step", "metric", "value")
Series = dict[str, list[tuple[int, float]]]


class MetricsFile(Logger):
    """The logger that every run has."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path

    @property
    def name(self) -> str:
        return "metrics"

    @property
    def version(self) -> str:
        return ""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        with self.path.open("a", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            if file.tell() == 0:
                writer.writerow(HEADER)
            writer.writerows((step, name, repr(float(value))) for name, value in metrics.items())
            file.flush()
            os.fsync(file.fileno())

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """The run directory holds the config already."""


def truncate_metrics(path: Path, last_step: int) -> None:
    """Keep the lines of steps up to `last_step`; drop later ones and a half-written last line."""
    if not path.exists():
        return
    kept = [",".join(HEADER)]
    for line in path.read_text().splitlines(keepends=True)[1:]:
        if line.endswith("\n") and int(line.split(",", 1)[0]) <= last_step:
            kept.append(line.rstrip("\n"))
    write_bytes(path, ("\n".join(kept) + "\n").encode())


def read_metrics(path: Path) -> Series:
    """The curves of a run: metric name to (step, value) pairs in order of step."""
    curves: Series = {}
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            curves.setdefault(row["metric"], []).append((int(row["step"]), float(row["value"])))
    return curves
