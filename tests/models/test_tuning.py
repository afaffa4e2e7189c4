"""Tuning methods: counts, identity at the start, what moves, saving, merging."""

import copy
import json

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, PhiConfig

from revision.models.bottleneck import Bottleneck
from revision.models.tuning import METHODS, apply_tuning, base_tensors, load_tuning, save_tuning
from tests.tiny_models import HIDDEN, tiny_config, tiny_llm

OPTIONS = {
    "lora": {"rank": 2, "alpha": 4},
    "dora": {"rank": 2, "alpha": 4},
    "ia3": {},
    "oft": {"num_blocks": 4},
    "adapter": {"size": 3, "dropout": 0.0},
    "mores": {"rank": 1, "init": "identity", "positions": {"kind": "all"}, "dropout": 0.0},
}
MERGING = ("lora", "dora", "ia3", "oft")
IDS = torch.tensor([[5, 8, 9, 100, 7, 3]])
MASK = torch.tensor([[False, True, True, False, False, False]])


def tuned(method, seed=0):
    llm = tiny_llm()
    torch.manual_seed(seed)
    tuning = apply_tuning(llm, method, OPTIONS[method])
    return llm.eval(), tuning


def own_parameters(llm, tuning):
    if tuning.module is not None:
        return list(tuning.parameters())
    return [p for p in llm.parameters() if p.requires_grad]


def disturb(llm, tuning):
    """As if it had been trained."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in own_parameters(llm, tuning):
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)


def logits(llm, tuning=None):
    if tuning is not None:
        tuning.steer(MASK, 1)
    embeds = llm.get_input_embeddings()(IDS).detach()
    return llm(inputs_embeds=embeds, use_cache=False).logits


@pytest.mark.parametrize("method", METHODS)
def test_a_method_is_the_identity_until_it_is_trained(method):
    llm, tuning = tuned(method)
    torch.testing.assert_close(logits(llm, tuning), logits(tiny_llm()))


@pytest.mark.parametrize("method", METHODS)
def test_a_trained_method_changes_answers_and_survives_saving(method, tmp_path):
    llm, tuning = tuned(method)
    disturb(llm, tuning)
    trained = logits(llm, tuning)
    assert not torch.allclose(trained, logits(tiny_llm()), atol=1e-3)
    save_tuning(tuning, llm, tmp_path / "anything")
    other = tiny_llm()
    torch.manual_seed(99)
    loaded = load_tuning(other, tmp_path / "anything")
    assert torch.equal(logits(other.eval(), loaded), trained)


@pytest.mark.parametrize("method", METHODS)
def test_what_is_saved_is_what_trains(method, tmp_path):
    llm, tuning = tuned(method)
    save_tuning(tuning, llm, tmp_path)
    stored = (tmp_path / "tuning.safetensors").stat().st_size
    count = sum(parameter.numel() for parameter in own_parameters(llm, tuning))
    assert sum(t.numel() for t in tuning.tensors(llm).values()) == count
    assert stored < 4 * count + 8192  # the names


@pytest.mark.parametrize("method", MERGING)
def test_merging_keeps_the_answers_and_the_names(method):
    llm, tuning = tuned(method)
    disturb(llm, tuning)
    expected = logits(llm, tuning)
    assert base_tensors(llm.state_dict()).keys() == tiny_llm().state_dict().keys()
    tuning.merge()
    torch.testing.assert_close(logits(llm), expected, atol=1e-5, rtol=1e-5)
    assert llm.state_dict().keys() == tiny_llm().state_dict().keys()


@pytest.mark.parametrize("method", sorted(set(METHODS) - set(MERGING)))
def test_methods_on_states_are_not_merged(method):
    _, tuning = tuned(method)
    with pytest.raises(ValueError, match="cannot be merged"):
        tuning.merge()


@pytest.mark.parametrize("method", MERGING)
def test_the_base_is_not_touched(method):
    llm, tuning = tuned(method)
    disturb(llm, tuning)
    base, plain = base_tensors(llm.state_dict()), tiny_llm().state_dict()
    assert all(torch.equal(base[name], plain[name]) for name in plain)


def on_meta(kind, **sizes):
    config = kind(**sizes)
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


PHI_2 = {
    "hidden_size": 2560,
    "intermediate_size": 10240,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "vocab_size": 51200,
}
VICUNA_7B = {
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "vocab_size": 32000,
}
PUBLISHED = [
    ("lora", {"rank": 128}, 188_743_680, 319_815_680),
    ("ia3", {}, 491_520, 614_400),
    ("adapter", {}, 83_886_080, 201_326_592),
    ("mores", {"rank": 1}, 163_872, 262_176),
    ("mores", {"rank": 2}, 327_744, 524_352),
    ("mores", {"rank": 4}, 655_488, 1_048_704),
    ("oft", {}, 19_537_920, None),
]


@pytest.mark.parametrize(("method", "options", "phi", "vicuna"), PUBLISHED)
def test_counts_are_the_published_ones(method, options, phi, vicuna):
    for kind, sizes, published in ((PhiConfig, PHI_2, phi), (LlamaConfig, VICUNA_7B, vicuna)):
        if published is not None:
            llm = on_meta(kind, **sizes)
            tuning = apply_tuning(llm, method, options)
            assert sum(p.numel() for p in own_parameters(llm, tuning)) == published


@pytest.mark.parametrize("reentrant", [True, False])
def test_bottlenecks_train_under_checkpointing(reentrant):
    gradients = []
    for checkpointing in (False, True):
        llm, tuning = tuned("adapter")
        disturb(llm, tuning)
        llm.train().requires_grad_(False)
        if checkpointing:
            options = {"use_reentrant": reentrant}
            llm.gradient_checkpointing_enable(gradient_checkpointing_kwargs=options)
        embeds = llm.get_input_embeddings()(IDS).detach().requires_grad_()
        llm(inputs_embeds=embeds, use_cache=False).logits.square().mean().backward()
        gradients.append([p.grad for p in own_parameters(llm, tuning)])
    for one, other in zip(*gradients, strict=True):
        assert one.any()
        torch.testing.assert_close(one, other)


def test_a_bottleneck_is_its_formula():
    adapter, x = Bottleneck(8, 3), torch.randn(2, 8)
    with torch.no_grad():
        adapter.up.normal_()
    expected = x + torch.nn.functional.gelu(x @ adapter.down.T) @ adapter.up.T
    torch.testing.assert_close(adapter(x), expected)


def test_an_unknown_method_and_an_unknown_option_are_refused():
    with pytest.raises(ValueError, match="unknown tuning method 'flora'; choose one of lora"):
        apply_tuning(tiny_llm(), "flora", {})
    with pytest.raises(ValueError, match="'mores' has no option r; it has rank"):
        apply_tuning(tiny_llm(), "mores", {"r": 4})


def test_models_that_a_method_does_not_fit_are_refused():
    gpt = tiny_llm(tiny_config(GPT2Config, n_embd=HIDDEN, n_layer=2, n_head=4), "eager")
    with pytest.raises(ValueError, match="no linear layer named"):
        apply_tuning(gpt, "adapter", {})
    with pytest.raises(ValueError, match="GPT2LMHeadModel"):
        apply_tuning(copy.deepcopy(gpt), "oft", {})


def test_tensors_of_another_model_are_refused(tmp_path):
    llm, tuning = tuned("mores")
    save_tuning(tuning, llm, tmp_path)
    facts = json.loads((tmp_path / "tuning.json").read_text())
    facts["options"]["rank"] = 2
    (tmp_path / "tuning.json").write_text(json.dumps(facts))
    with pytest.raises(ValueError, match=r"is stored as .* trained on another"):
        load_tuning(tiny_llm(), tmp_path)
    with pytest.raises(ValueError, match=r"has no tuning\.json"):
        load_tuning(tiny_llm(), tmp_path / "no")
