"""SigLIP 2 with Gemma's tokenizer, fixed sizes and NaFlex: what its texts saw in training."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModel, AutoProcessor, GemmaTokenizer, Siglip2Tokenizer

from revision.encoders.load import load_encoder
from tests.encoders.test_hf import pictures
from tests.tiny_encoders import save_siglip, save_siglip2

TEXTS = ["A Red Cat", "dog", "É b"]
MARKS = {"<pad>": 0, "<eos>": 1, "<bos>": 2, "<unk>": 3, "<mask>": 4}
LETTERS = "abcdegort▁éABCDERÉ"  # capitals too: lower case must not come from the vocabulary
VOCABULARY = MARKS | {letter: 5 + i for i, letter in enumerate(LETTERS)}
LENGTH = 10


@pytest.fixture(params=["fixed", "naflex"])
def directory(request, tmp_path) -> Path:
    """The files that lie on the hub: their tokenizer_config.json names Gemma's tokenizer."""
    (save_siglip if request.param == "fixed" else save_siglip2)(tmp_path)
    tokenizer = GemmaTokenizer(vocab=VOCABULARY, merges=[], model_max_length=10**30)
    tokenizer.save_pretrained(tmp_path)
    return tmp_path


def test_texts_are_lowered_and_padded_on_the_right_to_the_full_length(directory):
    encoder = load_encoder(directory)
    inputs = encoder.text_inputs(TEXTS)
    assert set(inputs) == {"input_ids"}
    expected = Siglip2Tokenizer(vocab=VOCABULARY, merges=[], padding_side="right")(
        TEXTS, padding="max_length", max_length=LENGTH, truncation=True, return_tensors="pt"
    )["input_ids"]
    assert expected[1].tolist() == [VOCABULARY[letter] for letter in "dog"] + [0] * 7
    assert torch.equal(inputs["input_ids"], expected)


def test_capitals_do_not_change_a_row(directory):
    encoder = load_encoder(directory)
    rows = [
        encoder.encode_texts(encoder.text_inputs([change(text) for text in TEXTS]))
        for change in (str.lower, str.upper)
    ]
    assert torch.equal(*rows)
    assert not torch.allclose(rows[0][0], rows[0][1], atol=1e-3)


def test_the_identity_says_who_lowers(directory):
    """Features made before are not taken for those of lowered texts."""
    encoder = load_encoder(directory)
    is_fixed = json.loads((directory / "config.json").read_text())["model_type"] == "siglip"
    assert encoder.identity().get("lowercase", False) == is_fixed
    encoder.save(directory / "copy")
    again = load_encoder(directory / "copy")
    assert again.identity() == encoder.identity()
    ids = [one.text_inputs(TEXTS)["input_ids"] for one in (encoder, again)]
    assert torch.equal(*ids)


@torch.no_grad()
def test_rows_are_those_of_the_models_own_processor(directory):
    encoder = load_encoder(directory)
    model = AutoModel.from_pretrained(directory).eval()
    texts = [text.lower() for text in TEXTS]
    tokenizer = encoder.tokenizer
    tokens = tokenizer(texts, padding="max_length", max_length=LENGTH, truncation=True)
    images = AutoProcessor.from_pretrained(directory, backend="pil").image_processor(
        images=pictures(), return_tensors="pt"
    )
    expected = {
        "image": model.get_image_features(**images).pooler_output,
        "text": model.get_text_features(torch.tensor(tokens["input_ids"])).pooler_output,
    }
    pixels = torch.stack([encoder.image_inputs(picture) for picture in pictures()])
    rows = {
        "image": encoder.encode_images(pixels),
        "text": encoder.encode_texts(encoder.text_inputs(TEXTS)),
    }
    for side, own in rows.items():
        theirs = expected[side] / expected[side].norm(dim=1, keepdim=True)
        torch.testing.assert_close(own, theirs, rtol=0, atol=1e-6)
