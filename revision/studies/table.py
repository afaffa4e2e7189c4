"""Readings of a gap study's jobs as a table and a figure: what `scripts/gap_study.py` ends with.

A reading is the `numbers.json` of one job: labels (what the study varies), the trial, and numbers.
Trials of one set of labels become mean and standard deviation. The card of the study says which
numbers are columns and what is drawn; both are stored in the readings, so that a table can be made
from them alone.
"""

import csv
import io
import json
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from revision.files import write_bytes
from revision.report.tables import Table

Labels = dict[str, Any]


@dataclass(frozen=True)
class Reading:
    """What one job measured. `job` is its number in the sweep, which orders the table."""

    name: str
    labels: Labels
    trial: int
    job: int
    columns: list[str]
    figure: dict[str, Any]
    numbers: dict[str, float]
    inputs: dict[str, Any]

    @property
    def key(self) -> tuple[tuple[str, Any], ...]:
        return tuple(self.labels.items())


@dataclass(frozen=True)
class Group:
    """The trials of one set of labels."""

    labels: Labels
    readings: Sequence[Reading]

    def mean(self, number: str) -> float | None:
        """Mean over the trials; None where a trial lacks the number."""
        values = [reading.numbers.get(number) for reading in self.readings]
        return None if None in values else statistics.fmean(v for v in values if v is not None)

    def std(self, number: str) -> float | None:
        """Sample standard deviation over the trials; None for one trial."""
        if len(self.readings) < 2 or self.mean(number) is None:
            return None
        return statistics.stdev(reading.numbers[number] for reading in self.readings)


def write_reading(path: Path, reading: Reading) -> None:
    """Write `numbers.json`, whole or not at all."""
    write_bytes(path, json.dumps(asdict(reading), indent=1, allow_nan=False).encode() + b"\n")


def read_readings(paths: Iterable[Path]) -> list[Reading]:
    """The readings of these files, each with one or a list of them, in the order of their jobs.

    Raises:
        ValueError: a file holds something else, or two studies were mixed.
    """
    names = {field.name for field in fields(Reading)}
    readings = []
    for path in paths:
        try:
            content = json.loads(path.read_text())
        except json.JSONDecodeError as error:
            raise ValueError(
                f"{path} is not JSON ({error}); delete it, run its job again"
            ) from error
        for entry in content if isinstance(content, list) else [content]:
            if not isinstance(entry, dict) or set(entry) != names:
                raise ValueError(f"{path} holds no reading of a gap study: needs {sorted(names)}")
            readings.append(Reading(**entry))
    studies = {(reading.name, tuple(reading.labels)) for reading in readings}
    if len(studies) != 1:
        raise ValueError(f"readings of {len(studies)} studies {sorted(studies)}; give those of one")
    return sorted(readings, key=lambda reading: reading.job)


def groups_of(readings: Sequence[Reading]) -> list[Group]:
    """Readings by their labels, in the order of the jobs."""
    found: dict[tuple[tuple[str, Any], ...], list[Reading]] = {}
    for reading in readings:
        found.setdefault(reading.key, []).append(reading)
    return [Group(members[0].labels, members) for members in found.values()]


def study_table(readings: Sequence[Reading]) -> Table:
    """One line per set of labels; the columns are those of the card."""
    columns, groups = readings[0].columns, groups_of(readings)
    header = [*readings[0].labels, "trials", *columns]
    body = [
        [
            *(str(v) for v in g.labels.values()),
            str(len(g.readings)),
            *(_cell(g, c) for c in columns),
        ]
        for g in groups
    ]
    return Table(header, body)


def study_csv(readings: Sequence[Reading]) -> str:
    """Every number of every group at full precision: mean and std in two columns."""
    groups = groups_of(readings)
    numbers = list(dict.fromkeys(name for reading in readings for name in reading.numbers))
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    heads = [head for name in numbers for head in (name, f"{name}_std")]
    writer.writerow([*readings[0].labels, "trials", *heads])
    for group in groups:
        values = [value for name in numbers for value in (group.mean(name), group.std(name))]
        writer.writerow([*group.labels.values(), len(group.readings), *values])
    return buffer.getvalue()


def _cell(group: Group, number: str) -> str:
    mean, std = group.mean(number), group.std(number)
    if mean is None:
        return ""
    return _shown(mean) if std is None else f"{_shown(mean)} ± {std:.1g}"


def _shown(value: float) -> str:
    return f"{value:.0f}" if value == round(value) and abs(value) >= 10 else f"{value:.3g}"
