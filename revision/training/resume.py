"""Resume: where the data of a run stands at a checkpoint, and what a continued run may change.

A checkpoint records epoch and position (`data` in its `about.json`), so a run continues

    as it was                      with the same steps, bit by bit
    with other processes, workers  with the same records in every step, as long as
                                   G = batch_size * accumulate * processes stays the same
    with another G                 with the same order of records from that position on, in steps
                                   of the new G: none is lost or repeated; the number of steps
                                   (and with it the learning rate) is that of what remains

Sharded checkpoints (FSDP, DeepSpeed) fit only the number of processes that wrote them. A process
that loads data has no state: one that dies ends the run, which then continues in the same way.
"""

from pathlib import Path
from typing import Any

import lightning as L

from revision.data.datamodule import PlannedDataModule
from revision.data.plan import Place
from revision.training.checkpoint import latest_checkpoint, read_about
from revision.training.leftovers import CHECKPOINTS


def continue_data(data: PlannedDataModule, run_dir: Path) -> None:
    """Let `data` begin where the newest checkpoint of `run_dir` stands, if there is one."""
    checkpoint = latest_checkpoint(run_dir / CHECKPOINTS)
    about = {} if checkpoint is None else read_about(checkpoint)
    if "data" in about:
        data.start = Place(about["step"], about["data"]["epoch"], about["data"]["position"])


def describe_change(checkpoint: Path, data: L.LightningDataModule, world_size: int) -> str | None:
    """What another size of the steps or number of processes means; None where both are the same."""
    about = read_about(checkpoint)
    if "data" not in about or not isinstance(data, PlannedDataModule):
        return None
    saved, now = about["data"], data.plan(0, world_size).global_batch
    processes = f"{world_size} processes (before: {about['processes']})"
    if saved["global_batch"] != now:
        return (
            f"From {saved['unit']} {saved['position']} of epoch {saved['epoch']} on in steps of "
            f"{now} (before: {saved['global_batch']}), {processes}: what was seen is not "
            "repeated, the rest follows in the same order"
        )
    if about["processes"] != world_size:
        return f"{processes}: every step has the same {saved['unit']}s as before"
    return None


def align_micro_batches(checkpoint: dict[str, Any], accumulate: int) -> None:
    """Count the micro-batches behind a checkpoint as if all steps had had `accumulate` of them.

    Lightning steps whenever that count is a multiple of the accumulation, so a run that continues
    with another one would take its first step too early.
    """
    progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
    shift = checkpoint["global_step"] * accumulate - progress["current"]["ready"]
    for counts in (progress["current"], progress["total"]):
        for name in counts:
            counts[name] += shift
