"""Composition, construction and run directories: the only module that imports Hydra.

Config selects, code decides. A leaf file of a group under `conf/` names one constructor in
`_target_`; `build` calls it. What is known only at run time (feature width, tokenizer, run
directory) is passed by code and can therefore not contradict the data.
"""

import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

CONF_DIR = Path(__file__).resolve().parents[1] / "conf"
RECORD_NAME = "config.yaml"
_SWEPT_KEYS = "REVISION_SWEPT_KEYS"  # reaches the processes of Hydra's launchers
_parts: list[None] = []  # not empty while a run calls another one (`as_part`)

Run = Callable[[DictConfig], Any]


def build(node: DictConfig, **parts: Any) -> Any:
    """Call the constructor that `node._target_` names with the node's keys and `parts`.

    The parts go past Hydra, which would take a dataclass for a config and turn it into a dict.
    """
    constructor = hydra.utils.instantiate(node, _partial_=True, _recursive_=False, _convert_="all")
    return constructor(**parts)


def compose(root: str, overrides: Sequence[str] = ()) -> DictConfig:
    """The config that `python <root>.py <overrides>` would see, for callers inside Python."""
    from hydra import compose as compose_config
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    if GlobalHydra.instance().is_initialized():
        return compose_config(config_name=root, overrides=list(overrides))
    with initialize_config_dir(config_dir=str(CONF_DIR), version_base="1.3"):
        return compose_config(config_name=root, overrides=list(overrides))


def entry(run: Run, root: str) -> Callable[[], None]:
    """The command line of `run`: compose `conf/<root>.yaml`, run, report a failure in one line.

    What a user can cause (a `ValueError`, a file that is not there, a full disk, a missing or
    misspelt key) ends with one sentence on standard error and exit status 1; anything else is
    our fault and keeps its traceback, as does everything under `HYDRA_FULL_ERROR=1`.
    """

    @hydra.main(version_base="1.3", config_path=str(CONF_DIR), config_name=root)
    def main(cfg: DictConfig) -> None:
        _use_ordinary_processes()
        try:
            run(cfg)
        except (ValueError, OSError, OmegaConfBaseException, HydraException) as error:
            if os.environ.get("HYDRA_FULL_ERROR"):
                raise
            if HydraConfig.get().mode == RunMode.MULTIRUN:  # a launcher loses an exit
                raise RuntimeError(_sentence(error)) from None
            print(f"error: {_sentence(error)}", file=sys.stderr)
            raise SystemExit(1) from None

    def start() -> None:
        os.environ[_SWEPT_KEYS] = ",".join(_swept_keys(sys.argv[1:]))
        main()

    return start


@contextmanager
def as_part() -> Iterator[None]:
    """What runs inside is a part of this run: a sweep over this run does not name it."""
    _parts.append(None)
    try:
        yield
    finally:
        _parts.pop()


def run_directory(cfg: DictConfig) -> Path:
    """`<run_root>/<name>`, and for a job of a sweep `<run_root>/<name>/<its swept overrides>`."""
    return job_directory(Path(cfg.run_root) / cfg.name)


def job_directory(directory: Path, *, named_by: str = "") -> Path:
    """`directory`, and for a job of a sweep `<directory>/<its swept overrides>`.

    Without that of the key `named_by`, which holds `directory` itself.
    """
    if _parts:
        return directory
    if HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN:
        swept = {*os.environ.get(_SWEPT_KEYS, "").split(","), *_sweeper_keys()}
        swept.discard(named_by)
        chosen = [o for o in HydraConfig.get().overrides.task if o.split("=")[0] in swept]
        return directory / ",".join(sorted(chosen)).replace("/", "_")
    return directory


def claim_directory(directory: Path, cfg: DictConfig, *, neutral: Sequence[str] = ()) -> None:
    """Record the resolved `cfg` in `directory`, or check that it is the one recorded there.

    `neutral` names dotted keys (or parents of keys) that do not change the result, such as
    devices and loggers: they may differ between a run and its resumption.

    Raises:
        ValueError: another config already owns the directory; continuing would have mixed the
            results of two experiments under one name.
    """
    record = directory / RECORD_NAME
    resolved = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    if record.exists():
        recorded = OmegaConf.to_container(OmegaConf.load(record))
        differences = list(_differences(recorded, resolved, neutral))
        if differences:
            raise ValueError(
                f"{directory} belongs to another config: {'; '.join(differences[:5])}. "
                "Choose another name, or delete the directory to start again."
            )
        return
    directory.mkdir(parents=True, exist_ok=True)
    temporary = record.with_suffix(f".{os.getpid()}.tmp")
    temporary.write_text(OmegaConf.to_yaml(OmegaConf.create(resolved)))
    os.replace(temporary, record)


def _use_ordinary_processes() -> None:
    """joblib's workers start children by its own method, which data loaders cannot use."""
    if multiprocessing.get_start_method(allow_none=True) == "loky":
        multiprocessing.set_start_method("fork", force=True)


def _sweeper_keys() -> list[str]:
    """What an experiment sweeps by `hydra.sweeper.params`."""
    return list(HydraConfig.get().sweeper.get("params") or {})


def _swept_keys(arguments: Sequence[str]) -> list[str]:
    overrides = [a for a in arguments if "=" in a and not a.startswith("-")]
    try:
        parsed = OverridesParser.create().parse_overrides(overrides)
    except HydraException:
        return []  # Hydra itself says what is wrong with it
    return [p.key_or_group for p in parsed if p.is_sweep_override()]


def _sentence(error: Exception) -> str:
    text = str(error)
    if "in DataLoader worker process" in text:  # torch puts the traceback in the message
        text = text.strip().splitlines()[-1].partition(": ")[2]
    return " ".join(text.split()) or type(error).__name__


def _differences(old: Any, new: Any, neutral: Sequence[str], path: str = "") -> Iterator[str]:
    if any(path == key or path.startswith(key + ".") for key in neutral):
        return
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted(set(old) | set(new), key=str):
            inner = f"{path}.{key}" if path else str(key)
            yield from _differences(old.get(key), new.get(key), neutral, inner)
    elif old != new:
        yield f"{path} was {old!r} and is now {new!r}"
