"""The report of a run: what its steps left on disk becomes the sections of one page.

Reads `report.json` and `figures/gap.png` of alignments, `metrics.csv` of training runs,
`predictions.jsonl` of evaluations, and result rows; computes nothing itself.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from revision.evaluation.journal import read_predictions
from revision.evaluation.results import Row
from revision.records import load_image
from revision.report.figures import loss_figure, score_figure
from revision.report.html import Answer, Picture, Section, Tile, thumbnail
from revision.report.labels import base_lines, condition, metric_of, metrics_in
from revision.report.tables import Table, results_table
from revision.training.metrics_file import read_metrics

SHOWN_METRICS = ("token_loss", "choice_accuracy", "rouge_l", "yes_no_accuracy")
_GAP_TEXT = (
    "Image and caption embeddings of a dual encoder lie in regions apart from each other. An "
    "alignment moves the texts over, from nothing but statistics of unpaired data. The gap is "
    "the distance between the two centroids of unit rows."
)
_SCORE_TEXT = (
    "Real pictures that no training step has seen. Bars and dots: the model sees the picture; "
    "whiskers: 95 % bootstrap interval over pictures, or the standard deviation over seeds. "
    "Circles: the same model blind, its visual input zeroed. Crosses: it sees another picture. "
    "Dashed: chance (for text scores, the caption of another picture)."
)


def gap_section(alignments: Mapping[str, Path]) -> Section:
    """One picture per alignment directory (as `align.py` writes it), and the numbers beside it."""
    reports = {name: _read_gap(directory) for name, directory in alignments.items()}
    figures = [
        Picture(
            (directory / "figures" / "gap.png").read_bytes(),
            f"modality gap before and after, {name}",
        )
        for name, directory in alignments.items()
    ]
    header = ["Alignment", "Gap before", "Gap after", "Sampling floor", "After / floor"]
    body = [[name, *_gap_cells(numbers)] for name, numbers in reports.items()]
    return Section("The modality gap", _GAP_TEXT, figures, Table(header, body))


def gap_tile(alignment_dir: Path) -> Tile:
    """The gap before and after, held out where it was measured."""
    numbers = _read_gap(alignment_dir)
    held_out = numbers.get("held_out")
    before, after = _before_after(numbers)
    note = "held-out rows" if held_out else "the rows it was fitted on"
    return Tile("Modality gap", f"{before:.2f} → {after:.2f}", f"centroid distance, {note}")


def loss_section(runs: Mapping[str, Mapping[str, Path]]) -> Section:
    """Loss curves: `runs` maps a panel's title to its runs, and a run's name to `metrics.csv`."""
    curves = {
        title: {name: read_metrics(path) for name, path in group.items()}
        for title, group in runs.items()
    }
    text = "Thin: every step; thick: its running mean; circles: held-out loss during training."
    picture = Picture(loss_figure(curves), "training and held-out loss by optimizer step")
    return Section("Loss curves", text, [picture])


def score_section(rows: Sequence[Row], metrics: Sequence[str] = SHOWN_METRICS) -> Section:
    """The scores drawn, and every metric of the rows as a table."""
    drawn = [metric for metric in metrics if metric in metrics_in(rows)]
    picture = Picture(score_figure(rows, drawn), "scores with intervals, blind and chance")
    return Section("Scores on held-out pictures", _SCORE_TEXT, [picture], results_table(rows))


def score_tile(rows: Sequence[Row], setting: str, stage: str, metric: str) -> Tile:
    """One score, with the same model blind and the other settings of the stage beside it.

    Raises ValueError when there is no such row.
    """
    values = {(r.setting, r.stage): r.value for r in rows if r.metric == metric}
    if (setting, stage) not in values:
        known = sorted({f"{name} after {at}" for name, at in values})
        raise ValueError(f"no {metric} of {setting} after {stage}; there is {known}")
    others = [name for name, at, _ in base_lines(rows) if at == stage and name != setting]
    show = metric_of(metric).show
    compared = [
        f"{name} {show(values[name, stage])}"
        for name in dict.fromkeys([*others, condition(setting, "zero"), "chance"])
        if (name, stage) in values
    ]
    note = f"{setting} after {stage}" + (f"; {', '.join(compared)}" if compared else "")
    return Tile(metric_of(metric).title, show(values[setting, stage]), note)


def answer_section(
    evaluations: Mapping[str, Path], *, image_root: Path | None = None, count: int = 8
) -> Section:
    """Pictures spread evenly over the first evaluation, with what every model said about them.

    `evaluations` maps a model's name to the output directory of its evaluation.
    """
    said: dict[str, dict[str, Any]] = {}
    for name, directory in evaluations.items():
        for line in read_predictions(directory / "predictions.jsonl"):
            if line["visual"] == "real" and len(line["images"]) == 1 and line["text"] is not None:
                entry = said.setdefault(line["record_id"] + "\0" + line["prompt"], {**line})
                entry.setdefault("answers", {})[name] = line["text"]
    shared = [line for line in said.values() if len(line["answers"]) == len(evaluations)]
    chosen = [shared[i * len(shared) // count] for i in range(min(count, len(shared)))]
    answers = [
        Answer(
            thumbnail(load_image(line["images"][0], image_root=image_root)),
            line["prompt"],
            line["answers"],
            line["reference"],
            name=Path(str(line["images"][0])).name,
        )
        for line in chosen
    ]
    text = "Not picked by hand: taken at even distances over the test set, decoded greedily."
    return Section("Sample answers", text, answers=answers)


def _read_gap(directory: Path) -> dict[str, Any]:
    report = json.loads((Path(directory) / "report.json").read_text("utf-8"))
    numbers: dict[str, Any] = report["summary"]
    return numbers


def _before_after(numbers: Mapping[str, Any]) -> tuple[float, float]:
    held_out = numbers.get("held_out")
    if held_out:
        return held_out["raw_gap"], held_out["gap"]
    return numbers["raw_gap"], numbers["in_sample_gap"]


def _gap_cells(numbers: Mapping[str, Any]) -> list[str]:
    before, after = _before_after(numbers)
    cells = [f"{before:.3f}", f"{after:.3f}"]
    held_out = numbers.get("held_out")
    if not held_out:
        return [*cells, "", ""]
    return [*cells, f"{held_out['floor']:.3f}", f"{held_out['ratio']:.2f}"]
