"""What a selection remembers of each entry while it reads them: a row in a file without a name.

Thirteen bytes an entry on the disk for temporary files (`TMPDIR`), a chunk of them in memory, so
that the steps which compare records with all others (terciles, nested subsets) need no second
reading of the input and no memory that grows with it.
"""

import hashlib
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator

import numpy as np

REFUSED, REMOVED, BARE, WHOLE, CUT = range(5)  # states; BARE: kept, without a caption
ROW = np.dtype([("key", "<u8"), ("words", "<u4"), ("state", "u1")])
_CHUNK = 1 << 16
_COARSE_BITS = 16


class Columns:
    """Rows that are appended, then read in chunks as often as needed."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 -- lives as long as this
        self._waiting: list[tuple[int, int, int]] = []
        self._length = 0

    def append(self, key: int, words: int, state: int) -> None:
        self._waiting.append((key, words, state))
        self._length += 1
        if len(self._waiting) >= _CHUNK:
            self._flush()

    def __len__(self) -> int:
        return self._length

    def _flush(self) -> None:
        self._file.seek(0, 2)
        self._file.write(np.array(self._waiting, ROW).tobytes())
        self._waiting = []

    def chunks(self) -> Iterator[np.ndarray]:
        """All rows in their order."""
        self._flush()
        for start in range(0, self._length, _CHUNK):
            self._file.seek(start * ROW.itemsize)
            yield np.frombuffer(self._file.read(_CHUNK * ROW.itemsize), ROW)


def id_key(id: str) -> int:
    """A 64-bit hash of a record's id, the same in every process and for every order."""
    content = id.encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little")


def terciles(counts: Counter[int]) -> tuple[int, int]:
    """The bounds (a, b) of the classes: short <= a < medium <= b < long.

    a is the smallest number that at least a third of the counts do not exceed, b the same for two
    thirds. Equal numbers are in one class, so that the classes differ in size where many are equal.

    Example:
        >>> terciles(Counter([1, 2, 3, 4, 5, 6, 7, 8, 9]))
        (3, 6)
    """
    numbers = np.array(sorted(counts))
    reached = np.cumsum([counts[number] for number in sorted(counts)])
    total = int(reached[-1])
    low, high = (numbers[np.searchsorted(reached * 3, total * part)] for part in (1, 2))
    return int(low), int(high)


def kth_smallest(chunks: Callable[[], Iterator[np.ndarray]], count: int) -> int:
    """The `count`-th smallest of 64-bit numbers that come in chunks, in two passes."""
    shift = np.uint64(64 - _COARSE_BITS)
    histogram = np.zeros(1 << _COARSE_BITS, np.int64)
    for keys in chunks():
        histogram += np.bincount((keys >> shift).astype(np.int64), minlength=len(histogram))
    below = histogram.cumsum()
    coarse = int(np.searchsorted(below, count))
    inside = np.concatenate([keys[(keys >> shift) == np.uint64(coarse)] for keys in chunks()])
    return int(np.sort(inside)[count - 1 - int(below[coarse] - histogram[coarse])])
