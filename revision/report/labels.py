"""How settings, visual conditions and metrics are called and drawn in every table and figure."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from revision.evaluation.journal import Scores
from revision.evaluation.results import BOUNDS, Row, rows_of

CHANCE = "chance"
SUFFIXES: dict[str, str] = {"real": "", "zero": " (blind)", "shuffled": " (shuffled)"}


@dataclass(frozen=True)
class Metric:
    """How one metric is shown: `digits` after the point, as a percentage or as it is."""

    title: str
    lower_is_better: bool = False
    percent: bool = True
    digits: int = 1

    def show(self, value: float) -> str:
        """The number alone, as it stands in a table."""
        return f"{100 * value if self.percent else value:.{self.digits}f}"


METRICS: dict[str, Metric] = {
    "token_loss": Metric("Answer-token loss, nats", True, percent=False, digits=3),
    "perplexity": Metric("Perplexity", True, percent=False, digits=2),
    "choice_accuracy": Metric("Caption choice of 4, %"),
    "choice_accuracy_over_blind": Metric("Choice by image information, %"),
    "rouge_l": Metric("ROUGE-L, %"),
    "chrf": Metric("chrF, %"),
    "bleu_1": Metric("BLEU-1, %"),
    "bleu": Metric("BLEU, %"),
    "yes_no_accuracy": Metric("Yes/no accuracy, %"),
    "yes_no_unparsed": Metric("Neither yes nor no, %", True),
}


def metric_of(name: str) -> Metric:
    """The way `name` is shown; a metric that is not listed keeps its name and its number."""
    return METRICS.get(name, Metric(name, percent=False, digits=4))


def condition(setting: str, visual: str) -> str:
    """The setting of a result row: `realign`, `realign (blind)`, `realign (shuffled)`."""
    return setting + SUFFIXES[visual]


def result_rows(scores: Scores, *, setting: str, stage: str, seed: int, split: str) -> list[Row]:
    """The rows of an evaluation: one setting per visual condition, and `chance`.

    An evaluation under one condition alone is that of a model made for it: its rows have the
    setting's own name.
    """
    alone = len(scores.keys() - {CHANCE}) == 1
    names = {visual: setting if alone else condition(setting, visual) for visual in SUFFIXES}
    names[CHANCE] = CHANCE
    return [
        row
        for visual, table in scores.items()
        for row in rows_of(table, setting=names[visual], stage=stage, seed=seed, split=split)
    ]


def base_lines(rows: Iterable[Row]) -> list[tuple[str, str, str]]:
    """(setting, stage, split) of what saw the real images, in order of appearance."""
    reserved = tuple(suffix for suffix in SUFFIXES.values() if suffix)
    lines = dict.fromkeys((row.setting, row.stage, row.split) for row in rows)
    return [line for line in lines if line[0] != CHANCE and not line[0].endswith(reserved)]


def select_settings(rows: Sequence[Row], settings: Sequence[str]) -> list[Row]:
    """The rows of these settings, blind and shuffled ones included, in the order given, then
    chance; stages stay in their order of appearance.

    Raises ValueError for a setting without rows.
    """
    order = [condition(name, visual) for name in settings for visual in SUFFIXES] + [CHANCE]
    found = {row.setting for row in rows}
    if missing := [name for name in settings if name not in found]:
        raise ValueError(f"no rows of {missing}; the file has {sorted(found)}")
    stages = list(dict.fromkeys(row.stage for row in rows))
    chosen = [row for row in rows if row.setting in order]
    return sorted(chosen, key=lambda row: (stages.index(row.stage), order.index(row.setting)))


def metrics_in(rows: Iterable[Row]) -> list[str]:
    """Metrics that have a row, known ones first in their usual order, without the bounds."""
    found = dict.fromkeys(row.metric for row in rows if not row.metric.endswith(BOUNDS))
    known = [name for name in METRICS if name in found]
    return known + [name for name in found if name not in METRICS]
