"""Chat templates of public models: what transformers renders and masks, and what is refused."""

import copy
import re
from functools import cache
from itertools import product
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from revision.data.samples import IGNORE, IMAGE_SLOT
from revision.data.turn_encoder import TurnEncoder
from revision.records import Turn
from tests.tiny_models import bpe_tokenizer, sentencepiece_tokenizer

HERE = Path(__file__).parent / "chat_templates"
SMOLLM2 = HERE.parents[2] / "assets" / "smollm2_135m_instruct" / "chat_template.jinja"
NAMES = sorted(path.stem for path in HERE.glob("*.jinja"))
WITHOUT_SYSTEM = ("gemma", "phi3_first")
END = {
    "gemma": "<end_of_turn>",
    "llama3": "<|eot_id|>",
    "mistral_v3": "</s>",
    "phi3": "<|end|>",
    "phi3_first": "<|end|>",
    "qwen2_5": "<|im_end|>",
    "vicuna": "</s>",
    "zephyr": "</s>",
}
MARKS = re.compile(r"\{%-? *(end)?generation *-?%\}")
TOKENS = (
    "<|begin_of_text|> <|start_header_id|> <|end_header_id|> <|eot_id|> <|end|> <|user|> "
    "<|assistant|> <|system|> <start_of_turn> <end_of_turn> [INST] [/INST]"
).split()


@cache
def tokenizer(name: str, marked: bool, kind: str = "bpe"):
    """One with the special tokens of all these models, but Zephyr's roles, which are text."""
    made = bpe_tokenizer(bos=True) if kind == "bpe" else sentencepiece_tokenizer(legacy=False)
    made = copy.deepcopy(made)
    special = [t for t in TOKENS if name != "zephyr" or t not in TOKENS[5:8]]
    made.add_special_tokens({"extra_special_tokens": special}, replace_extra_special_tokens=False)
    text = (HERE / f"{name}.jinja").read_text()
    made.chat_template = text if marked else MARKS.sub("", text)
    return made


def talk(*texts, system=None):
    roles = ("user", "assistant") * len(texts)
    turns = [Turn(role, text) for role, text in zip(roles, texts, strict=False)]
    return turns if system is None else [Turn("system", system), *turns]


TALKS = [
    talk("What is it?", "A cat."),
    talk("What is it?", "A red cat on a mat.", "Sure?", "Yes, it is.\n\nQuite.", "Why?", "猫 ☂"),
    talk("Is it?", "", "And now?", "Yes."),
    talk("What is it?"),
    talk("What is it?", "A cat.", "Sure?"),
]


def oracle(made, turns, marked):
    """Ids of transformers' own rendering, and its assistant mask where there are marks."""
    return made.apply_chat_template(
        [{"role": turn.role, "content": turn.text} for turn in turns],
        add_generation_prompt=turns[-1].role == "user",
        return_assistant_tokens_mask=marked,
        return_dict=True,
    )


@pytest.mark.parametrize(("name", "turns"), product(NAMES, TALKS))
@pytest.mark.parametrize("kind", ["bpe", "sentencepiece"])
@pytest.mark.parametrize("with_system", [False, True])
def test_ids_and_targets_are_those_of_transformers(name, turns, kind, with_system):
    if with_system and name in WITHOUT_SYSTEM:
        return
    turns = [Turn("system", "Be brief."), *turns] if with_system else turns
    marked = tokenizer(name, True, kind)
    encoded = TurnEncoder(marked, "chat")(turns)
    expected = oracle(marked, turns, True)
    assert encoded.input_ids.tolist() == expected["input_ids"]
    learnt = (encoded.labels != IGNORE).int().tolist()
    assert learnt == expected["assistant_masks"]
    by_end_marks = TurnEncoder(tokenizer(name, False, kind), "chat")(turns)
    assert by_end_marks.input_ids.tolist() == expected["input_ids"]
    assert by_end_marks.labels.tolist() == encoded.labels.tolist()


@pytest.mark.skipif(not SMOLLM2.exists(), reason="the real tokenizer has not been fetched")
@pytest.mark.parametrize("turns", TALKS)
def test_the_template_that_comes_with_a_real_tokenizer(turns):
    from transformers import AutoTokenizer

    real = AutoTokenizer.from_pretrained(SMOLLM2.parent)
    encoded = TurnEncoder(real, "chat")(turns)
    assert encoded.input_ids.tolist() == oracle(real, turns, False)["input_ids"]
    learnt = [i for i in encoded.labels.tolist() if i >= 0]
    answers = [turn.text for turn in turns if turn.role == "assistant"]
    assert real.decode(learnt) == "".join(f"{answer}<|im_end|>" for answer in answers)
    assert TurnEncoder(real, "chat").end_ids == [real.convert_tokens_to_ids("<|im_end|>")]


@pytest.mark.parametrize("name", NAMES)
def test_an_answer_ends_where_the_template_ends_it(name):
    for marked in (True, False):
        made = tokenizer(name, marked)
        assert made.convert_tokens_to_ids(END[name]) in TurnEncoder(made, "chat").end_ids


def test_a_generation_block_may_go_on_behind_its_end_mark():
    made = copy.deepcopy(tokenizer("qwen2_5", True))
    made.chat_template = made.chat_template.replace(
        "'<|im_end|>' -}}{%- endg", "'<|im_end|>\\n' -}}{%- endg"
    )
    turns = talk("What is it?", "A cat.")
    encoder = TurnEncoder(made, "chat")
    encoded = encoder(turns)
    assert (encoded.labels != IGNORE).int().tolist() == oracle(made, turns, True)["assistant_masks"]
    learnt = [i for i in encoded.labels.tolist() if i >= 0]
    assert made.decode(learnt) == "A cat.<|im_end|>\n"
    assert encoder.end_ids == sorted(made.convert_tokens_to_ids(["</s>", "<|im_end|>"]))


def test_what_a_template_does_to_turns_is_refused_by_name():
    system = talk("What is it?", "A cat.", system="Be brief.")
    with pytest.raises(ValueError, match=r"drops the text of system turns of .*'vicuna_v1'"):
        TurnEncoder(tokenizer("phi3_first", False), "chat")(system)
    with pytest.raises(ValueError, match=r"refuses the roles \['system'.*System role not supp"):
        TurnEncoder(tokenizer("gemma", True), "chat")(system)
    others = {
        "repeats turns": "{% for m in messages %}{{ m.content }}{{ m.content }}{% endfor %}",
        "changes the order": "{% for m in messages | reverse %}{{ m.content }}{% endfor %}",
        "drops the text of assistant": "{{ messages[0].content }}",
    }
    for complaint, template in others.items():
        made = copy.deepcopy(tokenizer("phi3", False))
        made.chat_template = template
        with pytest.raises(ValueError, match=complaint):
            TurnEncoder(made, "chat")


def test_a_moved_system_turn_is_found_where_it_went():
    made = tokenizer("mistral_v3", False)
    turns = talk("One?", "Yes.", "Two?", "No.", system="Be brief.")
    ids = TurnEncoder(made, "chat")(turns).input_ids.tolist()
    assert made.decode(ids) == (
        "<s>[INST] One?[/INST] Yes.</s>[INST] Be brief.\n\nTwo?[/INST] No.</s>"
    )


def test_a_date_that_the_template_asks_the_clock_for_is_fixed():
    made = copy.deepcopy(tokenizer("llama3", False))
    clock = "{% set day = date_string if date_string is defined else strftime_now('%d %b %Y') %}"
    made.chat_template = clock + "{{ day }}" + made.chat_template
    ids = TurnEncoder(made, "chat")(talk("What is it?", "A cat.")).input_ids.tolist()
    assert made.decode(ids).startswith("26 Jul 2024")


WORDS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="▁"), max_size=12)
SAID = st.lists(
    WORDS | st.sampled_from([*TOKENS, "</s>", "<|im_end|>\n", "USER: ", " ", "\ue0000\ue001"]),
    max_size=3,
).map("".join)


@settings(max_examples=150, deadline=None, derandomize=True, database=None)
@given(
    questions=st.lists(SAID, min_size=1, max_size=3),
    answers=st.lists(SAID, min_size=3, max_size=3),
    system=st.none() | SAID,
    name=st.sampled_from(NAMES),
    marked=st.booleans(),
)
def test_only_answers_and_end_marks_are_learnt_whatever_is_said(
    questions, answers, system, name, marked
):
    made = tokenizer(name, marked)
    texts = [text for pair in zip(questions, answers, strict=False) for text in pair]
    turns = talk(*texts, system=None if name in WITHOUT_SYSTEM else system)
    turns[-2] = Turn("user", f"<image>{turns[-2].text}")
    encoded = TurnEncoder(made, "chat")(turns)
    learnt = made.decode(
        [i for i in encoded.labels.tolist() if i >= 0], clean_up_tokenization_spaces=False
    )
    expected = [re.escape(f"{a.strip()}{END[name]}") for a in answers[: len(questions)]]
    space = " ?" if name in ("mistral_v3", "vicuna") else ""  # may be one token with the answer
    assert re.fullmatch("".join(space + part for part in expected), learnt)
    assert encoded.input_ids.tolist().count(IMAGE_SLOT) == 1
