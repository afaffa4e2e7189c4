"""A directory of weights, by its path or by its id on the hub.

Place in the pipeline: what a config calls an encoder or a tower -> **files**, and what to call them
in a header: a hub id with its commit, or the name of a directory with the digest of its content.
"""

from pathlib import Path
from typing import Any, NamedTuple

from revision.encoders.base import directory_digest

_ORIGIN = {"architectures", "dtype", "model_type", "torch_dtype", "transformers_version"}
_WANTED = ("*.json", "*.txt", "*.model", "*.safetensors")


class Files(NamedTuple):
    """`directory` holds the files of `name`."""

    directory: Path
    name: str
    is_hub: bool

    def version(self) -> str:
        """The commit, or the digest of all content, which is read for it."""
        if self.is_hub:
            return self.directory.name  # the hub's cache names it by the commit
        return f"sha256:{directory_digest(self.directory)}"


def files_of(
    path: str | Path, revision: str | None = None, *, wanted: tuple[str, ...] = _WANTED
) -> Files:
    """The files of a directory, or of a hub id once they are downloaded.

    Raises ValueError where there is neither.
    """
    directory = Path(path)
    if directory.is_dir():
        return Files(directory, directory.resolve().name, is_hub=False)
    from huggingface_hub import snapshot_download

    try:
        directory = Path(
            snapshot_download(str(path), revision=revision, allow_patterns=list(wanted))
        )
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(
            f"{str(path)!r} is neither a local directory nor a model that the hub gave: {reason}. "
            "Give an existing directory, or download the model on a machine with network access "
            "and give its directory"
        ) from error
    return Files(directory, str(path), is_hub=True)


def name_and_version(path: str | Path, version: str) -> tuple[str, str]:
    """Of a hub id itself and `version`, of a directory its name and the digest of its content."""
    if Path(path).is_dir():
        return Path(path).resolve().name, f"sha256:{directory_digest(Path(path))}"
    return str(path), version


def config_facts(config: Any) -> dict[str, Any]:
    """What a config of `transformers` says of its model, without where it came from, the version
    that wrote it and the dtype."""
    return _facts(config.to_diff_dict())


def without_pooler(model: Any, missing: list[str]) -> list[str]:
    """Take a pooler that nobody reads and that has no weights off `model`: it would be random, and
    the identity of the model with it. Returns what else is missing."""
    others = [key for key in missing if not key.startswith("pooler.")]
    if len(others) < len(missing):
        model.pooler = None
    return others


def _facts(fields: dict[str, Any]) -> dict[str, Any]:
    return {
        key: _facts(value) if isinstance(value, dict) else value
        for key, value in fields.items()
        if key not in _ORIGIN and not key.startswith("_")
    }
