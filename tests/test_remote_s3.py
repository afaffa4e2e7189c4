"""The same over the S3 protocol, where `s3fs` and `moto[server]` are installed."""

import io
import tarfile

import numpy as np
import pytest

from revision.records import read_records
from revision.remote import RemoteError, fingerprint, open_stream
from revision.shards import ShardReader
from tests.feature_sets import cloud, write_set

s3fs = pytest.importorskip("s3fs")
moto = pytest.importorskip("moto.server")


@pytest.fixture
def bucket(monkeypatch, tmp_path):
    server = moto.ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    names = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
    settings = dict.fromkeys(names, "x") | {"AWS_ENDPOINT_URL": f"http://{host}:{port}"}
    settings |= {"AWS_DEFAULT_REGION": "us-east-1", "REVISION_CACHE_DIR": str(tmp_path / "cache")}
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    driver = s3fs.S3FileSystem()
    driver.mkdir("bucket")
    yield driver
    server.stop()
    s3fs.S3FileSystem.clear_instance_cache()


def test_tars_sets_and_changes_on_s3(bucket, tmp_path):
    for k in range(2):
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as tar:
            info = tarfile.TarInfo(f"{k}.txt")
            info.size = 4
            tar.addfile(info, io.BytesIO(b"text"))
        bucket.pipe_file(f"bucket/shards/{k}.tar", buffer.getvalue())
    for given in ("s3://bucket/shards", "s3://bucket/shards/{0..1}.tar"):
        assert [record.id for record in read_records(given, side="text")] == ["0", "1"]

    here = write_set(tmp_path / "set", cloud(0, 130), "text")
    bucket.put(str(here), "bucket/set", recursive=True)
    rows = np.concatenate([*ShardReader("s3://bucket/set").iter_rows()])
    assert np.array_equal(rows, np.concatenate([*ShardReader(here).iter_rows()]))

    bucket.pipe_file("bucket/big", bytes(20_000_000))
    first = fingerprint("s3://bucket/big")
    with open_stream("s3://bucket/big") as file:
        file.read(9_000_000)
        bucket.pipe_file("bucket/big", b"\1" * 20_000_000)
        with pytest.raises(RemoteError, match="changed while it was read"):
            file.read()
    assert fingerprint("s3://bucket/big") != first
