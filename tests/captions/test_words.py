"""Words: counted and cut, with and without white space between them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from revision.captions import count_words, cut_words


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("a red car", 3),
        ("  a  red\ncar ", 3),
        ("", 0),
        ("a well-kept café, l'été", 4),
        ("红色汽车，停着。", 6),
        ("赤い車がparked車庫に", 8),
        ("빨간 자동차", 2),
    ],
)
def test_words_are_counted(text: str, count: int) -> None:
    assert count_words(text) == count


def test_a_cut_ends_behind_a_word_and_keeps_what_stands_before_to_the_character() -> None:
    assert cut_words("one  two,\nthree four", 3) == "one  two,\nthree"
    assert cut_words("one two, three", 2) == "one two"
    assert cut_words("红色汽车，停着。", 4) == "红色汽车"


@given(st.text(st.sampled_from("ab ,.\n\t红い、。é"), max_size=40), st.integers(1, 8))
def test_a_cut_is_a_prefix_of_as_many_words_as_there_may_be(text: str, most: int) -> None:
    cut = cut_words(text, most)
    assert text.startswith(cut)
    if count_words(text) <= most:
        assert cut == text
    else:
        assert 0 < count_words(cut) <= most
        assert cut_words(cut, most) == cut


@given(st.text(st.characters(codec="utf-8"), max_size=30))
def test_ascii_or_not_the_same_rule_counts(text: str) -> None:
    """The fast way for ASCII agrees with the general one."""
    ascii_text = text.encode("ascii", "replace").decode()
    assert count_words(ascii_text) == count_words(ascii_text + "é") - (
        not ascii_text or ascii_text[-1].isspace()
    )
