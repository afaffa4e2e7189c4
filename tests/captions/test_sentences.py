"""Sentences: where they end, and captions cut to whole ones."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from revision.captions import count_words, cut_caption
from revision.captions.sentences import sentence_ends


def sentences(text: str) -> list[str]:
    found, start = [], 0
    for end in sentence_ends(text):
        found.append(text[start:end].strip())
        start = end
    return found


@pytest.mark.parametrize(
    "expected",
    [
        ["A man.", "He rides."],
        ["Dr. Smith is at St. Mary's.", "He smiles."],
        ["It costs 3.5 dollars.", "Nice."],
        ["U.S. troops march.", "They sing."],
        ["Soldiers of the U.S. Army march.", "They sing."],
        ["She came to the U.S.", "She sings."],
        ['A sign says "Stop!" on the road.', "It is red."],
        ["Wow!", "Really?", "Yes..."],
        ["e.g. a cat, i.e. a pet.", "Sleeping."],
        ["Fig. 3 shows a cell.", "It is round."],
        ["Is there a cat?", "No.", "There is none."],
        ["She left at 5 p.m.", "It rained."],
        ["He works for Acme Inc. in Boston."],
        ["Wait... what?", "No."],
        ["The bus No. 7 stops.", "People wait."],
        ['He said "Go."', "Then left."],
        ["(A note.)", "Another."],
        ["Built c. 1890.", "Still used."],
        ["J. R. R. Tolkien wrote it.", "Great."],
        ["see www.example.com.", "it works."],
        ["a dog.", "a cat.", "a bird"],
        ["1. A dog.", "2. A cat."],
        ["The year was 1890.", "Still used."],
        ["Vol. 2, pp. 3-4.", "End"],
        ["So do I.", "Good."],
        ["**A red car.**", "It is *parked.*", "End."],
    ],
    ids=lambda sentences: " ".join(sentences)[:30],
)
def test_english(expected: list[str]) -> None:
    assert sentences(" ".join(expected)) == expected


def test_chinese_and_japanese_need_no_space() -> None:
    assert sentences("一只狗在跑。天空很蓝！是吗？") == ["一只狗在跑。", "天空很蓝！", "是吗？"]
    assert sentences("彼は「行け。」と言った。空は青い。")[-1] == "空は青い。"


def test_an_empty_line_ends_a_sentence_and_a_line_does_not() -> None:
    assert sentences("A title\n\nA dog\nruns.") == ["A title", "A dog\nruns."]


def test_a_caption_is_cut_to_whole_sentences() -> None:
    text = "A dog runs. It is brown. It barks."
    assert cut_caption(text, max_sentences=1) == "A dog runs."
    assert cut_caption(text, max_sentences=3) == text
    assert cut_caption(text, max_sentences=9, max_words=7) == "A dog runs. It is brown."
    assert cut_caption(text, max_sentences=1, max_words=7) == "A dog runs."
    assert cut_caption(text, max_sentences=9, max_words=2) == "A dog"
    assert cut_caption(text, max_words=5) == "A dog runs. It is"
    assert cut_caption(text) == text


TEXTS = st.lists(st.sampled_from(["A", "dog.", "3.5", "Dr.", "runs!", "红。", "\n\n", '"'])).map(
    " ".join
)


@given(TEXTS)
def test_the_sentences_together_are_the_text(text: str) -> None:
    ends = list(sentence_ends(text))
    assert ends == sorted(set(ends))
    assert not ends or ends[-1] == len(text.rstrip())
    assert all(sentences(text))


@given(TEXTS, st.integers(1, 5), st.integers(1, 4))
def test_bounds_hold_and_cutting_again_changes_nothing(text: str, words: int, most: int) -> None:
    cut = cut_caption(text, max_words=words, max_sentences=most)
    assert count_words(cut) <= words
    assert text.startswith(cut)
    assert bool(cut.strip()) == bool(count_words(text)) or not text.strip()
    assert cut_caption(cut, max_words=words, max_sentences=most) == cut


def test_a_caption_of_megabytes_takes_linear_time() -> None:
    start = time.process_time()
    assert cut_caption("ab. " * 500_000, max_sentences=2) == "ab. ab."
    for endless in ("Dr. " * 200_000, "!" * 800_000 + "x", "A." + " " * 800_000 + "B"):
        assert cut_caption(endless, max_sentences=2) == endless
    long = "A dog. " * 100_000
    assert len(cut_caption(long, max_sentences=10**6, max_words=150_000)) == 7 * 75_000 - 1
    assert time.process_time() - start < 5
