"""The three rings: an inner one never imports an outer one."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "revision"
LIGHTNING = {
    *(PACKAGE / "training").glob("*.py"),
    PACKAGE / "data" / "datamodule.py",
    PACKAGE / "encoders" / "embedding.py",
}
HYDRA = {PACKAGE / "config.py"}
MODULES = sorted(PACKAGE.rglob("*.py"))


def imported(path: Path) -> set[str]:
    """Every module that `path` imports, anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module or "")
    return names


def packages(path: Path) -> set[str]:
    return {name.split(".")[0] for name in imported(path)}


def test_modules_are_found() -> None:
    assert len(MODULES) > 60


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_module_stays_in_its_ring(path: Path) -> None:
    if path not in HYDRA:
        assert not packages(path) & {"hydra", "omegaconf"}, "Hydra belongs to config.py"
    if path not in LIGHTNING | HYDRA:
        assert not packages(path) & {"lightning", "deepspeed"}, "Lightning belongs to training"


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_no_module_loads_untrusted_pickles(path: Path) -> None:
    text = path.read_text()
    assert "pickle.load(" not in text and "weights_only=False" not in text
