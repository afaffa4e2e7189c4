"""The language of captions; needs the extra `captions`."""

import pytest

pytest.importorskip("py3langid")

from revision.captions.language import LanguageFilter

ENGLISH = ["a dog runs on the beach", "two people riding bikes down a street", "red car"]
OTHERS = ["ein Hund läuft am Strand", "un chien court sur la plage", "一只狗在海滩上奔跑"]


def test_captions_of_other_languages_go_and_theirs_is_named() -> None:
    english = LanguageFilter(["en"], 0.1)
    assert [english.reason(text) for text in ENGLISH] == ["", "", ""]
    reasons = [english.reason(text) for text in OTHERS]
    assert [reason[:2] for reason in reasons] == ["de", "fr", "zh"]
    assert reasons[0].endswith("for en")


def test_several_languages_are_taken_together() -> None:
    several = LanguageFilter(["en", "de", "zh"], 0.5)
    assert [bool(several.reason(text)) for text in OTHERS] == [False, True, False]


def test_an_unknown_code_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\['english'\] are unknown"):
        LanguageFilter(["english"], 0.1)
