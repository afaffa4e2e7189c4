"""One module per alignment method, found by its name: `realign` is in `realign.py`."""

import re
from importlib import import_module
from pkgutil import iter_modules

from revision.alignment.base import AlignmentMap


def method_names() -> list[str]:
    """The methods that there are, in alphabetical order."""
    return sorted(module.name for module in iter_modules(__path__))


def method(name: str) -> type[AlignmentMap]:
    """The class of a method.

    Raises:
        ValueError: there is no method of this name.
    """
    if not re.fullmatch("[a-z0-9_]+", name) or name not in method_names():
        raise ValueError(f"unknown alignment {name!r}; known are {', '.join(method_names())}")
    module = import_module(f"{__name__}.{name}")
    classes = (found for found in vars(module).values() if isinstance(found, type))
    for found in classes:
        if issubclass(found, AlignmentMap) and vars(found).get("name") == name:
            return found
    raise ValueError(f"{module.__file__} defines no AlignmentMap whose name is {name!r}")
