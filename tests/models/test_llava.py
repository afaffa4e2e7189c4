"""The model: layouts agree, logits agree with Hugging Face, generation agrees with itself."""

import copy

import pytest
import torch
from transformers import (
    Gemma2Config,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
    Qwen3Config,
)

from revision.data.samples import IGNORE, Sample, collate, dummy_sample
from revision.models.llava import PACKED_MODEL_TYPES
from revision.records import Turn
from tests.tiny_encoders import tiny_composed
from tests.tiny_models import DIM, bpe_tokenizer, tiny_config, tiny_llava, tiny_llm

CONVERSATIONS = [
    [("<image>\nWhat is it?", "A red cat on a blue mat.")],
    [("Is it helpful?", "Yes, it is.")],
    [("<image> and <image>?", "Yes."), ("A cat?", "A cat in the image.")],
]


def samples_of(model, conversations=CONVERSATIONS):
    encode = model.turn_encoder()
    generator = torch.Generator().manual_seed(5)
    samples = []
    for index, rounds in enumerate(conversations):
        turns = [
            turn for q, a in rounds for turn in (Turn("user", q), Turn("assistant", a)) if turn.text
        ]
        marks = sum(turn.text.count("<image>") for turn in turns)
        visual = torch.randn(marks, 1, DIM, generator=generator) if marks else None
        samples.append(Sample(str(index), *encode(turns), visual=visual))
    return samples


def loss_and_gradients(model, batches):
    model.zero_grad()
    losses = [model(batch) for batch in batches]
    total = sum(loss.loss for loss in losses)
    total.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
    return total.detach(), sum(loss.num_targets for loss in losses), gradients


def assert_same(one, other, tolerance=1e-6):
    assert one[1] == other[1]
    assert abs(one[0] - other[0]) < tolerance * abs(one[0])
    for name, gradient in one[2].items():
        scale = gradient.abs().max().clamp(min=1)
        assert (gradient - other[2][name]).abs().max() < 3 * tolerance * scale, name


CONFIGS = {
    "llama": LlamaConfig,
    "qwen2": Qwen2Config,
    "qwen3": Qwen3Config,
    "mistral": MistralConfig,
}


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_packed_padded_and_separate_samples_agree(kind, attention, mode):
    config = tiny_config(CONFIGS[kind], head_dim=4) if kind == "qwen3" else None
    llm = tiny_llm(config or tiny_config(CONFIGS[kind]), attention)
    packed = tiny_llava(layout="packed", llm=llm, tokens="expand", num_tokens=2).double()
    padded = copy.deepcopy(packed)
    padded.layout = "padded"
    for model in (packed, padded):
        model.train(mode == "train")
    samples = samples_of(packed)
    together = loss_and_gradients(packed, [collate(samples)])
    assert_same(together, loss_and_gradients(padded, [collate(samples)]))
    assert_same(together, loss_and_gradients(packed, [collate([s]) for s in samples]))
    assert_same(together, loss_and_gradients(packed, [collate(samples[::-1])]))


def test_the_packed_list_is_what_was_tested():
    assert set(PACKED_MODEL_TYPES) == set(CONFIGS)


@pytest.mark.parametrize("kind", [Gemma2Config, GPT2Config])
def test_other_architectures_are_padded(kind):
    extra = {"head_dim": 4} if kind is Gemma2Config else {"n_embd": 16, "n_layer": 2, "n_head": 4}
    model = tiny_llava(llm=tiny_llm(tiny_config(kind, **extra), "eager")).double()
    assert model.layout == "padded"
    samples = samples_of(model)
    together = loss_and_gradients(model, [collate(samples)])
    assert_same(together, loss_and_gradients(model, [collate([s]) for s in samples]))
    with pytest.raises(ValueError, match="use layout='padded'"):
        tiny_llava(llm=model.language_model, layout="packed")


@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_loss_is_that_of_the_full_logits(layout):
    model = tiny_llava(layout=layout)
    for sample in samples_of(model):
        embeds, labels = reference_inputs(model, sample)
        loss = model.language_model(inputs_embeds=embeds, labels=labels).loss
        ours = model(collate([sample]))
        assert torch.allclose(ours.mean, loss, atol=1e-6)


def test_logits_are_computed_only_where_there_is_a_target():
    model = tiny_llava(layout="packed")
    shapes = []
    model.language_model.lm_head.register_forward_hook(
        lambda _, inputs, __: shapes.append(inputs[0].shape)
    )
    batch = collate(samples_of(model))
    loss = model(batch)
    assert shapes[0][:2] == (1, loss.num_targets)
    assert loss.num_targets == batch.num_targets < int(batch.lengths.sum())


def reference_inputs(model, sample):
    """Embeddings and labels of one sample, written out by hand."""
    embed, images = model.language_model.get_input_embeddings(), []
    if sample.visual is not None:
        images = list(model.projector(sample.visual))
    pieces, labels = [], []
    for token, label in zip(sample.input_ids, sample.labels, strict=True):
        piece = images.pop(0) if token < 0 else embed(token)[None]
        pieces.append(piece)
        labels += [label if token >= 0 else torch.tensor(IGNORE)] * len(piece)
    return torch.cat(pieces)[None], torch.stack(labels)[None]


def test_logits_equal_hugging_face_llava():
    """LlavaForConditionalGeneration with the same weights and the same projected rows."""
    from transformers import CLIPVisionConfig, LlavaConfig, LlavaForConditionalGeneration
    from transformers.modeling_outputs import BaseModelOutputWithPooling

    model = tiny_llava(layout="padded", tokens="expand", num_tokens=3)
    vision = CLIPVisionConfig(
        hidden_size=8, intermediate_size=8, num_hidden_layers=0, num_attention_heads=1,
        image_size=8, patch_size=4,
    )  # fmt: skip
    config = LlavaConfig(
        vision_config=vision, text_config=model.language_model.config, image_token_index=511
    )
    oracle = LlavaForConditionalGeneration(config).eval()
    oracle.model.language_model.load_state_dict(model.language_model.model.state_dict())
    oracle.lm_head.load_state_dict(model.language_model.lm_head.state_dict())

    sample = samples_of(model)[2]
    repeats = torch.where(sample.input_ids < 0, 3, 1)
    ids = sample.input_ids.masked_fill(sample.input_ids < 0, 511).repeat_interleave(repeats)
    rows = [model.projector(sample.visual)[i] for i in range(2)]
    outputs = {"image": BaseModelOutputWithPooling(pooler_output=rows)}
    labels = sample.labels.repeat_interleave(repeats)
    theirs = oracle(input_ids=ids[None], labels=labels[None], mm_encoder_outputs=outputs)
    ours = model(collate([sample]))
    assert torch.allclose(ours.mean, theirs.loss, atol=1e-6)


def prompts(model):
    return samples_of(
        model, [[("<image>\nWhat is it?", "")], [("Is it?", "")], [("<image> or <image>?", "")]]
    )


@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_batched_generation_equals_one_by_one_and_no_cache(layout):
    model = tiny_llava(layout=layout, tokens="expand", num_tokens=2)
    samples = prompts(model)
    together = model.generate(samples, max_new_tokens=12)
    assert together == [model.generate([sample], 12)[0] for sample in samples]
    assert together == [without_cache(model, sample, 12) for sample in samples]
    assert len(set(together)) == len(samples)
    assert all(together)


@torch.no_grad()
def without_cache(model, sample, count):
    """Greedy decoding that runs the whole sequence again for every token."""
    embeds, _ = reference_inputs(model, sample)
    new = []
    for _ in range(count):
        logits = model.language_model(inputs_embeds=embeds, use_cache=False).logits
        token = logits[0, -1].argmax()
        if token == model.tokenizer.eos_token_id:
            break
        new.append(int(token))
        embed = model.language_model.get_input_embeddings()(token)
        embeds = torch.cat([embeds, embed[None, None]], dim=1)
    return model.tokenizer.decode(new, skip_special_tokens=True).strip()


def test_generation_is_greedy_whatever_the_published_defaults_are():
    model = tiny_llava()
    expected = model.generate(prompts(model), 8)
    defaults = model.language_model.generation_config
    defaults.do_sample, defaults.temperature, defaults.repetition_penalty = True, 5.0, 9.0
    assert model.generate(prompts(model), 8) == expected


def forced(model, tokens):
    """Make the language model say `tokens`, then `A` for ever."""
    queue = list(tokens)

    def hook(_, __, output):
        token = queue.pop(0) if queue else model.tokenizer("A")["input_ids"][0]
        output.logits[:, -1] = torch.nn.functional.one_hot(torch.tensor(token), 512) * 99.0

    return model.language_model.register_forward_hook(hook)


@pytest.mark.parametrize(
    ("template", "spoken", "expected"),
    [
        ("plain", "A cat.\nAnd", "A cat."),
        ("vicuna_v1", "A cat.\nAnd</s>more", "A cat.\nAnd"),
        ("chat", "A cat.<|im_end|>more", "A cat."),
        ("llama", "A cat.<|end_of_text|>more", "A cat."),
    ],
)
def test_generation_stops_where_the_template_ends_an_answer(template, spoken, expected):
    model = tiny_llava(template=template)
    ids = model.tokenizer(spoken)["input_ids"]
    calls = []
    counter = model.language_model.register_forward_hook(lambda *_: calls.append(1))
    hook = forced(model, ids)
    assert model.generate(prompts(model)[:1], 40) == [expected]
    assert len(calls) < len(ids)
    counter.remove()
    hook.remove()


def test_generate_restores_the_mode_of_every_module():
    model = tiny_llava()
    model.train()
    model.language_model.eval()
    model.generate(prompts(model)[:1], 2)
    assert model.projector.training
    assert not model.language_model.training


@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_scores_are_the_losses_of_the_samples(layout):
    model = tiny_llava(layout=layout)
    samples = [*samples_of(model), dummy_sample(3)]
    sums, counts = model.score(collate(samples))
    for sample, total, count in zip(samples, sums, counts, strict=True):
        alone = model(collate([sample]))
        assert torch.allclose(total, alone.loss, atol=1e-5)
        assert count == alone.num_targets == sample.num_targets


def test_the_first_word_of_a_packed_sample_is_predicted_by_nobody():
    """Text alone, in a template without a front: its first token is a label of position 0."""
    model = tiny_llava(layout="packed", template="plain")
    texts = [[("Hello.", "A red cat.")], [("Hello.", "Yes, it is.")]]
    samples = samples_of(model, texts)
    assert all(sample.labels[0] != IGNORE for sample in samples)
    together = loss_and_gradients(model.double(), [collate(samples)])
    assert_same(together, loss_and_gradients(model, [collate([s]) for s in samples]))
    assert together[1] == sum(sample.num_targets for sample in samples)


def test_a_batch_without_targets_or_pictures_still_gives_every_gradient():
    model = tiny_llava()
    loss, count, gradients = loss_and_gradients(model, [collate([dummy_sample(3)])])
    assert loss == 0
    assert count == 0
    assert all(torch.count_nonzero(gradient) == 0 for gradient in gradients.values())


def test_pictures_and_their_features_give_the_same_answer():
    from PIL import Image

    torch.manual_seed(0)
    encoder = tiny_composed()
    model = tiny_llava(encoder=None)
    model.projector = type(model.projector)(encoder.dim, 16)
    picture = Image.new("RGB", (9, 5), "red")
    feature = encoder.encode_images(encoder.image_inputs(picture)[None])[0]
    with pytest.raises(ValueError, match="holds no image encoder"):
        model.answer([picture], "What is it?")
    model.encoder = encoder
    answer = model.answer([picture], "What is it?", max_new_tokens=8)
    assert answer == model.answer([feature], "<image>\nWhat is it?", max_new_tokens=8)
    sample = model.prompt([picture], "What is it?")
    pixels = encoder.image_inputs(picture)[None]
    on_the_fly = Sample("x", sample.input_ids, sample.labels, pixels=pixels)
    assert model.generate([on_the_fly], 8) == [answer]


def test_widths_that_do_not_fit_are_refused():
    model = tiny_llava()
    wide = Sample("a", *model.turn_encoder()(turns_with_image()), visual=torch.zeros(1, 1, 9))
    with pytest.raises(ValueError, match="features have width 9, the projector reads 6"):
        model(collate([wide]))
    with pytest.raises(ValueError, match="writes width 16, the language model reads 20"):
        tiny_llava(llm=wider_llm())


def turns_with_image():
    return [Turn("user", "<image>"), Turn("assistant", "A cat.")]


def wider_llm():
    config = tiny_config()
    config.hidden_size, config.num_attention_heads, config.num_key_value_heads = 20, 4, 4
    config.head_dim = 5
    return tiny_llm(config)


def test_the_tokenizer_in_use_is_shared_and_not_changed():
    assert tiny_llava().tokenizer is bpe_tokenizer()
