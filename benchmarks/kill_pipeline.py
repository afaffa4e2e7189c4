"""Does a pipeline that is killed again and again end with the numbers of an undisturbed one?

    python benchmarks/kill_pipeline.py --kills 10 [--small] [override ...]

Runs `scripts/pipeline.py` once in peace, then in another place with SIGKILL to its whole process
group at random moments, starting it again each time, and compares `results.json` value by value.
Exits with status 1 when they differ. `--small` shortens training and evaluation, nothing else.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SMALL = [
    "more.pretrain=['stage.max_steps=12','checkpoint_steps=3','val_every=6']",
    "more.sft=['stage.max_steps=4','checkpoint_steps=1','val_every=2']",
    "more.evaluate=['limit=12','max_new_tokens=8']",
]


def main() -> None:
    arguments, overrides = parse()
    if arguments.small:
        overrides = [*SMALL, *overrides]
    shutil.rmtree(arguments.dir, ignore_errors=True)
    begin = time.monotonic()
    run(arguments.dir / "peace", overrides)
    seconds = time.monotonic() - begin
    print(f"undisturbed: {seconds:.0f} s", flush=True)

    generator = random.Random(arguments.seed)
    for kill in range(arguments.kills):
        after = generator.uniform(0.02, 2.0) * seconds / arguments.kills
        ended = run(arguments.dir / "killed", overrides, kill_after=after)
        last = sorted((arguments.dir / "killed/cache").glob("*/done.json"))
        state = "ended by itself" if ended else "killed"
        print(f"{kill + 1}: {state} after {after:.0f} s, {len(last)} steps done", flush=True)
    run(arguments.dir / "killed", overrides)
    compare(arguments.dir)


def parse() -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--dir", type=Path, default=ROOT / "runs" / "kill")
    return parser.parse_known_args()


def run(directory: Path, overrides: list[str], kill_after: float | None = None) -> bool:
    """One start of the pipeline; whether it ended before it was to be killed."""
    command = [sys.executable, "scripts/pipeline.py", f"run_root={directory}", *overrides]
    process = subprocess.Popen(
        command, cwd=ROOT, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    try:
        _, errors = process.communicate(timeout=kill_after)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return False
    if process.returncode:
        sys.exit(f"the pipeline failed: {errors.decode()[-2000:]}")
    return True


def compare(directory: Path) -> None:
    peace, killed = (
        {tuple(v for k, v in row.items() if k != "value"): row["value"] for row in rows}
        for rows in (
            json.loads((directory / name / "demo/results.json").read_text())
            for name in ("peace", "killed")
        )
    )
    differing = [key for key in peace.keys() | killed if peace.get(key) != killed.get(key)]
    print(f"{len(peace)} values, {len(differing)} differ")
    for key in differing[:10]:
        print(f"  {key}: {peace.get(key)} and {killed.get(key)}")
    sys.exit(bool(differing))


if __name__ == "__main__":
    main()
