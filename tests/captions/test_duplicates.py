"""Duplicates: what counts as the same, the first stays, near ones by their exact similarity."""

import random

import pytest

from revision.captions.duplicates import ExactDuplicates, NearDuplicates, jaccard, normalized
from tests.tiny_encoders import WORDS


def test_what_is_the_same() -> None:
    same = ("A fine STRASSE", "a  ﬁne\n straße ", "ａ fine strasse")
    assert {normalized(text) for text in same} == {"a fine strasse"}
    assert normalized("a cat, a dog") != normalized("a cat a dog")
    assert normalized("\u212b") == normalized("a\u030a")  # composed after folding


def test_the_first_of_equal_captions_stays() -> None:
    exact = ExactDuplicates()
    found = [exact.is_duplicate(text) for text in ("a cat", "a dog", "A  CAT", "a dog", "a")]
    assert found == [False, False, True, True, False]


def near(texts: list[str], threshold: float = 0.8, shingle: int = 5) -> list[str]:
    pytest.importorskip("datasketch")
    duplicates = NearDuplicates(threshold, shingle)
    return [duplicates.reason(str(i), text) for i, text in enumerate(texts)]


def test_a_near_duplicate_goes_and_its_twin_is_named() -> None:
    text = "a brown dog runs along the beach beside the waves of the sea"
    reasons = near([text, text + "!", "a cat sleeps", text.upper(), "a catfish sleeps"])
    assert [bool(reason) for reason in reasons] == [False, True, False, True, False]
    assert reasons[3] == "1.000 similar to the caption of '0'"


def test_short_captions_are_compared_whole() -> None:
    assert [bool(reason) for reason in near(["cat", "car", "cat"])] == [False, False, True]


def test_nothing_goes_that_is_less_similar_than_the_threshold() -> None:
    """Against all pairs compared: no false removal, and few misses at the threshold."""
    draw = random.Random(0)
    texts = []
    for _ in range(150):
        words = [draw.choice(WORDS) for _ in range(12)]
        texts += [" ".join(words), " ".join([*words[:11], draw.choice(WORDS)])]
    reasons = near(texts, 0.7, 3)

    def shingles(text: str) -> set[str]:
        return {text[i : i + 3] for i in range(max(1, len(text) - 2))}

    kept: list[set[str]] = []
    missed = removed = 0
    for text, reason in zip(texts, reasons, strict=True):
        closest = max((jaccard(shingles(text), other) for other in kept), default=0.0)
        assert not reason or closest >= 0.7
        removed += bool(reason)
        missed += closest >= 0.7 and not reason
        if not reason:
            kept.append(shingles(text))
    assert removed > 100
    assert missed <= removed * 0.05


def test_a_missing_package_is_named_with_the_command_that_installs_it(monkeypatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "datasketch", None)
    with pytest.raises(ValueError, match=r"dedup=near needs .* pip install -e \"\.\[captions\]\""):
        NearDuplicates(0.8, 5)
