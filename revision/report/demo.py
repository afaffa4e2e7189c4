"""What a pipeline leaves: `results.json`, `report.html`, and links to its model and encoder.

The steps' outputs lie in the cache under their keys; the run directory names them (`steps.json`)
and links the ones that people want (`model`, `encoder`, `alignment`).
"""

import json
import os
import platform
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from revision.evaluation.results import Row, read_results, write_results
from revision.files import write_bytes
from revision.pipeline import Result
from revision.report.html import Report, Section, Tile, write_report
from revision.report.labels import metrics_in
from revision.report.page import (
    answer_section,
    gap_section,
    gap_tile,
    loss_section,
    score_section,
    score_tile,
)
from revision.report.tables import Table
from revision.training.provenance import commit

STAGE_TITLES = {
    "pretrain": "Stage 1: projector, text only",
    "sft": "Stage 2: projector and LLM, real pictures",
}


@dataclass(frozen=True)
class Stage:
    """A trained stage and its evaluations, that of the captions first."""

    name: str
    trained: Result
    evaluated: Sequence[Result]


@dataclass(frozen=True)
class Trail:
    """One setting: its alignment, if it has one, and its stages in order."""

    setting: str
    aligned: Result | None
    stages: Sequence[Stage]


def write_demo(
    run_dir: Path,
    trails: Sequence[Trail],
    *,
    encoder_dir: Path,
    image_root: Path,
    steps: Sequence[Result],
    facts: Mapping[str, str],
    seconds: float,
) -> Path:
    """Write everything into `run_dir`, print where it is, and return `run_dir`.

    `seconds` is what this process took; the steps remember what they took when they ran.
    """
    rows = [row for trail in trails for stage in trail.stages for row in _rows(stage)]
    write_results(run_dir / "results.json", rows)
    places = [{"step": s.name, "directory": str(s.directory), "seconds": s.seconds} for s in steps]
    write_bytes(run_dir / "steps.json", json.dumps(places, indent=1).encode())
    _link(run_dir / "encoder", encoder_dir)
    _link(run_dir / "model", trails[-1].stages[-1].trained / "model")
    if trails[-1].aligned is not None:
        _link(run_dir / "alignment", trails[-1].aligned / "alignment")
    answers = answer_section(_evaluations(trails), image_root=image_root)
    _print_answers(answers)
    report = _report(run_dir, trails, rows, answers, steps, {**facts, **_machine()})
    path = write_report(run_dir / "report.html", report)
    print(f"\n{run_dir / 'results.json'}: {len(rows)} rows")
    print(f"{path}: the report ({seconds:.0f} s for this run)")
    return run_dir


def _rows(stage: Stage) -> list[Row]:
    return [row for result in stage.evaluated for row in read_results(result / "results.json")]


def _report(
    run_dir: Path,
    trails: Sequence[Trail],
    rows: Sequence[Row],
    answers: Section,
    steps: Sequence[Result],
    facts: Mapping[str, str],
) -> Report:
    last = trails[-1]
    aligned = {t.setting: t.aligned.directory for t in trails if t.aligned is not None}
    sections = [gap_section(aligned)] if aligned else []
    sections.append(loss_section(_curves(trails)))
    sections.append(score_section(rows))
    sections.append(answers)
    sections.append(_time_section(steps))
    return Report(
        title=f"{run_dir.name}: a language model that learned to see from text",
        summary=(
            "Stage 1 trained the projector on text alone; stage 2 tuned on real pictures. "
            "Every score is on held-out real pictures."
        ),
        sections=sections,
        tiles=_tiles(last, rows),
        facts=facts,
    )


def _evaluations(trails: Sequence[Trail]) -> dict[str, Path]:
    """The captions that each setting wrote after its last stage."""
    return {
        f"{trail.setting} after {stage.name}": stage.evaluated[0].directory
        for trail in trails
        for stage in trail.stages[-1:]
    }


def _print_answers(section: Section) -> None:
    for answer in section.answers:
        print(f"\n{answer.name}: {answer.question}")
        for name, text in answer.said.items():
            print(f"  {name}: {text}")
        print(f"  its caption: {answer.reference}")


def _machine() -> dict[str, str]:
    """Where and when these numbers came about."""
    model = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    processor = model.group(1) if model else platform.machine()
    return {
        "machine": f"{os.cpu_count()} x {processor}",
        "date": time.strftime("%Y-%m-%d"),
        "commit": commit() or "unknown",
        "Python": platform.python_version(),
    }


def _tiles(last: Trail, rows: Sequence[Row]) -> list[Tile]:
    tiles = [] if last.aligned is None else [gap_tile(last.aligned.directory)]
    rows = [row for row in rows if row.split == rows[0].split]  # the captions, not the questions
    for stage in last.stages:
        mine = [row for row in rows if row.setting == last.setting and row.stage == stage.name]
        for metric in ("token_loss", "choice_accuracy"):
            if metric in metrics_in(mine):
                tiles.append(score_tile(rows, last.setting, stage.name, metric))
    return tiles


def _curves(trails: Sequence[Trail]) -> dict[str, dict[str, Path]]:
    curves: dict[str, dict[str, Path]] = {}
    for trail in trails:
        for stage in trail.stages:
            panel = curves.setdefault(STAGE_TITLES[stage.name], {})
            panel[trail.setting] = stage.trained / "metrics.csv"
    return curves


def _time_section(steps: Sequence[Result]) -> Section:
    body = [[step.name, f"{step.seconds:.1f}", str(step.directory)] for step in steps]
    total = sum({step.directory: step.seconds for step in steps}.values())
    text = f"{total:.0f} seconds in all, each step counted once, when it ran."
    return Section("Steps", text, table=Table(["Step", "Seconds", "Output"], body))


def _link(link: Path, target: Path) -> None:
    """Point `link` at `target`, relatively, so that the folder can be moved as a whole."""
    link.unlink(missing_ok=True)
    link.symlink_to(os.path.relpath(target.resolve(), link.parent.resolve()))
