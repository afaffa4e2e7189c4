"""MoReS: its algebra, where it acts, and each known fault of the released code as a law."""

import copy

import pytest
import torch
from torch.nn import functional
from transformers import GPT2Config, MistralConfig, Qwen2Config

from revision.models.mores import Mores, MoresSettings, Steering
from revision.models.steered_positions import Positions
from tests.tiny_models import HIDDEN, tiny_config, tiny_llm


def visual_mask(*rows: str) -> torch.Tensor:
    """`v` for a token of a picture."""
    return torch.tensor([[letter == "v" for letter in row] for row in rows])


def steered_llm(seed: int = 0, **settings):
    torch.manual_seed(seed)
    llm = tiny_llm()
    return llm, Mores(llm, MoresSettings(**settings))


def embeds(batch: int, length: int) -> torch.Tensor:
    return torch.randn(batch, length, HIDDEN, generator=torch.Generator().manual_seed(3))


def logits(llm, inputs, **options):
    return llm(inputs_embeds=inputs, use_cache=False, **options).logits


def orthonormality_error(rotation: torch.Tensor) -> float:
    return float((rotation.T @ rotation - torch.eye(rotation.shape[1])).detach().abs().max())


def test_the_update_is_the_formula_with_columns():
    module, h = Steering(8, 3), torch.randn(8)
    rotation = module.rotation()
    expected = h + rotation @ (module.weight @ h + module.bias - rotation.T @ h)
    torch.testing.assert_close(module(h[None])[0], expected)


def test_nothing_outside_the_span_changes():
    module, h = Steering(8, 3), torch.randn(5, 8)
    rotation = module.rotation()
    change = module(h) - h
    torch.testing.assert_close(change @ rotation @ rotation.T, change)


def test_identity_initialisation_changes_nothing():
    h = torch.randn(5, 8)
    torch.testing.assert_close(Steering(8, 3, init="identity")(h), h)


@pytest.mark.parametrize(("rank", "published"), [(1, 163_872), (2, 327_744), (4, 655_488)])
def test_parameters_number_what_the_paper_prints_for_phi_2(rank, published):
    assert 32 * sum(p.numel() for p in Steering(2560, rank).parameters()) == published


def test_no_buffer_is_held():
    assert not list(Steering(64, 4).buffers())


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_training_with_weight_decay_and_resuming_stay_orthonormal(decay):
    module = Steering(32, 4)
    for _ in range(2):
        optimizer = torch.optim.AdamW(module.parameters(), lr=0.05, weight_decay=decay)
        for _ in range(50):
            optimizer.zero_grad()
            (module(torch.randn(6, 32)) - 1).square().sum().backward()
            optimizer.step()
        assert orthonormality_error(module.rotation()) < 1e-5
        again = Steering(32, 4)
        again.load_state_dict(module.state_dict())
        assert torch.equal(again.rotation(), module.rotation())
        module = again


def test_dropout_drops_the_update_and_not_the_state():
    module, h = Steering(8, 2, dropout=1.0), torch.randn(4, 8)
    assert torch.equal(module.train()(h), h)
    assert not torch.allclose(module.eval()(h), h)


def test_parameters_keep_their_precision_under_autocast():
    module, h = Steering(8, 2), torch.randn(4, 8).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        assert module(h).dtype == torch.bfloat16
    assert {p.dtype for p in module.parameters()} == {torch.float32}


@pytest.mark.parametrize("kind", [None, Qwen2Config, MistralConfig])
def test_a_model_is_steered_at_the_mask_and_nowhere_else(kind):
    llm = tiny_llm(tiny_config(kind) if kind else None)
    plain = copy.deepcopy(llm)
    mores = Mores(llm, MoresSettings(layers=(1,)))
    inputs, mask = embeds(2, 6), visual_mask("tvvttt", "ttttvt")
    seen, expected = {}, {}
    for model, store in ((llm, seen), (plain, expected)):
        layer = model.model.layers[1]
        layer.register_forward_hook(lambda m, a, out, s=store: s.update(out=out))
    mores.steer(mask)
    logits(llm, inputs)
    logits(plain, inputs)
    torch.testing.assert_close(seen["out"][~mask], expected["out"][~mask])
    torch.testing.assert_close(seen["out"][mask], mores.layers[0](expected["out"][mask]))


@pytest.mark.parametrize("mask", [None, visual_mask("tttt")])
def test_text_alone_is_untouched(mask):
    llm, mores = steered_llm(layers="all")
    plain = tiny_llm()
    mores.steer(mask)
    inputs = embeds(1, 4)
    steered = logits(llm, inputs)
    assert torch.equal(steered, logits(plain, inputs))
    if mask is not None:
        steered.sum().backward()
        assert all(p.grad is not None and not p.grad.any() for p in mores.parameters())


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("share", [True, False])
def test_gradients_under_checkpointing_are_those_without(reentrant, share):
    found = []
    for checkpointing in (False, True):
        llm, mores = steered_llm(rank=2, share=share)
        llm.train().requires_grad_(False)
        if checkpointing:
            options = {"use_reentrant": reentrant}
            llm.gradient_checkpointing_enable(gradient_checkpointing_kwargs=options)
        inputs = embeds(1, 6).requires_grad_()
        mores.steer(visual_mask("tvvvtt"))
        outputs = logits(llm, inputs)
        mores.steer(visual_mask("vttttt"))  # the next batch must not reach the recomputation
        outputs[:, 4:].square().sum().backward()
        found.append([p.grad for p in mores.parameters()])
    last = found[0][-3:]
    assert share or all(not gradient.any() for gradient in last)  # nothing reads the last layer
    assert all(gradient.any() for gradient in found[0][:3])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-6)


def test_hooks_of_others_stay():
    llm, mores = steered_llm()
    calls = []
    llm.model.layers[0].register_forward_hook(lambda *_: calls.append(1))
    mores.steer(visual_mask("tvvt"))
    for _ in range(3):
        logits(llm, embeds(1, 4))
    assert len(calls) == 3


def test_a_left_padded_batch_gives_what_each_sample_gives():
    llm, mores = steered_llm(rank=2)
    rows, masks = embeds(2, 6), ["tvvtvv", "tvvt"]
    alone = []
    for row, mask in zip(rows, masks, strict=True):
        mores.steer(visual_mask(mask))
        alone.append(logits(llm, row[None, -len(mask) :])[0, -1])
    mores.steer(visual_mask(masks[0], "tt" + masks[1]))
    attention = torch.tensor([[1] * 6, [0, 0, 1, 1, 1, 1]])
    position_ids = (attention.cumsum(1) - 1).clamp(min=0)
    together = logits(llm, rows, attention_mask=attention, position_ids=position_ids)[:, -1]
    torch.testing.assert_close(together, torch.stack(alone), atol=1e-5, rtol=1e-4)


def test_generation_is_the_same_with_and_without_cache():
    llm, mores = steered_llm(rank=2)
    mores.steer(visual_mask("tvvvt"))
    inputs = embeds(1, 5)
    attention = torch.ones(1, 5, dtype=torch.long)
    answers = [
        llm.generate(
            inputs_embeds=inputs,
            attention_mask=attention,
            max_new_tokens=6,
            do_sample=False,
            use_cache=cache,
            pad_token_id=0,
            eos_token_id=511,
        )
        for cache in (True, False)
    ]
    assert torch.equal(*answers)
    mores.steer(None)
    assert not torch.allclose(logits(llm, inputs), _steered(llm, mores, inputs))


def _steered(llm, mores, inputs):
    mores.steer(visual_mask("tvvvt"))
    return logits(llm, inputs)


def test_prefilling_in_chunks_is_refused():
    llm, mores = steered_llm()
    mores.steer(visual_mask("tvvvt"))
    with pytest.raises(ValueError, match="3 positions where 5 are masked"):
        logits(llm, embeds(1, 3))


def test_all_modules_follow_the_mode_of_their_parent():
    llm, mores = steered_llm(dropout=0.5)
    holder = torch.nn.ModuleDict({"llm": llm, "mores": mores})
    holder.eval()
    assert not any(module.training for module in mores.modules())


def test_every_trained_tensor_stands_in_the_state_dict_and_comes_back():
    _, mores = steered_llm(rank=2)
    assert set(dict(mores.named_parameters())) == set(mores.state_dict())
    _, other = steered_llm(seed=9, rank=2)
    other.load_state_dict(mores.state_dict())
    for one, two in zip(mores.parameters(), other.parameters(), strict=True):
        assert torch.equal(one, two)


def test_a_model_that_keeps_arguments_from_its_layers_is_refused():
    llm, mores = steered_llm()
    mores.steer(visual_mask("tvvt"))
    original = llm.model.forward
    llm.model.forward = lambda **kwargs: original(
        **{key: value for key, value in kwargs.items() if key != "steer_index"}
    )
    with pytest.raises(ValueError, match="0 of 2 layers were steered"):
        logits(llm, embeds(1, 4))


def test_a_model_of_another_family_is_refused():
    llm = tiny_llm(tiny_config(GPT2Config, n_embd=HIDDEN, n_layer=2, n_head=4), "eager")
    with pytest.raises(ValueError, match="has no list of layers"):
        Mores(llm, MoresSettings())


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        ("all", (0, 1, 2, 3, 4, 5)),
        ("shallow", (0, 1)),
        ("middle", (2, 3)),
        ("deep", (4, 5)),
        ((5, 0, 5), (0, 5)),
    ],
)
def test_layer_choices(layers, expected):
    assert MoresSettings(layers=layers).chosen(6) == expected


@pytest.mark.parametrize("layers", ["upper", (6,), (-1,), ()])
def test_unknown_layers_are_refused(layers):
    with pytest.raises(ValueError, match=r"layers"):
        MoresSettings(layers=layers).chosen(6)


@pytest.mark.parametrize(
    ("positions", "expected"),
    [
        (Positions(), "1111111111"),
        (Positions("first_last", first=2, last=1), "1100000001"),
        (Positions("fraction", fraction=0.3), "1100000001"),
        (Positions("fraction", fraction=0.01), "1000000000"),
        (Positions("fraction", fraction=0.5, placement="uniform"), "1010101010"),
    ],
)
def test_positions_of_a_picture(positions, expected):
    assert "".join(str(int(x)) for x in positions.of(10)) == expected


def test_random_positions_are_as_many_as_asked_and_the_same_each_time():
    positions = Positions("fraction", fraction=0.25, placement="random", seed=1)
    assert int(positions.of(64).sum()) == 16
    assert torch.equal(positions.of(64), positions.of(64))


def test_each_picture_of_a_row_has_its_own_ranks():
    _, mores = steered_llm(positions=Positions("first_last", first=1))
    mask = visual_mask("tvvtvvt", "vvtttvv")
    assert torch.equal(mores.positions(mask, 2), visual_mask("tvttvtt", "vttttvt"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "first_last"}, "steer no token"),
        ({"kind": "f4+l5"}, "unknown positions kind"),
        ({"kind": "fraction", "fraction": 0.0}, r"lies in \(0, 1\]"),
        ({"kind": "fraction", "placement": "middle"}, "unknown placement"),
    ],
)
def test_positions_that_make_no_sense_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Positions(**options)


def test_householder_trap_of_the_released_code_is_absent():
    """There, one step of weight decay turns integer signs to zero and R with them."""
    module = Steering(16, 2)
    with torch.no_grad():
        module.basis.mul_(0.99)
    assert orthonormality_error(module.rotation()) < 1e-6
    assert functional.cosine_similarity(module.basis[:, 0], module.rotation()[:, 0], dim=0) > 0.999


@pytest.mark.parametrize("options", [{"rank": 0}, {"rank": 9}])
def test_ranks_that_do_not_exist_are_refused(options):
    with pytest.raises(ValueError, match="in a space of width 8"):
        Steering(8, **options)


@pytest.mark.parametrize("options", [{"init": "zero"}, {"activation": "tanh"}])
def test_unknown_options_are_refused(options):
    with pytest.raises(ValueError, match="choose of"):
        Steering(8, 1, **options)
