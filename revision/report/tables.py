"""Result rows as a table: one line per stage and setting, one column per metric.

Several seeds become mean +- sample standard deviation; one seed shows its bootstrap interval.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from revision.evaluation.results import BOUNDS, Row, Spread, over_seeds
from revision.report.labels import metric_of, metrics_in


@dataclass(frozen=True)
class Table:
    """Titles and cells, all text."""

    header: list[str]
    body: list[list[str]]


def results_table(
    rows: Sequence[Row], metrics: Sequence[str] | None = None, *, intervals: bool = True
) -> Table:
    """The table of `metrics`, by default of every metric that has a row."""
    chosen = metrics_in(rows) if metrics is None else list(metrics)
    spreads = over_seeds(rows)
    splits = dict.fromkeys(row.split for row in rows)
    lines = dict.fromkeys((row.stage, row.setting, row.split) for row in rows)
    body = []
    for stage, setting, split in lines:
        cells = [_cell(spreads, (setting, stage, split), name, intervals) for name in chosen]
        if any(cells):
            body.append([stage, setting, *([split] if len(splits) > 1 else []), *cells])
    titles = ["Stage", "Setting", *(["Split"] if len(splits) > 1 else [])]
    return Table([*titles, *(_title(name) for name in chosen)], body)


def markdown(table: Table) -> str:
    """The table as GitHub Markdown, columns aligned in the source as well."""
    lines = [table.header, *table.body]
    widths = [max(3, *(len(line[i]) for line in lines)) for i in range(len(table.header))]
    rule = ["-" * width for width in widths]
    return "".join(_line(cells, widths) for cells in (table.header, rule, *table.body))


def _line(cells: Iterable[str], widths: Sequence[int]) -> str:
    padded = (cell.ljust(width) for cell, width in zip(cells, widths, strict=True))
    return f"| {' | '.join(padded)} |\n"


def _title(name: str) -> str:
    metric = metric_of(name)
    return f"{metric.title} {'↓' if metric.lower_is_better else '↑'}"


def _cell(
    spreads: dict[tuple[str, str, str, str], Spread],
    line: tuple[str, str, str],
    name: str,
    intervals: bool,
) -> str:
    spread = spreads.get((*line, name))
    if spread is None:
        return ""
    show = metric_of(name).show
    if spread.std is not None:
        return f"{show(spread.mean)} ± {show(spread.std)}"
    bounds = [spreads.get((*line, name + suffix)) for suffix in BOUNDS]
    if intervals and bounds[0] and bounds[1] and bounds[0].mean < bounds[1].mean:
        return f"{show(spread.mean)} [{show(bounds[0].mean)}, {show(bounds[1].mean)}]"
    return show(spread.mean)
