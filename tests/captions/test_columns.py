"""Counting over all records: terciles, the k-th smallest key, chunks."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from revision.captions import columns as module
from revision.captions.columns import WHOLE, Columns, id_key, kth_smallest, terciles


@given(st.lists(st.integers(0, 20), min_size=1))
def test_terciles_are_the_definition(counts: list[int]) -> None:
    low, high = terciles(Counter(counts))
    for bound, part in ((low, 1), (high, 2)):
        assert sum(c <= bound for c in counts) * 3 >= part * len(counts)
        assert sum(c < bound for c in counts) * 3 < part * len(counts)


def test_rows_come_back_in_their_order_through_many_chunks(monkeypatch) -> None:
    monkeypatch.setattr(module, "_CHUNK", 8)
    columns = Columns()
    for number in range(21):
        columns.append(2**64 - 1 - number, number, WHOLE)
    for _ in range(2):
        rows = np.concatenate(list(columns.chunks()))
        assert rows["words"].tolist() == list(range(21))
        assert int(rows["key"][0]) == 2**64 - 1
    assert len(columns) == 21


@pytest.mark.parametrize("count", [1, 2, 500, 999, 1000])
def test_the_kth_smallest(count: int) -> None:
    keys = np.array([id_key(str(i)) for i in range(1000)], np.uint64)
    assert kth_smallest(lambda: iter(np.split(keys, 4)), count) == int(np.sort(keys)[count - 1])


def test_the_hash_of_an_id_is_the_same_for_ever() -> None:
    """A sweep of next year must draw the same records."""
    assert id_key("seagull") == 14721179564392180623
