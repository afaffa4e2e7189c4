"""The language of a caption, by `py3langid` (naive Bayes over byte n-grams, 140 languages).

The probability of the wanted languages, taken together, must reach a confidence. Short captions
spread it over many languages ("eye, face, a body part" is English with 0.1), so the default is
low: 0.1 keeps 88 % of 1,464 clip-art captions of 5 words in the mean, 94 % of those of eight words
and more, and none of 29 sentences in 17 other languages. Captions of prose reach 0.9 and more:
raise it there. Chosen against `lingua` in docs/LOG.md.

Source: Lui and Baldwin, ACL 2012 (langid.py), in the fork of Adrien Barbaresi.
"""

from collections.abc import Collection

from revision.captions.extra import load_extra


class LanguageFilter:
    """Judges captions by their language."""

    def __init__(self, languages: Collection[str], confidence: float) -> None:
        langid = load_extra("py3langid.langid", "languages")
        self._identifier = langid.LanguageIdentifier.from_model_file(
            langid.MODEL_FILE, norm_probs=True
        )
        unknown = sorted(set(languages) - set(self._identifier.labels))
        if unknown:
            raise ValueError(
                f"languages {unknown} are unknown to py3langid; it has "
                f"{', '.join(sorted(self._identifier.labels))}"
            )
        self._languages, self._confidence = frozenset(languages), confidence

    def reason(self, text: str) -> str:
        """Why the caption goes, with its most likely language; nothing where it stays."""
        ranked = self._identifier.rank(text)
        wanted = sum(probability for code, probability in ranked if code in self._languages)
        if wanted >= self._confidence:
            return ""
        best, probability = ranked[0]
        return (
            f"{best} with probability {probability:.2f}, {wanted:.3f} for "
            f"{', '.join(sorted(self._languages))}"
        )
