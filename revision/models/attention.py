"""Which attention kernel the language model runs, chosen for the device that it will train on.

Samples that are packed behind each other must not see each other. `transformers` reads that from
position ids that restart, and each kernel keeps to it in its own way:

    flash_attention_2   sequence lengths (varlen): memory and time of the samples alone; 16 bits
    flex_attention      a sparse block mask, compiled; no backward pass on a CPU
    sdpa                a boolean mask of T x T, T the tokens of the pack
    eager               the same mask, and all weights kept: for looking at them

Only the first two cost what the samples cost; with `sdpa` a pack of T tokens is charged for T^2.
"""

from typing import Any

from transformers.utils import is_flash_attn_2_available

KERNELS = ("flash_attention_2", "flex_attention", "sdpa", "eager")


def choose_attention(name: str, *, on_gpu: bool, in_16_bits: bool) -> str:
    """The kernel `name`; for "auto" varlen flash attention on a GPU that has it, else sdpa.

    Raises:
        ValueError: no such kernel, or one that cannot train on this device or in this precision.
    """
    if name == "auto":
        has_flash = on_gpu and in_16_bits and is_flash_attn_2_available()
        return "flash_attention_2" if has_flash else "sdpa"
    if name not in KERNELS:
        raise ValueError(f"unknown attention {name!r}; choose auto or one of {', '.join(KERNELS)}")
    if not on_gpu and name in ("flash_attention_2", "flex_attention"):
        raise ValueError(
            f"attention={name} has no backward pass without a GPU; use attention=sdpa, which gives "
            "the same losses"
        )
    if name == "flash_attention_2" and not in_16_bits:
        raise ValueError(
            "attention=flash_attention_2 computes in 16 bits and this run does not; use "
            "precision=bf16-mixed, or attention=sdpa"
        )
    if name == "flash_attention_2" and not is_flash_attn_2_available():
        raise ValueError(
            "attention=flash_attention_2 needs the package flash-attn, which is not installed "
            "(pip install flash-attn); attention=flex_attention needs no package"
        )
    return name


def set_attention(language_model: Any, name: str) -> None:
    """Switch a loaded language model of `transformers` to the kernel `name`."""
    language_model.set_attn_implementation(name)
