"""The caption controls: what a user may ask of the captions of an input.

They apply in this order, which is fixed:

    1. min_caption_words, caption_characters   captions that are too short or too long go
    2. languages                               captions in another language go
    3. dedup                                   of equal or similar captions the first stays
    4. caption_length                          one class of lengths stays
    5. num_samples                             a nested subset of what is left stays
    6. max_caption_sentences, max_caption_words   what is left is cut

Filters come before the duplicates, so that a caption which goes does not take its kept twin along;
the terciles of 4 are those of distinct captions; and 5 gives the number that was asked for. The cut
is last and no filter sees it: a sweep over `max_caption_words` compares the same records.

Subsets go by the hash of a record's id, so they do not depend on the order or the number of files,
and the same ids fall alike in an input's pictures and texts. Departs from `revision.data.plan`,
where the subset of a training run goes by the hash of a record's position: to know the ids it would
have to read every record before the first step.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

LengthClass = Literal["short", "medium", "long"]
Dedup = Literal["exact", "near"]
_COUNTS = ("num_samples", "min_caption_words", "max_caption_words", "max_caption_sentences")


@dataclass(frozen=True, kw_only=True)
class Controls:
    """Options of a selection; None leaves out the step.

    `num_samples`            so many records: those whose ids have the smallest hashes
    `min_caption_words`      captions with fewer words go
    `caption_characters`     (low, high), inclusive; None is no bound
    `languages`              codes of ISO 639-1; captions go that are in none of them with
                             probability `language_confidence` at least, taken together
    `dedup`                  "exact": the same after NFKC, case folding and white space as one
                             blank; "near": Jaccard similarity of runs of `dedup_shingle`
                             characters of those texts of `dedup_threshold` at least
    `caption_length`         "short", "medium", "long": a third of the captions by their words; or
                             (low, high) words, inclusive
    `max_caption_sentences`, `max_caption_words`   see `revision.captions.sentences.cut_caption`

    Raises ValueError for a value that cannot be meant.
    """

    num_samples: int | None = None
    min_caption_words: int | None = None
    caption_characters: Sequence[int | None] | None = None
    languages: Sequence[str] | None = None
    language_confidence: float = 0.1
    dedup: str | None = None
    dedup_threshold: float = 0.8
    dedup_shingle: int = 5
    caption_length: str | Sequence[int | None] | None = None
    max_caption_sentences: int | None = None
    max_caption_words: int | None = None

    def __post_init__(self) -> None:
        for name in _COUNTS:
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1 or null, got {value}")
        self._check_lengths()
        self._check_duplicates()
        if isinstance(self.languages, str) or (self.languages is not None and not self.languages):
            raise ValueError(
                f"languages is a list of codes such as [en, de], got {self.languages!r}"
            )
        if not 0 < self.language_confidence <= 1:
            raise ValueError(
                f"language_confidence is a probability above 0, got {self.language_confidence}"
            )
        for name in ("caption_characters", "languages", "caption_length"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, str):
                object.__setattr__(self, name, tuple(value))  # equal whatever list a config gives

    def _check_lengths(self) -> None:
        length = self.caption_length
        if isinstance(length, str) and length not in get_args(LengthClass):
            raise ValueError(
                f"caption_length is short, medium, long or [low, high] words, got {length!r}"
            )
        if length is not None and not isinstance(length, str):
            _check_bounds("caption_length", length)
        if self.caption_characters is not None:
            _check_bounds("caption_characters", self.caption_characters)

    def _check_duplicates(self) -> None:
        if self.dedup is not None and self.dedup not in get_args(Dedup):
            raise ValueError(f"dedup is exact, near or null, got {self.dedup!r}")
        if not 0 < self.dedup_threshold <= 1:
            raise ValueError(
                f"dedup_threshold is above 0 and at most 1, got {self.dedup_threshold}"
            )
        if self.dedup_shingle < 1:
            raise ValueError(f"dedup_shingle must be at least 1, got {self.dedup_shingle}")

    def active(self) -> dict[str, Any]:
        """The options that change something, as JSON stores them; nothing where none does."""
        unused = set()
        if self.languages is None:
            unused.add("language_confidence")
        if self.dedup != "near":
            unused |= {"dedup_threshold", "dedup_shingle"}
        return {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in asdict(self).items()
            if value is not None and key not in unused
        }


def within(count: int, bounds: Sequence[int | None]) -> bool:
    """Whether low <= count <= high; None is no bound."""
    low, high = bounds
    return (low is None or count >= low) and (high is None or count <= high)


def _check_bounds(name: str, bounds: Sequence[int | None]) -> None:
    low, high = bounds if len(bounds) == 2 else (None, None)
    if low is None and high is None:
        raise ValueError(f"{name} is [low, high], one of them may be null, got {list(bounds)}")
    if (low is not None and low < 0) or (high is not None and high < (low or 0)):
        raise ValueError(f"{name}={list(bounds)} holds nothing: low is at most high")
