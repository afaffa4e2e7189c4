"""Tuning methods: what is put into a language model so that little of it trains.

    lora, dora, ia3, oft    through `peft`; can be merged into the weights afterwards
    adapter                 bottlenecks in the feed-forward blocks (`revision.models.bottleneck`)
    mores                   steering of visual positions (`revision.models.mores`)

A method is named by an exact key and knows which parameters are its own, so nothing hangs on the
name of a folder. What was trained is a directory of its own, loaded without remembering anything:

    tuning.json             method and options
    tuning.safetensors      its tensors, by the names they have in the language model or the module

`peft` replaces the matrices inside the model that it is given, so the model keeps its class; the
other methods leave it as it is and hang on it by hooks.

Defaults are those of the factory of arXiv:2412.12359 where it has the method.
"""

import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from jaxtyping import Bool
from peft import IA3Config, LoraConfig, OFTConfig, PeftConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from revision.files import write_bytes
from revision.models.bottleneck import BEFORE, BEHIND, Bottlenecks
from revision.models.mores import Mores, MoresSettings
from revision.models.steered_positions import Positions

FACTS, WEIGHTS = "tuning.json", "tuning.safetensors"
ADAPTER_MARKS = ("lora_", "ia3_", "oft_")
"""How `peft` begins the names of what it adds."""


class Tuning(nn.Module):
    """A method that was applied to a language model, to be held beside it.

    `module` has the parameters of a method that hangs on the model; those of `peft` stand inside
    the model, and are not this module's.
    """

    def __init__(self, module: nn.Module | None = None, peft_model: Any = None) -> None:
        super().__init__()
        self.module = module
        self._peft = (peft_model,)  # in a tuple: its parameters belong to the language model
        self.method = ""
        self.options: dict[str, Any] = {}

    @property
    def can_merge(self) -> bool:
        return self._peft[0] is not None

    def merge(self) -> None:
        """Fold the method into the weights of the language model, which is then as it was made.

        Raises:
            ValueError: the method acts on states, not on weights.
        """
        if not self.can_merge:
            raise ValueError(
                f"{self.method} changes states and not weights, so it cannot be merged; a model "
                "directory keeps it beside the language model"
            )
        self._peft[0].merge_and_unload()
        self._peft = (None,)

    def steer(self, visual_mask: Bool[Tensor, "B T"], tokens_per_picture: int) -> None:
        """Tell the methods that act on pictures where these are in the next calls."""
        if isinstance(self.module, Mores):
            self.module.steer(self.module.positions(visual_mask, tokens_per_picture))

    def tensors(self, language_model: nn.Module) -> dict[str, Tensor]:
        """The tensors of the method, on the CPU."""
        named = (
            _adapter_tensors(language_model) if self.module is None else self.module.state_dict()
        )
        return {name: tensor.detach().cpu().contiguous() for name, tensor in named.items()}

    def put(self, language_model: nn.Module, state: Mapping[str, Tensor]) -> None:
        """Put saved tensors in their places.

        Raises:
            ValueError: they belong to another method, to other options or to another model.
        """
        owner = language_model if self.module is None else self.module
        expected = self.tensors(language_model)
        if expected.keys() != state.keys():
            first = sorted(expected.keys() ^ state.keys())[0]
            raise ValueError(
                f"{len(state)} stored tensors of {self.method} for {len(expected)} of this model "
                f"(first difference: {first}); they were trained on another language model"
            )
        for name, tensor in state.items():
            if tensor.shape != expected[name].shape:
                raise ValueError(
                    f"{self.method}: {name} is stored as {tuple(tensor.shape)} and is "
                    f"{tuple(expected[name].shape)} in this model; it was trained on another"
                )
        owner.load_state_dict(dict(state), strict=False)


def apply_tuning(language_model: nn.Module, method: str, options: Mapping[str, Any]) -> Tuning:
    """Put `method` into `language_model`; random values come from torch's generator.

    Raises:
        ValueError: an unknown method or option, or a model that the method does not fit.
    """
    if method not in METHODS:
        raise ValueError(f"unknown tuning method {method!r}; choose one of {', '.join(METHODS)}")
    known = list(inspect.signature(METHODS[method]).parameters)[1:]
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise ValueError(
            f"tuning method {method!r} has no option {', '.join(unknown)}; it has "
            f"{', '.join(known)}"
        )
    tuning = METHODS[method](language_model, **options)
    tuning.method, tuning.options = method, dict(options)
    return tuning


def save_tuning(tuning: Tuning, language_model: nn.Module, directory: Path) -> None:
    """Write what `method` trained, and nothing else."""
    directory.mkdir(parents=True, exist_ok=True)
    save_file(tuning.tensors(language_model), directory / WEIGHTS)
    content = {"method": tuning.method, "options": tuning.options}
    write_bytes(directory / FACTS, json.dumps(content, indent=2).encode() + b"\n")


def load_tuning(language_model: nn.Module, directory: Path) -> Tuning:
    """Apply what `save_tuning` wrote.

    Raises:
        ValueError: `directory` holds none, or one for another language model.
    """
    if not (directory / FACTS).is_file():
        raise ValueError(f"{directory} has no {FACTS}: not what a tuning method trained")
    facts = json.loads((directory / FACTS).read_bytes())
    tuning = apply_tuning(language_model, facts["method"], facts["options"])
    tuning.put(language_model, load_file(directory / WEIGHTS))
    return tuning


def base_tensors(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a language model under the names they had before `peft` was applied."""
    return {
        name.replace(".base_layer.", "."): tensor
        for name, tensor in state.items()
        if not _is_adapter(name)
    }


def _is_adapter(name: str) -> bool:
    return any(part.startswith(ADAPTER_MARKS) for part in name.split("."))


def _adapter_tensors(language_model: nn.Module) -> dict[str, Tensor]:
    state = language_model.state_dict()
    return {name: tensor for name, tensor in state.items() if _is_adapter(name)}


def _low_rank(
    use_dora: bool,
    language_model: nn.Module,
    *,
    rank: int = 128,
    alpha: int = 256,
    dropout: float = 0.05,
    targets: str | Sequence[str] = "all-linear",
) -> Tuning:
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=targets if isinstance(targets, str) else list(targets),
        use_dora=use_dora,
    )
    return _peft(language_model, config)


def _ia3(
    language_model: nn.Module,
    *,
    targets: Sequence[str] = ("k_proj", "v_proj", "down_proj", "fc2"),
    feedforward: Sequence[str] = ("down_proj", "fc2"),
) -> Tuning:
    present = [name for name in targets if _has_module(language_model, name)]
    chosen = [name for name in feedforward if name in present]
    return _peft(language_model, IA3Config(target_modules=present, feedforward_modules=chosen))


def _oft(
    language_model: nn.Module,
    *,
    num_blocks: int = 16,
    targets: Sequence[str] = ("q_proj", "k_proj", "v_proj"),
    dropout: float = 0.0,
) -> Tuning:
    config = OFTConfig(
        r=num_blocks, oft_block_size=0, target_modules=list(targets), module_dropout=dropout
    )
    return _peft(language_model, config)


def _adapter(
    language_model: nn.Module,
    *,
    size: int = 256,
    dropout: float = 0.05,
    before: Sequence[str] = BEFORE,
    behind: Sequence[str] = BEHIND,
) -> Tuning:
    module = Bottlenecks(
        language_model, size=size, dropout=dropout, before=tuple(before), behind=tuple(behind)
    )
    return Tuning(module)


def _mores(
    language_model: nn.Module,
    *,
    rank: int = 1,
    layers: str | Sequence[int] = "all",
    positions: Mapping[str, Any] | None = None,
    share: bool = False,
    dropout: float = 0.05,
    init: str = "random",
    activation: str = "identity",
) -> Tuning:
    settings = MoresSettings(
        rank=rank,
        layers=layers if isinstance(layers, str) else tuple(layers),
        positions=Positions(**(positions or {"kind": "fraction", "fraction": 0.01})),
        share=share,
        dropout=dropout,
        init=init,
        activation=activation,
    )
    return Tuning(Mores(language_model, settings))


def _peft(language_model: nn.Module, config: PeftConfig) -> Tuning:
    try:
        peft_model = get_peft_model(language_model, config)
    except ValueError as error:
        reason = str(error).strip().split("\n")[0]
        raise ValueError(f"{type(language_model).__name__}: {reason}") from error
    return Tuning(peft_model=peft_model)


def _has_module(language_model: nn.Module, name: str) -> bool:
    return any(path.rpartition(".")[2] == name for path, _ in language_model.named_modules())


METHODS: dict[str, Callable[..., Tuning]] = {
    "lora": partial(_low_rank, False),
    "dora": partial(_low_rank, True),
    "ia3": _ia3,
    "oft": _oft,
    "adapter": _adapter,
    "mores": _mores,
}
