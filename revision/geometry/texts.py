"""What the texts behind an embedding set are like: length, script, repetition, truncation.

Length counts words (runs of non-space characters). The script of a letter is the first word of its
Unicode name (LATIN, CYRILLIC, CJK, ARABIC, ...), that of a text the script of most of its letters.
No language model is involved: languages that share a script are not told apart.

A limit on length leaves a spike at the longest texts; `at_limit` is the share of texts that are as
long as the longest, in words or in characters, whichever is more.
"""

import unicodedata
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np

QUANTILES = (0.0, 0.05, 0.5, 0.95, 1.0)
CJK = ("CJK", "HIRAGANA", "KATAKANA", "IDEOGRAPHIC", "BOPOMOFO")
CLIP_WINDOW_WORDS = 55  # 77 tokens less the two at the ends, at about 1.35 tokens a word


def text_quality(texts: Sequence[str | None]) -> dict[str, Any] | None:
    """Statistics of the texts of a sample as a JSON object; None where no record has a text."""
    given = [text for text in texts if text]
    if not given:
        return None
    words = np.array([len(text.split()) for text in given])
    scripts = Counter(script_of(text) for text in given)
    return {
        "num_texts": len(given),
        "num_empty": len(texts) - len(given),
        "words": {f"{q:g}": float(np.quantile(words, q)) for q in QUANTILES},
        "words_mean": float(words.mean()),
        "words_std": float(words.std()),
        "beyond_clip_window": float((words > CLIP_WINDOW_WORDS).mean()),
        "at_limit": max(_at_longest(words), _at_longest(np.array([len(t) for t in given]))),
        "repeated": 1 - len(set(given)) / len(given),
        "scripts": {name: count / len(given) for name, count in scripts.most_common()},
    }


def script_of(text: str) -> str:
    """The script of most letters, "none" for a text without letters; ties by order."""
    found = Counter(letter_script(character) for character in text if character.isalpha())
    return found.most_common(1)[0][0] if found else "none"


@lru_cache(maxsize=1 << 16)
def letter_script(letter: str) -> str:
    """The first word of the letter's Unicode name, with Chinese and Japanese forms under CJK."""
    name = unicodedata.name(letter, "UNKNOWN").split("-")[0].split()[0]
    return "CJK" if name in CJK else name.capitalize()


def _at_longest(lengths: np.ndarray) -> float:
    return float((lengths == lengths.max()).mean())
