"""What the text LLM of LLM2CLIP reads, token for token."""

import pytest
import torch

from revision.encoders.llm2clip_prompt import Prompt
from tests.tiny_encoders import tokenizer as framing_tokenizer
from tests.tiny_llm2clip import golden, llama3_tokenizer
from tests.tiny_models import bpe_tokenizer

HEADER = "<|start_header_id|>user<|end_header_id|>\n\n"


def prompt(template="llama3_user", max_length=512):
    return Prompt.make(llama3_tokenizer(), template=template, max_length=max_length)


def tokens(prompt, captions):
    return prompt.tokenize(captions).inputs


def trimmed(ids, mask, side):
    count = int(mask.sum())
    return (ids[-count:] if side == "left" else ids[:count]).tolist()


@pytest.mark.parametrize("template", ["llama3_user", "none"])
def test_ids_and_document_are_those_of_llm2vec(template):
    inputs, theirs = tokens(prompt(template), golden()["captions"]), golden()
    for i in range(len(golden()["captions"])):
        padding = inputs["attention_mask"][i], theirs[f"{template}/attention_mask"][i]
        for ours, key in (("input_ids", "input_ids"), ("document_mask", "embed_mask")):
            expected = trimmed(theirs[f"{template}/{key}"][i], padding[1], "left")
            assert trimmed(inputs[ours][i], padding[0], "right") == expected


@pytest.mark.parametrize("caption", ["a red cat", "  two", "x\n\ny", "Über <b>!@#$%^&*()</b>"])
def test_pieces_are_those_of_the_whole_text(caption):
    ids = tokens(prompt(), [caption])["input_ids"][0].tolist()
    assert ids == llama3_tokenizer()(f"{HEADER}{caption}<|eot_id|>")["input_ids"]


def test_marks_frame_the_caption_and_only_it_and_the_closing_token_are_pooled():
    inputs = tokens(prompt(), ["a cat  "])
    words = llama3_tokenizer().convert_ids_to_tokens(inputs["input_ids"][0])
    assert words[:2] == ["<|begin_of_text|>", "<|start_header_id|>"]
    kept = [t for t, m in zip(words, inputs["document_mask"][0], strict=True) if m]
    assert kept[-1] == "<|eot_id|>"
    assert llama3_tokenizer().convert_tokens_to_string(kept[:-1]) == "a cat"


def test_without_template_there_is_an_opening_token_and_the_caption_as_it_is():
    ids = tokens(prompt("none"), ["a cat  "])["input_ids"][0].tolist()
    assert llama3_tokenizer().decode(ids) == "<|begin_of_text|>a cat  "


def test_a_long_caption_loses_its_own_end_and_is_counted():
    inputs, num_truncated = prompt(max_length=12).tokenize(["x", "x" * 40, "yy"])
    assert inputs["input_ids"].shape == (3, 12)
    closing = llama3_tokenizer().convert_tokens_to_ids("<|eot_id|>")
    assert inputs["input_ids"][1, -1] == closing
    header = int((inputs["attention_mask"][0] - inputs["document_mask"][0]).sum())
    assert inputs["document_mask"].argmax(1).tolist() == [header] * 3
    assert num_truncated == 1


def test_a_caption_that_just_fits_is_not_cut():
    fits = prompt(max_length=12)
    room = 12 - len(fits.header) - 1
    assert fits.tokenize(["x" * room]).num_truncated == 0
    inputs, num_truncated = fits.tokenize(["x" * room, "x" * (room + 1), "x"])
    assert num_truncated == 1
    assert inputs["attention_mask"][:2].all()


def test_an_empty_caption_is_its_closing_token_or_nothing():
    assert tokens(prompt(), [""])["document_mask"].sum() == 1
    assert tokens(prompt("none"), ["", "a"])["document_mask"].sum(1).tolist() == [0, 1]


def test_padding_is_the_eos_token_and_masked():
    inputs = tokens(prompt(), ["a red cat", "x"])
    padding = inputs["input_ids"][inputs["attention_mask"] == 0]
    assert padding.unique().tolist() == [llama3_tokenizer().eos_token_id]
    assert not (inputs["document_mask"] > inputs["attention_mask"]).any()
    assert all(tensor.dtype == torch.int64 for tensor in inputs.values())


def test_a_tokenizer_without_llama_3s_marks_is_refused():
    with pytest.raises(ValueError, match=r"<\|start_header_id\|> as \d+ tokens.*template=none"):
        Prompt.make(bpe_tokenizer(), template="llama3_user", max_length=512)
    ids = tokens(Prompt.make(bpe_tokenizer(), template="none", max_length=512), ["a cat"])
    assert bpe_tokenizer().decode(ids["input_ids"][0]) == "a cat"


def test_a_tokenizer_that_closes_texts_itself_is_refused():
    with pytest.raises(ValueError, match="puts a token behind a text"):
        Prompt.make(framing_tokenizer(12), template="none", max_length=512)


def test_unknown_templates_and_no_room_are_refused():
    with pytest.raises(ValueError, match="template is one of llama3_user, none, got 'llama'"):
        prompt("llama")
    needed = len(prompt().header) + 1
    with pytest.raises(ValueError, match=f"max_length={needed} tokens leave no room.*{needed}"):
        prompt(max_length=needed)
    assert prompt(max_length=needed + 1).tokenize(["xyz"]).num_truncated == 1
