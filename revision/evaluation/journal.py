"""What an evaluation leaves on disk: `plan.json`, `predictions.jsonl`, and last `metrics.json`."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from revision.evaluation.metrics import Score
from revision.files import explained, write_bytes

RESULTS = ("predictions.jsonl", "metrics.json")

Scores = dict[str, dict[str, Score]]
"""Scores by name for each visual condition, and for `chance`."""


def claim(output_dir: Path, plan: Mapping[str, Any]) -> None:
    """Record what is evaluated in `output_dir`, or check that it is the same as recorded.

    Raises ValueError when it is another evaluation, or one that nothing says anything about.
    """
    path = output_dir / "plan.json"
    plan = json.loads(json.dumps(dict(plan)))
    if not path.exists():
        if found := [name for name in RESULTS if (output_dir / name).exists()]:
            raise ValueError(
                f"{output_dir} holds {' and '.join(found)} but no plan.json that says of which "
                "model and data; choose another output_dir, or delete it to evaluate again"
            )
        write_bytes(path, json.dumps(plan, indent=2).encode())
        return
    recorded = json.loads(path.read_text(encoding="utf-8"))
    keys = sorted(key for key in {*plan, *recorded} if plan.get(key) != recorded.get(key))
    if keys:
        changes = ", ".join(f"{key}: {recorded.get(key)!r} -> {plan.get(key)!r}" for key in keys)
        raise ValueError(
            f"{output_dir} holds another evaluation ({changes}); choose another output_dir, or "
            "delete it to evaluate again"
        )


def keep_whole_batches(path: Path, sizes: Sequence[int]) -> int:
    """Cut `path` after its last whole batch and return the number of batches it holds.

    A line without its newline, or after a batch that is not complete, is computed again.
    """
    if not path.exists():
        return 0
    content = path.read_bytes()
    ends = [i + 1 for i, byte in enumerate(content) if byte == 10]
    done = lines = 0
    for size in sizes:
        if lines + size > len(ends):
            break
        done, lines = done + 1, lines + size
    with path.open("r+b") as file:
        file.truncate(ends[lines - 1] if lines else 0)
        os.fsync(file.fileno())
    return done


def append_lines(path: Path, lines: Sequence[dict[str, Any]]) -> None:
    """Append one batch; when this returns, it is on the disk."""
    content = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    with explained(path), path.open("ab") as file:
        file.write(content.encode())
        file.flush()
        os.fsync(file.fileno())


def read_predictions(path: Path) -> list[dict[str, Any]]:
    """The predictions in the order in which they were asked."""
    with Path(path).open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def write_scores(output_dir: Path, scores: Scores, **counts: int) -> None:
    """Write `metrics.json`; its presence says that the evaluation is complete."""
    tables = {
        visual: {name: asdict(score) for name, score in table.items()}
        for visual, table in scores.items()
    }
    content = json.dumps({**counts, "scores": tables}, indent=2, allow_nan=False)
    write_bytes(output_dir / "metrics.json", content.encode())


def read_scores(output_dir: Path) -> Scores:
    """The scores of a complete evaluation."""
    tables = json.loads((output_dir / "metrics.json").read_text(encoding="utf-8"))["scores"]
    return {
        visual: {name: Score(**score) for name, score in table.items()}
        for visual, table in tables.items()
    }


def finished_scores(output_dir: Path, plan: Mapping[str, Any]) -> Scores | None:
    """The scores in `output_dir` if this plan was carried out there, None if work is left.

    Raises ValueError when another plan owns the directory, or results lie there without one.
    """
    if any((output_dir / name).exists() for name in ("plan.json", *RESULTS)):
        claim(output_dir, plan)
    return read_scores(output_dir) if (output_dir / "metrics.json").exists() else None
