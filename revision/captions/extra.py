"""Packages of the optional extra `captions`."""

from importlib import import_module
from types import ModuleType


def load_extra(module: str, option: str) -> ModuleType:
    """Import `module`; ValueError with the command that installs it where it is missing."""
    try:
        return import_module(module)
    except ImportError:
        package = module.partition(".")[0]
        raise ValueError(
            f'data.{option} needs the package {package}: pip install -e ".[captions]"'
        ) from None
