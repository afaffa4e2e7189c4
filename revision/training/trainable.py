"""The trainable set of a stage: which parameters move, chosen by glob patterns over their names.

A stage lists patterns such as `projector.*`; everything else is frozen. The set is printed with
counts before training starts, and it is all that a checkpoint holds and an optimiser sees.
"""

from collections.abc import Sequence
from fnmatch import fnmatchcase

from torch import nn


def select_trainable(model: nn.Module, patterns: Sequence[str]) -> list[str]:
    """Freeze `model` but for the parameters whose names match a pattern; return their names.

    Submodules in which nothing trains are put into eval mode (no dropout, fixed running
    statistics), the others into train mode.

    Raises:
        ValueError: a pattern matches nothing; the stage would have trained less than it says.
    """
    names = [name for name, _ in model.named_parameters()]
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            parts = sorted({name.split(".")[0] for name in names})
            raise ValueError(
                f"trainable pattern {pattern!r} matches none of the model's {len(names)} "
                f"parameters (top-level parts: {', '.join(parts)}); correct stage.trainable"
            )
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(any(fnmatchcase(name, pattern) for pattern in patterns))
    set_modes(model)
    return trainable_names(model)


def trainable_names(model: nn.Module) -> list[str]:
    """Names of the parameters that train, tied parameters once, in the model's order."""
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad]


def set_modes(model: nn.Module) -> None:
    """Eval mode in every top-level part that is frozen, train mode in the rest."""
    model.train()
    for part in model.children():
        parameters = list(part.parameters())
        if parameters and not any(parameter.requires_grad for parameter in parameters):
            part.eval()


def describe_trainable(model: nn.Module) -> str:
    """A table with one line per top-level part: trained and total parameter counts."""
    rows = [_count(name, part) for name, part in model.named_children()]
    direct = list(model.parameters(recurse=False))
    if direct:
        trained = sum(p.numel() for p in direct if p.requires_grad)
        rows.append(("(own)", trained, sum(p.numel() for p in direct)))
    rows = [row for row in rows if row[2]] + [_count("total", model)]
    width = max(len(row[0]) for row in rows)
    lines = [
        f"  {name:<{width}}  {trained:>15,} of {total:>15,} parameters train"
        for name, trained, total in rows
    ]
    return "\n".join(["Trainable set:", *lines])


def _count(name: str, module: nn.Module) -> tuple[str, int, int]:
    parameters = list(module.parameters())
    trained = sum(p.numel() for p in parameters if p.requires_grad)
    return name, trained, sum(p.numel() for p in parameters)
