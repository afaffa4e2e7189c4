"""Duplicate captions: the first of each group stays.

Captions are compared as `normalized` makes them: Unicode NFKC, case folded, white space as one
blank. Punctuation counts, since "a cat? a dog" and "a cat, a dog" are two captions.

Exact: a 64-bit hash per distinct caption, eight bytes each; two of 10^8 captions collide with
probability 3e-4, and what is removed is listed.

Near: MinHash with locality-sensitive hashing (Broder, SEQUENCES 1997; `datasketch`) over the sets
of runs of k characters. It proposes candidates among the captions that stayed, and the exact
Jaccard similarity |A & B| / |A | B| decides, so none goes that is less similar than the threshold.
The proposals miss a pair of similarity s with probability (1 - s^r)^b, r rows and b bands chosen
for the threshold: 0.8 gives r = 10, b = 12, which misses 26 % of the pairs at 0.8, 0.6 % at 0.9 and
none that are equal. A caption goes when it is similar to one that stayed: similarity is not
transitive, so the order of the input matters, and the same order gives the same result in every
process. About 6 kB of memory per caption that stays, 5,000 captions a second
(docs/LOG.md): some millions of captions fit, beyond that take exact ones.
"""

import unicodedata

from revision.captions.extra import load_extra
from revision.records.read import SeenIds

_NUM_PERM = 128
_WEIGHTS = (0.2, 0.8)  # of false and of missed proposals: false ones are checked, missed ones lost


def normalized(text: str) -> str:
    """The caption as duplicates are compared.

    Example:
        >>> normalized("  A ﬁne\\nSTRAẞE ")
        'a fine strasse'
    """
    folded = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(unicodedata.normalize("NFKC", folded).split())


class ExactDuplicates:
    """Remembers every caption."""

    def __init__(self) -> None:
        self._seen = SeenIds()

    def is_duplicate(self, text: str) -> bool:
        return not self._seen.add(normalized(text))


class NearDuplicates:
    """Remembers every caption that is unlike those before it."""

    def __init__(self, threshold: float, shingle: int) -> None:
        self._library = load_extra("datasketch", "dedup=near")
        self._threshold, self._shingle = threshold, shingle
        self._lsh = self._library.MinHashLSH(
            threshold=threshold, num_perm=_NUM_PERM, weights=_WEIGHTS
        )
        self._kept: list[tuple[str, str]] = []

    def reason(self, id: str, text: str) -> str:
        """Why the caption is a duplicate, with the id of the one that stayed."""
        text = normalized(text)
        shingles = self._shingles(text)
        sketch = self._library.MinHash(num_perm=_NUM_PERM, seed=1, scheme="affine32")
        sketch.update_batch([piece.encode("utf-8", "surrogatepass") for piece in shingles])
        for place in sorted(self._lsh.query(sketch)):
            other, kept_text = self._kept[place]
            similarity = jaccard(shingles, self._shingles(kept_text))
            if similarity >= self._threshold:
                return f"{similarity:.3f} similar to the caption of {other!r}"
        self._lsh.insert(len(self._kept), sketch, check_duplication=False)
        self._kept.append((id, text))
        return ""

    def _shingles(self, text: str) -> set[str]:
        width = self._shingle
        return {text[i : i + width] for i in range(max(1, len(text) - width + 1))}


def jaccard(one: set[str], other: set[str]) -> float:
    """|A & B| / |A | B| of two sets that are not both empty."""
    return len(one & other) / len(one | other)
