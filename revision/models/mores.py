"""MoReS: linear steering of visual positions, by a few vectors in each decoder layer.

    h' = h + drop(act(W h + b) - R^T h) R        at steered positions, h unchanged elsewhere

R (D x r) is orthonormal, so the update replaces the part of h inside span(R) by a learned affine
read-out of h and leaves the rest alone. It is the identity iff W = R^T and b = 0. The parameters of
one layer number 2 D r + r (arXiv:2412.12359, Eq. 3-4; the algebra is that of LoReFT,
arXiv:2404.03592).

The modules hang on the decoder layers by hooks that are never removed, so that gradient
checkpointing runs them again in the backward pass. Which positions are steered comes from the mask
of visual positions, enters with the arguments of the language model and reaches every layer as one:
never a token count, and the same in the recomputation as in the forward pass.

R is the Q of a QR decomposition of a free matrix, with the signs that make it unique. Weight decay,
averaging or rounding of that matrix scale or move it and cannot take R off the orthonormal ones;
no D x D matrix is ever held.

Departs from bibisbar/LLaVA-Steering@045cd2d: dropout acts on the update, not on h; text-only
samples are untouched; layers are a list and not a pattern of names; steering modules appear in the
state dict of the model they belong to.

Letters: D width of the language model, r rank, K tokens of one picture, B x T positions.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional

from revision.models.steered_positions import Positions

INDEX = "steer_index"
"""The argument of the language model and of its layers that lists the steered positions, counted
over the whole batch: made once a call, so that the layers never wait for the device."""

LAYER_GROUPS = ("all", "shallow", "middle", "deep")
INITS = ("random", "identity")
ACTIVATIONS = ("identity", "relu", "gelu")


class Steering(nn.Module):
    """One steering module: D x r and r x D numbers and r biases, computed in float32."""

    def __init__(
        self,
        dim: int,
        rank: int,
        *,
        dropout: float = 0.0,
        init: str = "random",
        activation: str = "identity",
    ) -> None:
        super().__init__()
        if not 0 < rank <= dim:
            raise ValueError(f"rank {rank} in a space of width {dim}; it lies between 1 and that")
        if init not in INITS or activation not in ACTIVATIONS:
            raise ValueError(
                f"init={init!r} and activation={activation!r}; choose of {INITS} and {ACTIVATIONS}"
            )
        self.dropout, self.activation = dropout, activation
        self.basis = nn.Parameter(nn.init.orthogonal_(torch.empty(dim, rank)))
        bound = 1 / math.sqrt(dim)
        self.weight = nn.Parameter(torch.empty(rank, dim).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(rank).uniform_(-bound, bound))
        if init == "identity":
            with torch.no_grad():
                self.weight.copy_(self.rotation().T)
                self.bias.zero_()

    def rotation(self) -> Float[Tensor, "D r"]:
        """R: the orthonormal basis of the span of `basis`, unique by positive diagonals."""
        q, r = torch.linalg.qr(self.basis.float())
        return q * torch.where(r.diagonal() < 0, -1.0, 1.0)

    def forward(self, hidden: Float[Tensor, "n D"]) -> Float[Tensor, "n D"]:
        """The steered states, in the dtype of `hidden`."""
        with torch.autocast(hidden.device.type, enabled=False):
            wide, rotation = hidden.float(), self.rotation()
            read = functional.linear(wide, self.weight.float(), self.bias.float())
            update = (self._activated(read) - wide @ rotation) @ rotation.T
            update = functional.dropout(update, self.dropout, self.training)
        return hidden + update.to(hidden.dtype)

    def _activated(self, read: Float[Tensor, "n r"]) -> Float[Tensor, "n r"]:
        return read if self.activation == "identity" else getattr(functional, self.activation)(read)


@dataclass(frozen=True)
class MoresSettings:
    """What a set of steering modules is made of.

    `layers` is a group (thirds of the depth) or a list of layer numbers; with `share` all layers
    have one module.
    """

    rank: int = 1
    layers: str | tuple[int, ...] = "all"
    positions: Positions = field(default_factory=Positions)
    share: bool = False
    dropout: float = 0.0
    init: str = "random"
    activation: str = "identity"

    def chosen(self, num_layers: int) -> tuple[int, ...]:
        """The numbers of the steered layers, ascending.

        Raises:
            ValueError: an unknown group, or a layer that the model does not have.
        """
        if isinstance(self.layers, str):
            return _layer_group(self.layers, num_layers)
        chosen = tuple(sorted(set(self.layers)))
        if not chosen or chosen[0] < 0 or chosen[-1] >= num_layers:
            raise ValueError(
                f"layers {list(self.layers)} of a model with {num_layers} layers; give numbers "
                f"from 0 to {num_layers - 1}, or one of {', '.join(LAYER_GROUPS)}"
            )
        return chosen


def _layer_group(name: str, num_layers: int) -> tuple[int, ...]:
    third = math.ceil(num_layers / 3)
    groups = {
        "all": range(num_layers),
        "shallow": range(third),
        "middle": range(third, num_layers - third),
        "deep": range(num_layers - third, num_layers),
    }
    if name not in groups:
        raise ValueError(
            f"unknown layers={name!r}; choose {', '.join(groups)} or a list of numbers"
        )
    if not groups[name]:
        raise ValueError(f"layers={name} of a model with {num_layers} layers is none of them")
    return tuple(groups[name])


class Mores(nn.Module):
    """The steering modules of one language model, hung on its decoder layers.

    Random initialisation is drawn from torch's generator in the order of the layers. The module of
    the last layer never learns when only pictures are steered: nothing reads those positions
    afterwards (its gradient is exactly zero).

    Raises:
        ValueError: the language model has no list of decoder layers, or lacks a chosen one.
    """

    def __init__(self, language_model: nn.Module, settings: MoresSettings) -> None:
        super().__init__()
        self.settings = settings
        layers = decoder_layers(language_model)
        self.chosen = settings.chosen(len(layers))
        dim = language_model.get_input_embeddings().weight.shape[-1]  # type: ignore[operator]
        count = 1 if settings.share else len(self.chosen)
        options = {key: getattr(settings, key) for key in ("dropout", "init", "activation")}
        self.layers = nn.ModuleList(Steering(dim, settings.rank, **options) for _ in range(count))
        self._mask: Tensor | None = None
        self._num_expected = self._num_steered = 0
        language_model.register_forward_pre_hook(self._hand_in, with_kwargs=True)
        language_model.register_forward_hook(self._check_reached)
        for index, number in enumerate(self.chosen):
            hook = partial(self._steer, 0 if settings.share else index)
            layers[number].register_forward_hook(hook, with_kwargs=True)

    def steer(self, mask: Bool[Tensor, "B T"] | None) -> None:
        """Set the positions that the next calls of the language model steer; None for no steering.

        A mask without any position runs the modules on nothing: their gradients are then zero, for
        which data parallelism waits. During generation a call may be longer (without a cache it
        sees the new tokens too, which are not steered) or one token long (with a cache, which holds
        what was steered).
        """
        self._mask = mask

    def positions(
        self, visual_mask: Bool[Tensor, "B T"], tokens_per_picture: int
    ) -> Bool[Tensor, "B T"]:
        """The steered positions among those that hold pictures, K tokens each."""
        order = (visual_mask.long().cumsum(1) - 1).clamp(min=0) % tokens_per_picture
        chosen = self.settings.positions.of(tokens_per_picture).to(visual_mask.device)
        return visual_mask & chosen[order]

    def _hand_in(
        self, language_model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        index = None if self._mask is None else _index(self._mask, _length(kwargs))
        self._num_steered, self._num_expected = 0, 0 if index is None else len(self.chosen)
        return None if index is None else (args, kwargs | {INDEX: index})

    def _steer(
        self, module: int, layer: nn.Module, args: Any, kwargs: dict[str, Any], output: Any
    ) -> Any:
        index = kwargs.get(INDEX)
        if index is None:
            return None
        self._num_steered += 1
        hidden = output[0] if isinstance(output, tuple) else output
        rows = hidden.flatten(0, 1)
        steered = rows.index_copy(0, index, self.layers[module](rows[index])).view_as(hidden)
        return (steered, *output[1:]) if isinstance(output, tuple) else steered

    def _check_reached(self, language_model: nn.Module, args: Any, output: Any) -> None:
        """A layer that is not told what to steer would be left alone in silence."""
        if self._num_steered < self._num_expected:
            raise ValueError(
                f"{self._num_steered} of {self._num_expected} layers were steered; "
                f"{type(language_model).__name__} does not hand its arguments to every layer"
            )

    @property
    def num_parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.parameters())


def _length(kwargs: dict[str, Any]) -> int:
    inputs = kwargs.get("inputs_embeds")
    inputs = kwargs.get("input_ids") if inputs is None else inputs
    assert isinstance(inputs, Tensor), "the language model is called with named inputs"
    return inputs.shape[1]


def _index(mask: Bool[Tensor, "B T"], length: int) -> Int[Tensor, " n"] | None:
    """The masked positions in a call of `length` positions; None for one decoding step."""
    if length >= mask.shape[1]:
        return functional.pad(mask, (0, length - mask.shape[1])).flatten().nonzero()[:, 0]
    if length == 1:
        return None
    raise ValueError(
        f"a call with {length} positions where {mask.shape[1]} are masked: prefilling in chunks "
        "would steer other tokens than those of the pictures"
    )


def decoder_layers(language_model: nn.Module) -> Sequence[nn.Module]:
    """The decoder layers of a causal model of `transformers`, first to last.

    Raises:
        ValueError: the model keeps them elsewhere than in `<base model>.layers`.
    """
    base = getattr(language_model, "base_model", language_model)
    layers = getattr(base, "layers", None)
    if not isinstance(layers, nn.ModuleList):
        raise ValueError(
            f"{type(language_model).__name__} has no list of layers at its base model; MoReS is "
            "for decoders of the Llama family (Llama, Qwen, Mistral, Phi, Gemma, SmolLM)"
        )
    return list(layers)
