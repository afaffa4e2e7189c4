"""Sentences of a caption: where they end, and a caption cut to whole ones.

A sentence ends behind a run of . ! ? … (closing quotes, brackets and * _ included) that white space
or the end follows, behind 。！？ without any space, and at an empty line. It does not end

    inside a number, an address or a name:      3.5 m, www.example.org
    behind a title or an initial:               Dr. Smith, J. R. R. Tolkien
    behind an abbreviation before a number:     No. 7, Fig. 3, c. 1890
    behind letters with dots, or Inc., etc.:    U.S. Army; but before The, He, It, ... it does
    behind the number of a list:                1. A dog. 2. A cat.
    before a small letter, when a quotation or an ellipsis stands there:  "Stop!" on a sign

Small letters begin sentences otherwise, because many captions are written in small letters. A rule
errs in both directions: tests/captions/test_sentences.py lists what it knows. The lists are
English; in other languages an abbreviation ends the sentence early.
"""

import re
from collections.abc import Iterator

from revision.captions.words import count_words, cut_words

_END = re.compile(
    r"(?<![.!?\u2026])(?P<mark>[.!?\u2026]+)(?P<close>[\"'\u201d\u2019\u00bb)\]*_]*)(?=\s|$)"
    r"|(?P<wide>[\u3002\uff01\uff1f\uff61]+[\u201d\u2019\u300d\u300f\uff09]*)"
    r"|(?P<paragraph>\n[ \t\r]*(?=\n))"
)
_VISIBLE = re.compile(r"\S")
_NEAR = 40  # characters: slices of a caption of megabytes at every dot would be quadratic
_LAST_WORD = re.compile(r"[^\s(\[\"'\u201c\u2018]*$")
_TITLES = frozenset("mr mrs ms dr prof st mt gen capt col sgt lt rev hon sen gov vs".split())
_BEFORE_NUMBERS = frozenset("no nos nr fig figs vol p pp ch sec art c ca approx ed".split())
_WITHIN = frozenset("inc ltd co corp jr sr etc al dept est ave blvd rd".split())
_STARTERS = frozenset(
    "A An The This That These Those It Its He She They We You I His Her Their There Here In On At "
    "Behind Above Below Next Another Some Two Three Several Both One".split()
)


def sentence_ends(text: str) -> Iterator[int]:
    """The offset behind each sentence; the last one is the end of the text that is not blank."""
    last, full = 0, len(text.rstrip())
    for match in _END.finditer(text, 0, full):
        end = match.end()
        if end < full and _VISIBLE.search(text, last, end) and _ends(text, last, match):
            yield end
            last = end
    if full > last:
        yield full


def _ends(text: str, start: int, match: re.Match[str]) -> bool:
    if match["wide"] or match["paragraph"]:
        return True
    visible = _VISIBLE.search(text, match.end())
    assert visible is not None  # the last end is not asked about
    following = text[visible.start() : visible.start() + _NEAR].split(None, 1)[0]
    mark = match["mark"]
    if (match["close"] or mark in ("...", "\u2026")) and following[:1].islower():
        return False
    before = text[max(start, match.start() - _NEAR) : match.start()]
    return mark != "." or _dot_ends(before, following)


def _dot_ends(before: str, following: str) -> bool:
    """Whether a sentence that ends in `before` is over at a single dot."""
    found = _LAST_WORD.search(before)
    word = found.group() if found else ""
    if word.lower() in _TITLES or (len(word) == 1 and word.isupper() and word != "I"):
        return False
    if word.lower() in _BEFORE_NUMBERS and following[:1].isdigit():
        return False
    if word.isdigit() and before.strip() == word:
        return False
    if ("." in word.strip(".") and max(map(len, word.split("."))) == 1) or word.lower() in _WITHIN:
        return following.strip("\"'\u201c\u2018(") in _STARTERS
    return True


def cut_caption(
    text: str, *, max_words: int | None = None, max_sentences: int | None = None
) -> str:
    """The first sentences of a caption, or its first words.

    With `max_words` alone the first words, wherever they end. With `max_sentences` the first
    sentences, whole. With both, as many whole sentences, at most `max_sentences`, as fit into
    `max_words`; only a first sentence that is longer by itself is cut inside. A caption within the
    bounds stays as it is, to the character.

    Example:
        >>> cut_caption("Dr. Hu sits. She reads a book.", max_sentences=1)
        'Dr. Hu sits.'
        >>> cut_caption("A dog runs. It is brown. It barks.", max_words=7, max_sentences=9)
        'A dog runs. It is brown.'
    """
    if max_sentences is None:
        return text if max_words is None else cut_words(text, max_words)
    end = num_words = 0
    for number, candidate in enumerate(sentence_ends(text)):
        num_words += count_words(text[end:candidate])
        if number == max_sentences or (max_words is not None and num_words > max_words):
            break
        end = candidate
    else:
        return text
    if end == 0:  # the first sentence alone does not fit
        assert max_words is not None
        return cut_words(text, max_words)
    return text[:end].rstrip()
