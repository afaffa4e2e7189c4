"""Progress bars for every step that may take longer than a few seconds."""

from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm.auto import tqdm

T = TypeVar("T")


def track(items: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
    """Yield from `items` behind a bar on standard error, refreshed at most once a second.

    `total` is needed only where `items` has no length.
    """
    yield from tqdm(items, desc=description, total=total, mininterval=1.0, dynamic_ncols=True)
