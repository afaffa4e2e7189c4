"""Batches of texts: every text once, within the budget, with the tensors of a batch of its own."""

import pytest
import torch

from revision.encoders.load import load_encoder
from revision.encoders.text_batches import padding_share, token_batches, token_lengths
from tests.tiny_encoders import SAVED, WORDS, tiny_composed, tokenizer


def texts(count: int = 40) -> list[str]:
    random = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, 9, (count,), generator=random).tolist()
    return [" ".join(WORDS[(i + j) % len(WORDS)] for j in range(n)) for i, n in enumerate(lengths)]


def tokens(padding_side: str = "right"):
    words = tokenizer(12)
    return dict(words(texts(), padding=True, return_tensors="pt", padding_side=padding_side))


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("budget", [1, 10, 37, 10_000])
def test_every_text_once_and_within_the_budget(side, budget):
    batches = list(token_batches(tokens(side), budget))
    assert sorted(torch.cat([chosen for chosen, _ in batches]).tolist()) == list(range(40))
    for chosen, inputs in batches:
        rows, width = inputs["input_ids"].shape
        assert len(chosen) == rows
        assert rows * width <= budget or rows == 1


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_batch_has_the_tensors_of_its_texts_alone(side):
    written = texts()
    for chosen, inputs in token_batches(tokens(side), 37):
        alone = tokenizer(12)(
            [written[i] for i in chosen], padding=True, return_tensors="pt", padding_side=side
        )
        assert inputs.keys() == alone.keys()
        assert all(torch.equal(inputs[name], alone[name]) for name in inputs)


def test_sorted_texts_need_hardly_any_padding():
    sorted_batches = [inputs for _, inputs in token_batches(tokens(), 40)]
    in_order = [{k: v[i : i + 4] for k, v in tokens().items()} for i in range(0, 40, 4)]
    assert padding_share(sorted_batches) < 0.06 < 0.3 < padding_share(in_order)


def test_without_a_mask_every_text_has_the_full_length():
    inputs = {"input_ids": torch.arange(24).view(6, 4)}
    assert token_lengths(inputs).tolist() == [4] * 6
    batches = list(token_batches(inputs, 8))
    assert [chosen.tolist() for chosen, _ in batches] == [[0, 1], [2, 3], [4, 5]]
    assert torch.equal(batches[1][1]["input_ids"], inputs["input_ids"][2:4])


@pytest.mark.parametrize("name", [*SAVED, "composed"])
def test_rows_are_those_of_the_texts_one_by_one(name, tmp_path):
    encoder = tiny_composed() if name == "composed" else load_encoder(SAVED[name](tmp_path))
    group = encoder.tokenize(texts())
    rows = torch.empty(40, encoder.dim)
    for chosen, inputs in token_batches(group.inputs, 50):
        rows[chosen] = encoder.encode_texts(inputs)
    alone = torch.cat([encoder.encode_texts(encoder.text_inputs([text])) for text in texts()])
    torch.testing.assert_close(rows, alone, rtol=0, atol=3e-6)


@pytest.mark.parametrize("name", [*SAVED, "composed"])
def test_texts_that_are_cut_are_counted(name, tmp_path):
    encoder = tiny_composed() if name == "composed" else load_encoder(SAVED[name](tmp_path))
    long = "red " * 30
    assert encoder.tokenize(["a cat", long, "a dog", long]).num_truncated == 2
    assert encoder.tokenize(["cat", "a dog"]).num_truncated == 0
