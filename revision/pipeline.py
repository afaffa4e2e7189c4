"""Steps that run once per distinct input: the cache under the demo, the study and every sweep.

A step is named by what it computes and keyed by everything that its result depends on: its
resolved config, the steps that it reads, the files that it reads. Its output lies in
`<cache_dir>/<name>-<key>/`. A step that ended has `done.json` there and is not run again, by this
process or another; one that was killed is called again and resumes by its own means. A sweep over
caption length and sample count thus recomputes only what a changed value reaches.
"""

import fcntl
import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from revision.files import file_digest, write_bytes

DONE_NAME = "done.json"
KEY_DIGITS = 10


@dataclass(frozen=True)
class Result:
    """Where a step left its output, and the key under which later steps depend on it."""

    name: str
    directory: Path
    key: str
    seconds: float

    def __truediv__(self, member: str) -> Path:
        return self.directory / member


@dataclass
class StepCache:
    """Runs steps in `cache_dir`; `results` lists those of this pipeline in order."""

    cache_dir: Path
    results: list[Result] = field(default_factory=list)

    def step(
        self,
        name: str,
        run: Callable[[Path], Any],
        *,
        config: Mapping[str, Any],
        inputs: tuple[Result, ...] = (),
        files: tuple[Path, ...] = (),
    ) -> Result:
        """Call `run(directory)` unless the same step has ended before; return where its output is.

        `config` holds plain values only, without paths of outputs; `inputs` are the steps whose
        output `run` reads, `files` the other files that it reads (keyed by content). Processes
        that want the same step at once wait for the one that began it.
        """
        key = step_key(name, config, inputs, files)
        directory = self.cache_dir / f"{name}-{key}"
        directory.mkdir(parents=True, exist_ok=True)
        with _locked(directory):
            done = directory / DONE_NAME
            if done.exists():
                seconds = json.loads(done.read_text())["seconds"]
                print(f"== {name}: done before ({directory})", flush=True)
            else:
                print(f"== {name} -> {directory}", flush=True)
                begin = time.monotonic()
                run(directory)
                seconds = time.monotonic() - begin
                record = {"seconds": round(seconds, 1), "config": dict(config)}
                write_bytes(done, json.dumps(record, indent=1, default=str).encode())
        result = Result(name, directory, key, seconds)
        self.results.append(result)
        return result


def step_key(
    name: str,
    config: Mapping[str, Any],
    inputs: tuple[Result, ...] = (),
    files: tuple[Path, ...] = (),
) -> str:
    """A digest of everything that the step's result depends on; the order of keys is no part."""
    content = {
        "name": name,
        "config": dict(config),
        "inputs": [result.key for result in inputs],
        "files": [file_digest(path) for path in files],
    }
    canonical = json.dumps(content, sort_keys=True, default=str)
    return hashlib.sha256(canonical.encode()).hexdigest()[:KEY_DIGITS]


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Hold the step's lock; the system drops it when the process dies, however it dies."""
    with open(directory / ".lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
