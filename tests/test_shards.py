"""Laws and refusals of feature shards."""

import errno
import io
import json
import os
import pickle
import re
import signal
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest

from revision import files
from revision.alignment.moments import moments_of
from revision.config import compose
from revision.records import Record, Rejection
from revision.shards import (
    ShardReader,
    ShardWriter,
    check_rows,
    read_header,
    shard_info,
    shard_sums,
    verify,
    verify_moments,
    write_header,
)
from revision.sums import scan
from scripts import verify_shards as verify_script
from tests.feature_sets import cloud, forget_moments, write_set

DIM = 6
REPOSITORY = Path(__file__).resolve().parents[1]


def unit_rows(num_rows: int, seed: int = 0) -> np.ndarray:
    rows = np.random.default_rng(seed).normal(size=(num_rows, DIM))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def records(num_records: int, first: int = 0) -> list[Record]:
    return [Record(f"r{first + i}", text=f"text {first + i}") for i in range(num_records)]


def write_shard(directory: Path, index: int, sizes=(3, 2), dtype="float32") -> ShardWriter:
    with ShardWriter(directory, index, DIM, dtype) as writer:
        first = 100 * index
        for size in sizes:
            writer.add_block(unit_rows(size, seed=first), records(size, first))
            first += size
        writer.reject(Rejection(f"bad{index}", "empty text", f"x.json:entry {index}"))
    return writer


def finish(directory: Path, num_shards: int):
    return write_header(
        directory, kind="text", encoder={"name": "e"}, source={"input": "x"}, num_shards=num_shards
    )


@pytest.fixture
def feature_set(tmp_path):
    write_shard(tmp_path, 0)
    write_shard(tmp_path, 1, sizes=(4,))
    finish(tmp_path, 2)
    return tmp_path


# ---- laws


def test_what_is_written_is_read_back(feature_set):
    reader = ShardReader(feature_set)
    header = reader.header
    assert (header.num_rows, header.num_records, header.num_rejected) == (9, 9, 2)
    assert (header.dim, header.dtype, header.unit_norm, header.kind) == (
        DIM,
        "float32",
        True,
        "text",
    )
    assert [(b.shard, b.index, b.rows) for b in reader.blocks] == [
        ("00000.tar", 0, 3),
        ("00000.tar", 1, 2),
        ("00001.tar", 0, 4),
    ]
    np.testing.assert_array_equal(reader.features(2), unit_rows(4, seed=100))
    assert reader.records(1) == records(2, 3)
    assert verify(feature_set) == []
    assert read_header(feature_set) == header


def test_rows_are_mapped_and_not_copied(feature_set):
    rows = ShardReader(feature_set).features(0)
    assert isinstance(rows, np.memmap)
    assert not rows.flags.owndata
    assert rows.offset % 64 == 0  # aligned for vector loads
    assert Path(rows.filename) == feature_set / "00000.tar"


def test_plain_webdataset_reads_a_shard(feature_set):
    webdataset = pytest.importorskip("webdataset")
    samples = webdataset.WebDataset(str(feature_set / "00000.tar"), shardshuffle=False).decode()
    blocks = [sample for sample in samples if "features.npy" in sample]
    assert [block["features.npy"].shape for block in blocks] == [(3, DIM), (2, DIM)]
    lines = blocks[1]["records.jsonl"].splitlines()
    assert [json.loads(line)["id"] for line in lines] == ["r3", "r4"]


def test_the_index_gives_the_offset_of_the_npy_member(feature_set):
    with tarfile.open(feature_set / "00000.tar") as tar:
        content = io.BytesIO(tar.extractfile("000001.features.npy").read())
        np.testing.assert_array_equal(np.load(content), ShardReader(feature_set).features(1))


@pytest.mark.parametrize("batch_rows", [1, 2, 4, 9, 10, 4096])
def test_the_row_grid_does_not_depend_on_blocks(feature_set, batch_rows):
    reader = ShardReader(feature_set)
    whole = np.concatenate([reader.features(b) for b in range(3)])
    batches = list(reader.iter_rows(batch_rows))
    np.testing.assert_array_equal(np.concatenate(batches), whole)
    assert all(len(batch) == batch_rows for batch in batches[:-1])
    assert len(batches[-1]) <= batch_rows


def test_a_record_may_own_any_number_of_rows(tmp_path):
    with ShardWriter(tmp_path, 0, DIM, "float16") as writer:
        writer.add_block(unit_rows(3), records(3), [2, 0, 1])
        writer.add_block(unit_rows(0), records(1, 3), [0])
        writer.add_block(unit_rows(0), [])
    finish(tmp_path, 1)
    reader = ShardReader(tmp_path)
    assert reader.row_counts(0).tolist() == [2, 0, 1]
    assert reader.records(0) == records(3)
    assert reader.features(1).shape == (0, DIM)
    assert (reader.num_rows, reader.num_records, len(reader.blocks)) == (3, 4, 2)
    assert verify(tmp_path) == []


def test_the_same_rows_give_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        write_shard(tmp_path / name, 0, dtype="float16")
    shards = [(tmp_path / name / "00000.tar").read_bytes() for name in ("a", "b")]
    assert shards[0] == shards[1]


def test_an_existing_shard_tells_its_own_summary(tmp_path):
    info = write_shard(tmp_path, 0).info
    assert shard_info(tmp_path / "00000.tar") == info
    assert (info.num_rows, info.blocks, info.num_rejected) == (5, ((3, 3), (2, 2)), 1)


def test_rejections_come_together_in_quarantine(feature_set):
    lines = (feature_set / "quarantine.jsonl").read_text().splitlines()
    assert [json.loads(line)["id"] for line in lines] == ["bad0", "bad1"]
    assert json.loads(lines[0])["address"] == "x.json:entry 0"


def test_norms_are_stated_as_they_are(tmp_path):
    with ShardWriter(tmp_path, 0, DIM, "float32") as writer:
        writer.add_block(unit_rows(2) * 1.004, records(2))
    assert not finish(tmp_path, 1).unit_norm


def test_a_reader_travels_to_a_worker(feature_set):
    reader = pickle.loads(pickle.dumps(ShardReader(feature_set)))
    assert reader.features(0).shape == (3, DIM)


# ---- moments


def test_a_shard_carries_the_exact_sums_of_its_rows(feature_set):
    reader = ShardReader(feature_set)
    sums = reader.sums()
    assert sums == scan(np.concatenate(list(reader.iter_rows()))).sums
    assert sums == shard_sums(feature_set / "00000.tar") + shard_sums(feature_set / "00001.tar")
    assert reader.header.shards[0].moments == "moments.npy"
    assert verify_moments(reader) == []


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_sums_are_those_of_the_rows_as_they_are_stored(tmp_path, dtype):
    write_shard(tmp_path, 0, dtype=dtype)
    finish(tmp_path, 1)
    reader = ShardReader(tmp_path)
    moments = moments_of(reader.iter_rows())
    assert np.array_equal(reader.sums().mean, moments.mean)
    assert (reader.sums().count, reader.sums().mean_square) == (5, moments.mean_square)


def test_rows_that_are_not_those_of_the_moments_are_found(feature_set):
    path = feature_set / "00001.tar"
    rows = ShardReader(feature_set).features(2)
    content = bytearray(path.read_bytes())
    content[rows.offset : rows.offset + rows.nbytes] = np.roll(rows, 1, axis=1).tobytes()
    path.write_bytes(content)
    [problem] = verify_moments(ShardReader(feature_set))
    assert re.search(r"00001.tar: moments.npy is of 4 rows .* its rows give of 4 rows", problem)
    assert problem in verify(feature_set)


def test_sets_written_without_moments_are_read(feature_set):
    forget_moments(feature_set)
    reader = ShardReader(feature_set)
    assert reader.sums() is None
    assert verify_moments(reader) == []
    assert reader.num_rows == 9


def test_lines_of_another_shard_are_taken_over_as_they_are(feature_set, tmp_path):
    reader = ShardReader(feature_set)
    with ShardWriter(tmp_path / "copy", 0, DIM, "float32") as writer:
        for block in (0, 1):
            rows = reader.features(block)
            writer.copy_block(
                [rows[:1], rows[1:]], 3 - block, reader.record_bytes(block), 3 - block
            )
        writer.reject(Rejection("bad0", "empty text", "x.json:entry 0"))
    assert (tmp_path / "copy/00000.tar").read_bytes() == (feature_set / "00000.tar").read_bytes()


@pytest.mark.parametrize(
    ("pieces", "message"),
    [
        ([np.eye(2, DIM), np.eye(1, DIM) * np.nan], "row 2 is zero or not finite"),
        ([np.eye(2, DIM)], "2 rows came, 3 were announced"),
        ([np.eye(3, DIM + 1)], r"expected \(rows, 6\)"),
    ],
)
def test_rows_that_cannot_be_taken_over_are_refused(tmp_path, pieces, message):
    with (
        pytest.raises(ValueError, match=message),
        ShardWriter(tmp_path, 0, DIM, "float32") as writer,
    ):
        writer.copy_block(pieces, 3, b"", 3)
    assert list(tmp_path.iterdir()) == []


def test_any_range_of_rows_is_read(feature_set):
    reader = ShardReader(feature_set)
    whole = np.concatenate(list(reader.iter_rows()))
    for start, stop in ((0, 9), (0, 3), (3, 5), (2, 6), (4, 9), (8, 9)):
        np.testing.assert_array_equal(reader.rows(start, stop), whole[start:stop])
    np.testing.assert_array_equal(reader.read_features(1, 1, 99), whole[4:5])
    assert reader.rows(2, 6).flags.writeable


def test_rows_of_a_shard_that_was_cut_meanwhile_are_refused(feature_set):
    reader = ShardReader(feature_set)
    offset = reader.features(0).offset
    reader.rows(0, 3)
    os.truncate(feature_set / "00000.tar", offset + 24)
    with pytest.raises(ValueError, match=r"00000\.tar: truncated .*6 of 18 numbers"):
        reader.rows(0, 3)


# ---- whole or not at all


def test_nothing_appears_on_an_exception(tmp_path):
    def fail_inside() -> None:
        with ShardWriter(tmp_path, 0, DIM, "float32") as writer:
            writer.add_block(unit_rows(2), records(2))
            raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"):
        fail_inside()
    assert list(tmp_path.iterdir()) == []


def fail(*_):
    raise OSError(errno.ENOSPC, "No space left on device")


class FullFile(io.FileIO):
    """A file that is created, and then finds no room."""

    write = fail


@pytest.mark.parametrize("moment", ["write", "fsync", "replace"])
def test_a_full_disk_leaves_nothing_and_says_so_in_one_sentence(tmp_path, monkeypatch, moment):
    if moment == "write":
        monkeypatch.setattr(files.Path, "open", lambda path, _: FullFile(path, "xb"))
    elif moment == "fsync":
        monkeypatch.setattr(files.os, "fsync", fail)
    else:
        monkeypatch.setattr(files.Path, "replace", fail)
    with pytest.raises(
        ValueError, match=r"00000\.tar.*No space left.*MiB are free.*resumes"
    ) as info:
        write_shard(tmp_path, 0)
    assert "\n" not in str(info.value)
    assert list(tmp_path.iterdir()) == []


KILLED = """
import os, signal, sys
sys.path[:0] = [{repository!r}, {tests!r}]
import test_shards
from pathlib import Path
Path.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
test_shards.write_shard(Path({directory!r}), 0)
"""


def test_a_kill_before_the_rename_leaves_no_shard_and_is_cleaned(tmp_path):
    code = KILLED.format(
        repository=str(REPOSITORY), tests=str(REPOSITORY / "tests"), directory=str(tmp_path)
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    (leftover,) = tmp_path.iterdir()
    assert leftover.name.startswith(".00000.tar.")
    with pytest.raises(ValueError, match="not a feature set"):
        read_header(tmp_path)
    write_shard(tmp_path, 0)  # the next writer of the shard removes it
    assert [path.name for path in tmp_path.iterdir()] == ["00000.tar"]
    (tmp_path / ".00007.tar.123-abc.tmp").write_text("of a shard that nobody writes again")
    finish(tmp_path, 1)
    assert not list(tmp_path.glob(".*"))


# ---- refusals of the writer


@pytest.mark.parametrize("bad", [np.nan, np.inf, 0.0])
def test_bad_rows_are_not_written(tmp_path, bad):
    rows = unit_rows(3)
    rows[2] = bad
    with (
        pytest.raises(ValueError, match=r"1 of 3 rows are zero or not finite.*row 2 .*'r1'"),
        ShardWriter(tmp_path, 0, DIM, "float32") as writer,
    ):
        writer.add_block(rows, records(2), [1, 2])
    assert list(tmp_path.iterdir()) == []


def test_rows_that_overflow_the_stored_dtype_are_not_written(tmp_path):
    with (
        pytest.raises(ValueError, match="not finite as float16"),
        ShardWriter(tmp_path, 0, DIM, "float16") as writer,
    ):
        writer.add_block(unit_rows(1) * 1e6, records(1))


@pytest.mark.parametrize(
    ("rows", "num_records", "counts", "message"),
    [
        (np.ones((2, DIM + 1), np.float32), 2, None, rf"\(2, 7\), expected \(rows, {DIM}\)"),
        (np.ones((2, DIM), np.float32), 3, None, "2 feature rows but 3 rows claimed by 3 records"),
        (np.ones((2, DIM), np.float32), 2, [1, 2], "2 feature rows but 3 rows claimed"),
        (np.ones((2, DIM), np.float32), 2, [2], "1 row counts for 2 records"),
        (np.ones((2, DIM), np.float32), 2, [3, -1], "row counts"),
    ],
)
def test_blocks_that_do_not_fit_are_refused(tmp_path, rows, num_records, counts, message):
    with (
        pytest.raises(ValueError, match=message),
        ShardWriter(tmp_path, 0, DIM, "float32") as writer,
    ):
        writer.add_block(rows, records(num_records), counts)


def test_dtypes_that_are_not_stored_are_refused(tmp_path):
    with pytest.raises(ValueError, match="bfloat16"):
        ShardWriter(tmp_path, 0, DIM, "bfloat16")


def test_a_header_needs_every_shard_and_one_format(tmp_path):
    with pytest.raises(ValueError, match="source is empty"):
        finish(tmp_path, 0)
    write_shard(tmp_path, 0)
    with pytest.raises(ValueError, match=r"00001\.tar: missing shard"):
        finish(tmp_path, 2)
    write_shard(tmp_path, 1, dtype="float16")
    with pytest.raises(ValueError, match=r"float16.*float32.*expected exactly one"):
        finish(tmp_path, 2)


# ---- refusals of the reader


def test_check_rows_marks_bad_rows_and_refuses_another_width():
    rows = np.array([[1, 0], [0, 0], [np.nan, 1], [np.inf, 0], [1e-7, 0], [-2, 0]], np.float32)
    assert check_rows(rows, dim=2, address="x").tolist() == [False, True, True, True, True, False]
    with pytest.raises(ValueError, match=r"x: features of shape \(6, 2\), expected \(rows, 3\)"):
        check_rows(rows, dim=3, address="x")


def test_what_is_not_a_feature_set_is_refused(tmp_path):
    for directory in (tmp_path, tmp_path / "none"):
        with pytest.raises(ValueError, match="not a feature set"):
            ShardReader(directory)
    write_shard(tmp_path, 0)
    with pytest.raises(ValueError, match="unfinished: 1 shards, no header"):
        ShardReader(tmp_path)
    for content in ("{", "[]", '{"schema_version": 1}'):
        (tmp_path / "header.json").write_text(content)
        with pytest.raises(ValueError, match="not a feature set header"):
            ShardReader(tmp_path)


def test_another_schema_is_refused(feature_set):
    path = feature_set / "header.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"schema_version": 99}))
    with pytest.raises(ValueError, match="schema version 99, this code reads 1"):
        ShardReader(feature_set)


@pytest.mark.parametrize("lost", ["nearly all", "a block", "the summary", "its last line"])
def test_a_truncated_shard_is_refused(feature_set, lost):
    path = feature_set / "00000.tar"
    with tarfile.open(path) as tar:
        summary = tar.getmember("shard.json")
    keep = {
        "nearly all": 100,
        "a block": 2048,
        "the summary": summary.offset,
        "its last line": summary.offset_data + 10,
    }
    path.write_bytes(path.read_bytes()[: keep[lost]])
    with pytest.raises(ValueError, match=r"00000\.tar: truncated"):
        ShardReader(feature_set)
    with pytest.raises(ValueError, match=r"00000\.tar: truncated"):
        finish(feature_set, 2)
    path.unlink()
    with pytest.raises(ValueError, match=r"00000\.tar: missing shard"):
        ShardReader(feature_set)


def blank_a_row(feature_set: Path) -> None:
    path = feature_set / "00001.tar"
    offset = ShardReader(feature_set).features(2).offset
    content = bytearray(path.read_bytes())
    content[offset : offset + 4 * DIM] = b"\0" * (4 * DIM)
    path.write_bytes(content)


def test_the_verify_command_says_in_one_line_that_all_is_well(feature_set, capsys):
    verify_script.run(compose("verify_shards", [f"input={feature_set}"]))
    line, rejected = capsys.readouterr().out.splitlines()
    assert "fine; 9 text rows of width 6 in 2 shards, 2 records in quarantine" in line
    assert rejected == "  2 rejected: empty text"


def test_the_verify_command_fails_on_a_damaged_set(feature_set):
    blank_a_row(feature_set)
    command = [
        sys.executable,
        str(REPOSITORY / "scripts" / "verify_shards.py"),
        f"input={feature_set}",
    ]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    ended = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert ended.returncode == 1
    assert "00001.tar block 0: 1 of 4 rows are zero" in ended.stdout
    assert "00001.tar: moments.npy is of 4 rows" in ended.stdout
    last = ended.stderr.splitlines()[-1]
    assert last.startswith("error: ") and "3 problems" in last
    assert "Traceback" not in ended.stderr


def test_verify_sees_a_changed_byte(feature_set):
    blank_a_row(feature_set)
    problems = verify(feature_set)
    assert any("sha256" in problem for problem in problems)
    assert any("00001.tar block 0: 1 of 4 rows are zero" in problem for problem in problems)


def test_the_blocks_of_a_shard_are_those_that_name_it(tmp_path):
    reader = ShardReader(write_set(tmp_path / "x", cloud(1, 130), "text", shard_rows=50))
    for info in reader.header.shards:
        named = [block for block, ref in enumerate(reader.blocks) if ref.shard == info.name]
        assert list(reader.blocks_of(info.name)) == named
    ids = [id for block in range(len(reader.blocks)) for id in reader.block_row_ids(block)]
    assert ids == list(reader.row_ids()) == [str(i) for i in range(130)]
