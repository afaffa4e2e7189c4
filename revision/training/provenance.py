"""What a run was made from: digests of its inputs, the commit, the versions.

The digests are recorded when a run begins and compared when it continues: the same path with
other data behind it would otherwise give a result that is half of one and half of the other.
"""

import json
import subprocess
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from revision.files import file_digest, write_bytes
from revision.records import input_paths

INPUTS = "inputs.json"
_DESCRIBING = ("header.json", "config.json", "provenance.json", "projector.safetensors")
_PACKAGES = ("torch", "transformers", "lightning")


def input_digests(paths: Mapping[str, str | Path | None]) -> dict[str, str]:
    """SHA-256 of each input by name: of a file's content, of what describes a directory.

    A feature set is described by its header (which holds the digest of every shard), a model
    directory by its config, provenance and projector.

    Raises:
        ValueError: an input does not exist.
    """
    digests = {}
    for name, given in paths.items():
        if given is None:
            continue
        digests[name] = file_digest(*filter(Path.is_file, _files_of(name, given)))
    return digests


def _files_of(name: str, given: str | Path) -> list[Path]:
    if "{" in str(given):  # several files, in the notation of webdataset
        return input_paths(given)
    path = Path(given)
    if not path.exists():
        raise ValueError(f"{name}={given} does not exist; correct the path")
    return [path / member for member in _DESCRIBING] if path.is_dir() else [path]


def claim_inputs(run_dir: Path, digests: Mapping[str, str]) -> None:
    """Record the digests, or check that they are those that the run began with.

    Raises:
        ValueError: an input changed since; the run would mix two data sets.
    """
    record = run_dir / INPUTS
    if not record.exists():
        write_bytes(record, json.dumps(dict(digests), indent=1).encode())
        return
    recorded = json.loads(record.read_text())
    changed = [name for name in digests if recorded.get(name) != digests[name]]
    if changed:
        raise ValueError(
            f"{', '.join(changed)} changed since {run_dir} began; choose another name, or delete "
            "the directory to start again"
        )


def provenance(config: Any, digests: Mapping[str, str]) -> dict[str, Any]:
    """What stands in a result's `provenance.json`."""
    return {
        "config": config,
        "inputs": dict(digests),
        "commit": commit(),
        "versions": {package: version(package) for package in _PACKAGES},
    }


def commit() -> str | None:
    """Of this checkout, if it is one; marked where files differ from it."""
    root = Path(__file__).resolve().parents[2]
    git = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        done = subprocess.run(git, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
