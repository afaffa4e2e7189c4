"""A feature set on a server gives the rows of the same set here, or says which shard it lacks."""

import pickle
from pathlib import Path

import numpy as np
import pytest
from torch.utils.data import DataLoader, Dataset

from revision.remote import Retry
from revision.remote import stream as stream_module
from revision.shards import ShardReader, read_header
from tests.feature_sets import cloud, write_set
from tests.web_server import serving


@pytest.fixture(autouse=True)
def quick(monkeypatch, tmp_path):
    retry = Retry(attempts=3, first_delay_s=0.001, max_delay_s=0.01, timeout_s=0.5)
    monkeypatch.setattr(stream_module, "RETRY", retry)
    monkeypatch.setenv("REVISION_CACHE_DIR", str(tmp_path / "cache"))


@pytest.fixture
def feature_set(tmp_path) -> Path:
    return write_set(tmp_path / "set", cloud(0, 130), "text")  # three shards


@pytest.fixture
def server(feature_set):
    files = {f"set/{path.name}": path.read_bytes() for path in feature_set.iterdir()}
    with serving(files) as found:
        yield found


def test_rows_and_records_are_those_of_the_set_here(server, feature_set):
    here, there = ShardReader(feature_set), ShardReader(Path(f"{server.url}/set"))
    server.cuts = [500, 9000]
    assert there.header == here.header
    for block in range(len(here.blocks)):
        assert np.array_equal(here.features(block), there.features(block))
        assert here.records(block) == there.records(block)
    assert np.array_equal(
        np.concatenate([*there.iter_rows(7)]), np.concatenate([*here.iter_rows()])
    )
    assert there.sums().is_close(here.sums())
    assert there.quarantine() == here.quarantine()


def test_shards_are_fetched_when_they_are_read_and_once(server):
    reader = ShardReader(f"{server.url}/set")
    assert [name for name, _ in server.requests] == ["set/header.json"]
    reader.rows(60, 70)
    list(ShardReader(f"{server.url}/set").rows(50, 60))
    assert [name for name, _ in server.requests if name.endswith(".tar")] == ["set/00001.tar"]


@pytest.mark.parametrize("position", [600, 9000])
def test_a_flipped_byte_does_not_arrive(server, position):
    content = bytearray(server.files["set/00001.tar"])
    content[position] ^= 1
    server.files["set/00001.tar"] = bytes(content)
    reader = ShardReader(f"{server.url}/set")
    assert len(reader.rows(0, 50)) == 50
    with pytest.raises(ValueError, match=r"shard 00001\.tar of .*(sha256|truncated)"):
        reader.rows(50, 60)


def test_a_shard_that_vanishes_in_an_epoch_is_named(server):
    reader = ShardReader(f"{server.url}/set")
    rows = reader.iter_rows(50)
    next(rows)
    del server.files["set/00001.tar"]
    with pytest.raises(ValueError, match=r"shard 00001\.tar of .*no such file; set that right"):
        next(rows)


def test_a_server_that_keeps_failing_is_tried_and_named(server):
    reader = ShardReader(f"{server.url}/set")
    server.statuses = [503] * 99
    with pytest.raises(ValueError, match=r"shard 00000\.tar .*after 3 attempts.*503"):
        reader.rows(0, 1)


def test_what_is_no_set_is_refused(server):
    with pytest.raises(ValueError, match=r"nothing/header\.json.*no such file"):
        read_header(f"{server.url}/nothing")


def test_a_cache_that_is_too_small_says_so(server, monkeypatch):
    reader = ShardReader(f"{server.url}/set")
    largest = max(info.num_bytes for info in reader.header.shards)
    monkeypatch.setenv("REVISION_CACHE_GIB", str(largest * 1.5 / 2**30))
    reader.rows(0, 50)
    reader.rows(50, 100)  # in the place of the first
    mapped = reader.features(0)
    with pytest.raises(ValueError, match=r"do not fit, files of .* are in use"):
        reader.rows(50, 100)
    del mapped
    monkeypatch.setenv("REVISION_CACHE_GIB", "much")
    with pytest.raises(ValueError, match="REVISION_CACHE_GIB is 'much'"):
        reader.rows(100, 130)


class Rows(Dataset):
    def __init__(self, reader: ShardReader) -> None:
        self.reader = reader

    def __len__(self) -> int:
        return 13

    def __getitem__(self, index: int) -> np.ndarray:
        return self.reader.rows(10 * index, 10 * index + 10)


def test_workers_read_a_remote_set(server, feature_set):
    reader = ShardReader(f"{server.url}/set")
    reader.rows(0, 10)  # the driver of this process is not that of the workers
    expected = np.concatenate([*ShardReader(feature_set).iter_rows()])
    assert vars(pickle.loads(pickle.dumps(reader._remote)))["_held"] is None  # a descriptor
    for source in (reader, pickle.loads(pickle.dumps(reader))):
        batches = DataLoader(Rows(source), batch_size=None, num_workers=2)
        assert np.array_equal(np.concatenate([np.asarray(b) for b in batches]), expected)
