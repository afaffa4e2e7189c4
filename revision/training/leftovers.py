"""What a run directory holds only until its result is written. Imports nothing that takes long.

checkpoints/     to continue from; a run that is killed behind its result still has them
.<result>-*      what a writer of the result left that was killed before it was whole
"""

import shutil
from pathlib import Path

CHECKPOINTS = "checkpoints"


def remove_unfinished(run_dir: Path, result: str) -> None:
    """Remove what killed writers of `<run_dir>/<result>` left; a run directory has one writer."""
    for leftover in run_dir.glob(f".{result}-*"):
        shutil.rmtree(leftover, ignore_errors=True)


def finish(run_dir: Path, result: str) -> None:
    """Remove all that a run whose result is written does not need."""
    remove_unfinished(run_dir, result)
    shutil.rmtree(run_dir / CHECKPOINTS, ignore_errors=True)
