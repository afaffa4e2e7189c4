"""The controls that judge a record by its own caption, or by those that came before it."""

from dataclasses import dataclass
from importlib.metadata import version

from revision.captions.controls import Controls, within
from revision.captions.duplicates import ExactDuplicates, NearDuplicates
from revision.captions.language import LanguageFilter
from revision.captions.words import count_words
from revision.records import Record


@dataclass(frozen=True)
class Verdict:
    """The words of a caption; the control that removes it and why, or nothing."""

    words: int = 0
    control: str = ""
    reason: str = ""


class Judge:
    """Call it with the records in their order."""

    def __init__(self, controls: Controls) -> None:
        self.controls = controls
        self._language = self._exact = self._near = None
        if controls.languages is not None:
            self._language = LanguageFilter(controls.languages, controls.language_confidence)
        if controls.dedup == "exact":
            self._exact = ExactDuplicates()
        elif controls.dedup == "near":
            self._near = NearDuplicates(controls.dedup_threshold, controls.dedup_shingle)

    def __call__(self, record: Record) -> Verdict:
        if not has_caption(record):
            return Verdict()
        text = record.text or ""
        words = count_words(text)
        return Verdict(words, *self._removed(record.id, text, words))

    def _removed(self, id: str, text: str, words: int) -> tuple[str, str]:
        least, characters = self.controls.min_caption_words, self.controls.caption_characters
        if least is not None and words < least:
            return "min_caption_words", f"{words} words"
        if characters is not None and not within(len(text), characters):
            return "caption_characters", f"{len(text)} characters"
        if self._language is not None and (reason := self._language.reason(text)):
            return "languages", reason
        if self._exact is not None and self._exact.is_duplicate(text):
            return "dedup", "the same as an earlier caption"
        if self._near is not None and (reason := self._near.reason(id, text)):
            return "dedup", reason
        return "", ""

    @property
    def packages(self) -> dict[str, str]:
        """The versions of the packages that judge."""
        names = {"py3langid": self._language, "datasketch": self._near}
        return {name: version(name) for name, used in names.items() if used is not None}


def has_caption(record: Record) -> bool:
    """Whether there is a character in its text."""
    return bool(record.text and record.text.strip())
