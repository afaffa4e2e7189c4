"""Every shipped config binds: its target exists and takes every key that the file gives it."""

import inspect
import re
from importlib import import_module
from pathlib import Path

import pytest
from omegaconf import DictConfig, OmegaConf

from revision.config import CONF_DIR, compose

LEAVES = sorted(p for p in CONF_DIR.glob("*/*.yaml") if "_target_:" in p.read_text())
ROOTS = (
    *("embed", "align", "train", "evaluate", "generate"),
    *("convert", "verify_shards", "pipeline", "prepare_demo", "inspect_data"),
    *("gap_study", "gap_table", "measure_gap", "compare_methods"),
)
EXPERIMENTS = sorted((CONF_DIR / "experiment").glob("*.yaml"))


def test_the_leaves_are_found() -> None:
    assert len(LEAVES) == 52


@pytest.mark.parametrize("path", LEAVES, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_a_leaf_binds_to_its_target(path: Path) -> None:
    node = OmegaConf.to_container(OmegaConf.load(path))
    assert isinstance(node, dict)
    module, _, name = node.pop("_target_").rpartition(".")
    node.pop("defaults", None)
    parameters = inspect.signature(getattr(import_module(module), name)).parameters
    unknown = {str(key) for key in node} - set(parameters)
    assert not unknown, f"{path}: {name} takes no {sorted(unknown)}"


@pytest.mark.parametrize("root", ROOTS)
def test_a_root_composes(root: str) -> None:
    required = {"train": ["name=x"]}.get(root, [])
    assert compose(root, required)


@pytest.mark.parametrize("root", ROOTS)
def test_no_key_of_a_root_is_hidden_by_a_group(root: str) -> None:
    keys = OmegaConf.load(CONF_DIR / f"{root}.yaml")
    assert isinstance(keys, DictConfig)
    groups = {path.parent.name for path in LEAVES} - {next(iter(d)) for d in keys.defaults[2:]}
    assert not {key for key in groups & set(keys) if not OmegaConf.is_config(keys[key])}


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda p: p.stem)
def test_an_experiment_is_a_recipe_card_that_composes(path: Path) -> None:
    text = path.read_text()
    assert text.startswith("# @package _global_")
    for heading in ("# Paper", "# Hardware", "# Expected", "# Command"):
        assert heading in text
    (root,) = re.findall(r"^# Command +python (?:scripts/)?(\w+)\.py", text, re.MULTILINE)
    assert compose(root, [f"experiment={path.stem}"]).name == path.stem


def test_every_step_of_the_pipeline_composes_with_its_overrides() -> None:
    overrides = compose("pipeline").overrides
    assert compose("train", ["name=x", "stage=contrastive", *overrides.contrastive])
    assert compose("train", ["name=x", "stage=pretrain", *overrides.pretrain])
    assert compose("train", ["name=x", "stage=sft", *overrides.sft])
    for part in ("pretrain", "sft", "questions"):
        assert compose("evaluate", [*overrides.evaluate, *overrides[f"evaluate_{part}"]])
