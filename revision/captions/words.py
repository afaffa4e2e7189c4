"""Words of a caption: counted and cut.

A word is a run of characters without white space. Chinese and Japanese are written without it, so
there every Han or Kana character is a word and their punctuation is none: a photograph's caption
of ten words in English has about fifteen such characters in Chinese. Scripts that use no spaces
either (Thai, Lao, Khmer) count one word per run; bound their captions by characters.
"""

import re

_HAN_AND_KANA = (
    "\u3041-\u30fa\u30fc-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
)
_THEIR_MARKS = (
    "\u3000-\u3004\u3008-\u3020\u30fb\uff01-\uff0f\uff1a-\uff20\uff3b-\uff40\uff5b-\uff65"
)
_WORD = re.compile(rf"[{_HAN_AND_KANA}]|[^\s{_HAN_AND_KANA}{_THEIR_MARKS}]+")
_JOINING = " \t\n,;:\u3001\uff0c\uff1b\uff1a"


def count_words(text: str) -> int:
    """The number of words.

    Example:
        >>> count_words("a red car, parked"), count_words("红色汽车，停着。")
        (4, 6)
    """
    if text.isascii():
        return len(text.split())
    return sum(1 for _ in _WORD.finditer(text))


def cut_words(text: str, max_words: int) -> str:
    """The first `max_words` words, without a comma left at the end; a shorter text unchanged.

    Example:
        >>> cut_words("seagull, a bird, an animal", 3)
        'seagull, a bird'
    """
    end = 0
    for number, word in enumerate(_WORD.finditer(text)):
        if number == max_words:
            cut = text[:end]
            return cut.rstrip(_JOINING) or cut  # a comma alone is a word, and better than nothing
        end = word.end()
    return text
