"""Captions: which records a run takes, and how much of each caption.

`Controls` are the options, `select` judges a stream of records by them and gives a `Selection`,
which says of every entry whether it is kept and writes down what was removed, and why.
"""

from revision.captions.controls import Controls
from revision.captions.selection import Selection, edited, select
from revision.captions.sentences import cut_caption
from revision.captions.words import count_words, cut_words

__all__ = ["Controls", "Selection", "count_words", "cut_caption", "cut_words", "edited", "select"]
