"""Rows by number: the stored ones whatever else is asked for, and a clear end without them."""

import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from revision.data import rows as rows_module
from revision.data.rows import StoredRows, unit_rows
from tests.feature_sets import cloud, write_set

DIM = 9
COUNT = 61


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """Blocks of 7, shards of 21."""
    rows = cloud(0, COUNT, DIM).astype(np.float16)
    return write_set(
        tmp_path_factory.mktemp("rows") / "set", rows, "text", shard_rows=21, block_rows=7
    )


@settings(max_examples=40, deadline=None, derandomize=True, database=None)
@given(numbers=st.lists(st.integers(0, COUNT - 1), max_size=30))
def test_rows_are_the_stored_ones_in_the_order_asked_for(directory, numbers):
    expected = cloud(0, COUNT, DIM).astype(np.float16)[numbers]
    found = StoredRows(directory).gather(np.array(numbers, np.int64))
    assert found.dtype == np.float16
    assert np.array_equal(found, expected.reshape(-1, DIM))


def test_runs_are_consecutive_rows(directory):
    found = StoredRows(directory).gather(np.array([14, 0, 57]), 3)
    expected = cloud(0, COUNT, DIM).astype(np.float16)[[14, 15, 16, 0, 1, 2, 57, 58, 59]]
    assert np.array_equal(found, expected)


def test_few_files_are_open_and_none_travels(directory, monkeypatch):
    monkeypatch.setattr(rows_module, "_OPEN_BLOCKS", 2)
    rows = StoredRows(directory)
    everything = np.random.default_rng(0).permutation(COUNT)
    found = rows.gather(everything)
    assert len(rows._open) == 2
    one, two = (file for file, _ in rows._open.values())
    rows.gather(everything)
    assert one.closed and two.closed
    assert np.array_equal(pickle.loads(pickle.dumps(rows)).gather(everything), found)


def test_blocks_know_their_shards(directory):
    assert StoredRows(directory).block_shards == [0, 0, 0, 1, 1, 1, 2, 2, 2]


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("dim", [5, 64, 1280])
def test_a_unit_row_is_the_same_bits_alone_and_among_others(dtype, dim):
    rows = cloud(1, 300, dim).astype(dtype)
    alone = torch.cat([unit_rows(rows[i : i + 1], str) for i in range(len(rows))])
    assert torch.equal(unit_rows(rows, str), alone)
    wide = rows.astype(np.float64)  # rounded to float32 once
    expected = wide / np.linalg.norm(wide, axis=1, keepdims=True)
    assert np.abs(alone.numpy() - expected).max() <= 2.0**-24


def test_a_shard_that_becomes_shorter_is_an_error_and_no_crash(tmp_path):
    rows = cloud(0, COUNT, DIM)
    rows_of = StoredRows(write_set(tmp_path / "set", rows, "text", shard_rows=21, block_rows=7))
    rows_of.gather(np.array([25]))
    shard = tmp_path / "set" / "00001.tar"
    with shard.open("r+b") as file:
        file.truncate(600)
    with pytest.raises(ValueError, match=r"00001\.tar: truncated"):
        rows_of.gather(np.array([24]))


def test_a_shard_that_vanished_is_named(tmp_path):
    rows = StoredRows(write_set(tmp_path / "set", cloud(0, COUNT, DIM), "text", shard_rows=21))
    (tmp_path / "set" / "00002.tar").unlink()
    rows.gather(np.array([0, 30]))
    with pytest.raises(ValueError, match=r"00002\.tar: missing shard"):
        rows.gather(np.array([50]))
