"""What a source reads of its shards: no more than what it is asked about, and nothing broken."""

import numpy as np
import pytest

from revision.data.shard_source import ShardSource
from revision.records import Record
from tests.data.test_tokens import turns, write


def captions(counts):
    return [(Record(id=str(i), text=f"caption {i}"), count) for i, count in enumerate(counts)]


@pytest.mark.parametrize("counts", [[2, 1, 3, 0, 1, 1, 1, 2, 1], [1] * 8, [4]])
def test_the_last_record_of_a_block_opens_no_other(tmp_path, counts):
    source = ShardSource(write(tmp_path, captions(counts)), turns("plain"))
    for number, count in enumerate(counts):
        source._cache.clear()
        assert source.num_images(np.array([number])).tolist() == [count]
        assert list(source._cache) == [number // 4]
    assert source.num_images(np.arange(len(counts))).tolist() == counts
    assert source.num_images(np.array([], np.int64)).tolist() == []


def test_shuffled_pictures_are_those_of_the_other_record_in_turn(tmp_path):
    counts = [3, 1, 2, 2]
    directory = write(tmp_path, captions(counts))
    real, shuffled = (
        ShardSource(directory, turns("plain"), visual=v) for v in ("real", "shuffled")
    )
    for number, count in enumerate(counts):
        other = (number + 2) % 4
        theirs = real.batch([other]).visual
        expected = theirs[[place % counts[other] for place in range(count)]]
        assert shuffled.batch([number]).visual.equal(expected)


def test_a_patch_that_is_no_number_names_its_record(tmp_path, monkeypatch):
    source = ShardSource(write(tmp_path, captions([1] * 4), rows_per_image=3), turns("plain"))
    gather = source.rows.gather

    def spoiled(*asked):
        rows = gather(*asked)
        rows[4, 0] = np.nan
        return rows

    monkeypatch.setattr(source.rows, "gather", spoiled)
    with pytest.raises(ValueError, match="patch 1 of a picture of record '2' is not finite"):
        source.batch([3, 2])
