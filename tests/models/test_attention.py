"""The choice of the attention kernel: the same losses, and a clear refusal where it cannot run."""

import pytest
import torch

from revision.data.samples import collate
from revision.models import attention
from revision.models.attention import KERNELS, choose_attention, set_attention
from tests.models.test_llava import samples_of
from tests.tiny_models import tiny_llava


def test_automatic_choice_on_a_cpu_is_sdpa() -> None:
    assert choose_attention("auto", on_gpu=False, in_16_bits=True) == "sdpa"


@pytest.mark.parametrize(("in_16_bits", "expected"), [(True, "flash_attention_2"), (False, "sdpa")])
def test_automatic_choice_on_a_gpu_is_flash_attention_where_it_computes(
    monkeypatch: pytest.MonkeyPatch, in_16_bits: bool, expected: str
) -> None:
    monkeypatch.setattr(attention, "is_flash_attn_2_available", lambda: True)
    assert choose_attention("auto", on_gpu=True, in_16_bits=in_16_bits) == expected
    if not in_16_bits:
        with pytest.raises(ValueError, match="use precision=bf16-mixed, or attention=sdpa"):
            choose_attention("flash_attention_2", on_gpu=True, in_16_bits=False)


@pytest.mark.parametrize("name", ["sdpa", "eager"])
def test_named_kernels_are_kept(name: str) -> None:
    assert choose_attention(name, on_gpu=False, in_16_bits=True) == name


@pytest.mark.parametrize("name", ["flash_attention_2", "flex_attention"])
def test_kernels_without_a_backward_pass_on_a_cpu_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="no backward pass without a GPU; use attention=sdpa"):
        choose_attention(name, on_gpu=False, in_16_bits=True)


def test_unknown_kernels_are_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=f"unknown attention 'flash'.*{', '.join(KERNELS)}"):
        choose_attention("flash", on_gpu=True, in_16_bits=True)


def test_packed_losses_do_not_depend_on_the_kernel() -> None:
    model = tiny_llava(layout="packed")
    losses = []
    for name in ("sdpa", "eager"):
        set_attention(model.language_model, name)
        assert model.language_model.config._attn_implementation == name
        losses.append(model.score(collate(samples_of(model)))[0])
    torch.testing.assert_close(losses[0], losses[1], atol=1e-5, rtol=0)
