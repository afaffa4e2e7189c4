"""What a run was made from: digests of its inputs, the commit, the versions.

The digests are recorded when a run begins and compared when it continues: the same path with
other data behind it would otherwise give a result that is half of one and half of the other.
"""

import hashlib
import json
import subprocess
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from revision.files import file_digest, write_bytes
from revision.records import input_files, input_text
from revision.records.inputs import digests_of
from revision.remote import fingerprint, is_url

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
        digests[name] = _digest(name, input_text(given))
    return digests


def _digest(name: str, given: str) -> str:
    if is_url(given) and name.endswith("shards"):
        return fingerprint(f"{given.rstrip('/')}/header.json")
    if Path(given).is_dir():
        return file_digest(*filter(Path.is_file, (Path(given) / name for name in _DESCRIBING)))
    try:
        files = input_files(given)
    except ValueError as error:
        raise ValueError(f"{name}={given} does not exist ({error}); correct the path") from error
    if any(file.is_remote for file in files):
        digests = "\n".join(digests_of(files))
        return hashlib.sha256(digests.encode()).hexdigest()
    return file_digest(*(Path(file.address) for file in files))


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
