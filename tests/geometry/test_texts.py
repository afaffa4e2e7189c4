import pytest

from revision.geometry.texts import letter_script, script_of, text_quality


def test_scripts_are_told_by_the_letters_of_a_text():
    assert script_of("Hello мир") == "Latin"
    assert script_of("привет, world!!") == "Cyrillic"
    assert script_of("日本語のテキスト") == "CJK"
    assert script_of("42 %") == "none"
    assert letter_script("ع") == "Arabic"


def test_a_mix_of_scripts_and_lengths_is_reported_in_shares():
    found = text_quality(["one two three"] * 6 + ["раз два"] * 3 + ["一二三"])
    assert found["scripts"] == {"Latin": 0.6, "Cyrillic": 0.3, "CJK": 0.1}
    assert found["words"]["1"] == 3
    assert found["words_mean"] == pytest.approx(2.5)
    assert found["repeated"] == pytest.approx(0.7)


def test_a_limit_on_words_or_on_characters_leaves_a_spike_at_the_longest():
    words = [" ".join(["w" * (i % 5 + 1)] * min(i, 12)) for i in range(1, 41)]
    assert text_quality(words)["at_limit"] == pytest.approx(29 / 40)
    cut = [("abc def gh" * 9)[i : i + 40] for i in range(20)]
    assert text_quality([*cut, "short"])["at_limit"] == pytest.approx(20 / 21)
    free = ["x " * i for i in range(1, 51)]
    assert text_quality(free)["at_limit"] == pytest.approx(1 / 50)


def test_a_set_without_texts_has_no_statistics():
    assert text_quality([None, ""]) is None
    assert text_quality([None, "a"])["num_empty"] == 1


def test_long_texts_are_counted_against_the_window():
    assert text_quality(["w " * 56, "w " * 55])["beyond_clip_window"] == 0.5
