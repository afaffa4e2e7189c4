"""Result rows: the one table that the demo, the study and every evaluation write.

A results file is a JSON list of `{setting, stage, seed, split, metric, value}`. The first five
fields are the key: where tables are merged, the later value of a key wins. A score with an
interval takes three rows: `m`, `m_low` and `m_high`.
"""

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from revision.evaluation.metrics import Score
from revision.files import write_bytes

BOUNDS = ("_low", "_high")


@dataclass(frozen=True)
class Row:
    """One number. `setting` is what was compared, `split` the records it was measured on."""

    setting: str
    stage: str
    seed: int
    split: str
    metric: str
    value: float

    @property
    def key(self) -> tuple[str, str, int, str, str]:
        """What the value belongs to: every field but the value."""
        return (self.setting, self.stage, self.seed, self.split, self.metric)


@dataclass(frozen=True)
class Spread:
    """Mean over seeds, sample standard deviation (None for one seed), and the seeds' number."""

    mean: float
    std: float | None
    num_seeds: int


def rows_of(
    scores: Mapping[str, Score], *, setting: str, stage: str, seed: int, split: str
) -> list[Row]:
    """Three rows per score: value, lower and upper bound of the interval."""
    return [
        Row(setting, stage, seed, split, name + suffix, value)
        for name, score in scores.items()
        for suffix, value in zip(("", *BOUNDS), (score.value, score.low, score.high), strict=True)
    ]


def merge(old: Iterable[Row], new: Iterable[Row]) -> list[Row]:
    """Rows in the order in which their keys first appeared; the later value wins."""
    return list({row.key: row for row in (*old, *new)}.values())


def read_results(path: Path) -> list[Row]:
    """Rows of a results file.

    Raises ValueError when the file is no list of result rows: an unknown field would be dropped
    at the next write.
    """
    names = {field.name for field in fields(Row)}
    try:
        entries = json.loads(Path(path).read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON ({error}); delete it and run again") from error
    if not isinstance(entries, list):
        raise ValueError(f"{path} holds a {type(entries).__name__}, a list of rows is needed")
    for number, entry in enumerate(entries):
        if not isinstance(entry, dict) or set(entry) != names:
            raise ValueError(f"{path}: row {number} is {entry}; its fields must be {sorted(names)}")
    return [Row(**{**entry, "value": float(entry["value"])}) for entry in entries]


def write_results(path: Path, rows: Iterable[Row]) -> None:
    """Replace the file at once: a reader sees the old table or the new one."""
    lines = ",\n".join("  " + json.dumps(asdict(row), allow_nan=False) for row in rows)
    write_bytes(Path(path), f"[\n{lines}\n]\n".encode())


def over_seeds(rows: Iterable[Row]) -> dict[tuple[str, str, str, str], Spread]:
    """Mean and spread of each (setting, stage, split, metric) over its seeds, in file order."""
    groups: dict[tuple[str, str, str, str], list[float]] = {}
    for row in rows:
        groups.setdefault((row.setting, row.stage, row.split, row.metric), []).append(row.value)
    return {key: _spread(values) for key, values in groups.items()}


def _spread(values: Sequence[float]) -> Spread:
    std = statistics.stdev(values) if len(values) > 1 else None
    return Spread(statistics.fmean(values), std, len(values))
