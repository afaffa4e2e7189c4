"""Faults that pass through several parts: power cuts, full disks, vanished files, odd records.

What a single part does about a fault is tested beside it: tests/records/test_image_faults.py,
tests/records/test_reader_faults.py, tests/shards, tests/test_shards.py.
"""

import io
import json
import os
import resource
import signal
import struct
import subprocess
import sys
import tarfile
import time
import zlib
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from revision.config import _sentence
from revision.data.index import build_index
from revision.data.schedule import Schedule
from revision.data.turn_encoder import TurnEncoder
from revision.data.visual_datamodule import VisualDataModule
from revision.encoders.embedding import embed_records
from revision.encoders.load import load_encoder
from revision.shards import ShardReader, verify
from tests.feature_sets import cloud, write_set
from tests.tiny_encoders import save_clip
from tests.tiny_models import bpe_tokenizer

ROOT = Path(__file__).resolve().parents[1]
OPTIONS = {"batch_size": 2, "rows_per_shard": 4, "num_workers": 0, "accelerator": "cpu"}
OPTIONS |= {"devices": 1}


@pytest.fixture(scope="module")
def encoder_dir(tmp_path_factory):
    return save_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def encoder(encoder_dir):
    return load_encoder(encoder_dir)


def png(seed=0, size=(20, 20)) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    return encoded(Image.fromarray(pixels))


def encoded(image, format="png", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


@pytest.fixture
def texts(tmp_path):
    path = tmp_path / "texts.jsonl"
    lines = [json.dumps({"id": i, "text": "a red cat" + " dog" * (i % 5)}) for i in range(11)]
    path.write_text("\n".join(lines))
    return path


def embed(encoder, input, output_dir, **options):
    sets = embed_records(
        encoder, input=input, output_dir=output_dir, **(OPTIONS | {"modality": "text"} | options)
    )
    return next(iter(sets.values()))


def contents(directory):
    return {path.name: path.read_bytes() for path in sorted(directory.iterdir())}


# ---- power cuts


class PowerCut:
    """In a process of its own: end it by SIGKILL at the `moment`-th call to the disk, and report
    what a disk that loses all that was not flushed would still hold."""

    def __init__(self, moment: int, log: int) -> None:
        self.moment, self.log, self.calls = moment, log, 0

    def install(self) -> None:
        self.fsync, self.replace = os.fsync, Path.replace
        os.fsync = lambda descriptor: self.call(
            lambda: self.fsync(descriptor), "flushed", os.readlink(f"/proc/self/fd/{descriptor}")
        )
        Path.replace = lambda old, new: self.call(
            lambda: self.replace(old, new), "renamed", str(old), str(new)
        )

    def call(self, work, *event: str) -> None:
        self.calls += 1
        if self.calls == self.moment:
            os.kill(os.getpid(), signal.SIGKILL)
        work()
        os.write(self.log, (json.dumps(event) + "\n").encode())


def in_child(work, moment: int) -> tuple[int, list[list[str]]]:
    """Run `work` until the cut; its exit status and what reached the disk, in order."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        torch.set_num_threads(1)  # threads do not survive a fork
        PowerCut(moment, writer).install()
        try:
            work()
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as log:
        events = [json.loads(line) for line in log]
    return os.waitpid(child, 0)[1], events


def lose_what_was_not_flushed(directory: Path, events: list[list[str]]) -> None:
    flushed = {path for kind, path, *_ in events if kind == "flushed"}
    for number, (kind, *paths) in enumerate(events):
        if kind == "renamed":
            old, new = map(Path, paths)
            assert str(old) in flushed, f"{new} was renamed before its content was on the disk"
            later = [event[1] for event in events[number + 1 :] if event[0] == "flushed"]
            if str(new.parent) not in later:
                new.rename(old)
    for path in directory.rglob(".*.tmp"):
        if str(path) not in flushed:
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def test_a_power_cut_at_any_moment_leaves_whole_files_and_resumes_to_the_same_bytes(
    encoder, texts, tmp_path
):
    status, events = in_child(lambda: embed(encoder, texts, tmp_path / "whole"), moment=-1)
    assert status == 0
    whole = contents(tmp_path / "whole" / "texts")
    assert len(events) > 15  # three calls for each of: plan, 3 shards, quarantine, header
    for moment in range(1, len(events) + 1):
        out = tmp_path / f"cut{moment}"
        status, events = in_child(lambda out=out: embed(encoder, texts, out), moment)
        assert os.WIFSIGNALED(status)
        lose_what_was_not_flushed(out, events)
        for name, content in contents(out / "texts").items():
            assert name.endswith(".tmp") or content == whole[name]
        status, _ = in_child(lambda out=out: embed(encoder, texts, out), moment=-1)
        assert status == 0
        assert contents(out / "texts") == whole


@pytest.mark.slow
def test_embed_py_killed_twice_ends_with_the_same_bytes(encoder_dir, tmp_path):
    texts = tmp_path / "texts.jsonl"
    lines = [json.dumps({"id": i, "text": "a red cat" + " dog" * (i % 5)}) for i in range(900)]
    texts.write_text("\n".join(lines))

    def start(out):
        words = ["encoder=clip_b32", f"encoder.path={encoder_dir}", "encoder.revision=null"]
        words += [f"input={texts}", f"output_dir={out}", "modality=text", "rows_per_shard=30"]
        words += ["batch_size=2", "num_workers=1", "accelerator=cpu", "devices=1"]
        return subprocess.Popen(
            [sys.executable, "embed.py", *words],
            cwd=ROOT,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            start_new_session=True,
        )

    assert start(tmp_path / "peace").wait() == 0
    for shards in (2, 11):
        process = start(tmp_path / "killed")
        while process.poll() is None:
            if len(list((tmp_path / "killed").glob("texts/*.tar"))) >= shards:
                os.killpg(process.pid, signal.SIGKILL)
                break
            time.sleep(0.001)
        assert process.wait() == -signal.SIGKILL
    assert start(tmp_path / "killed").wait() == 0
    assert contents(tmp_path / "killed/texts") == contents(tmp_path / "peace/texts")


LOADING = """
import time
from torch.utils.data import DataLoader
from {module} import {init} as init
items = [bytes(10**6)] * 100
loader = iter(DataLoader(items, batch_size=None, num_workers=2, worker_init_fn=init))
next(loader)
print("begun", flush=True)
time.sleep(100)
"""


def started(*words, **options):
    return subprocess.Popen(
        [sys.executable, *words],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        start_new_session=True,
        **options,
    )


def members(session: int) -> list[int]:
    """The processes of a session that run."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            state = stat.read_text().rsplit(")", 1)[1].split()
            if int(state[3]) == session and state[0] != "Z":
                found.append(int(stat.parent.name))
    return found


def all_end(session: int) -> bool:
    deadline = time.monotonic() + 20
    while members(session) and time.monotonic() < deadline:
        time.sleep(0.1)
    return not members(session)


@pytest.mark.parametrize(
    ("module", "init"),
    [("revision.parallel", "end_with_parent"), ("revision.encoders.work", "begin_worker")],
)
def test_processes_that_load_data_do_not_outlive_a_killed_run(module, init):
    code = LOADING.format(module=module, init=init)
    process = started("-c", code, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "begun\n"
    assert len(members(process.pid)) == 3
    process.kill()
    assert all_end(process.pid)


@pytest.mark.slow
def test_embed_py_stops_when_asked_and_continues(encoder_dir, tmp_path):
    (tmp_path / "pictures").mkdir()
    for i in range(2000):
        (tmp_path / "pictures" / f"{i}.png").write_bytes(png(size=(8, 8)))
    words = ["encoder=clip_b32", f"encoder.path={encoder_dir}", "encoder.revision=null"]
    words += [f"input={tmp_path / 'pictures'}", f"output_dir={tmp_path / 'out'}"]
    words += ["modality=image", "rows_per_shard=20", "batch_size=2", "num_workers=2"]
    process = started("embed.py", *words, "accelerator=cpu", "devices=1")
    while not list((tmp_path / "out").glob("images/*.tar")):
        assert process.poll() is None
        time.sleep(0.01)
    process.terminate()
    assert process.wait(timeout=20) == 128 + signal.SIGTERM
    assert all_end(process.pid)
    assert not (tmp_path / "out/images/header.json").exists()
    assert not list((tmp_path / "out").glob("images/*.tmp"))
    assert started("embed.py", *words, "accelerator=cpu", "devices=1").wait() == 0
    assert verify(tmp_path / "out/images") == []


# ---- full disks


class SmallDisk:
    """A file system of its own in memory, filled up to what is left over."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def leave(self, kib: int) -> None:
        filler = self.directory / "filler"
        filler.unlink(missing_ok=True)
        with filler.open("wb") as file:
            free = os.statvfs(self.directory).f_bavail * os.statvfs(self.directory).f_frsize
            file.write(bytes(max(0, free - kib * 1024)))

    def free(self) -> None:
        (self.directory / "filler").unlink()


@pytest.fixture
def small_disk(tmp_path):
    directory = tmp_path / "disk"
    directory.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(directory)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("only root may mount a file system")
    yield SmallDisk(directory)
    subprocess.run(["umount", str(directory)], check=True)


@contextmanager
def files_of_at_most(num_bytes: int):
    """Where nobody may mount: larger files cannot be written by this process."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def one_line(error: BaseException) -> str:
    assert isinstance(error, ValueError)
    assert "\n" not in str(error)
    return str(error)


def test_wherever_the_disk_is_full_embedding_says_so_and_resumes(
    encoder, texts, tmp_path, small_disk
):
    """Plan, every shard, quarantine and header: each of them meets the end of the disk."""
    whole = contents(embed(encoder, texts, tmp_path / "whole"))
    met = set()
    out = small_disk.directory / "out"
    for kib in (0, 4, 8, 12, 12, 12, 12, 12):  # a shard takes 12 of them, a small file 4
        small_disk.leave(kib)
        try:
            embed(encoder, texts, out)
            break
        except ValueError as error:
            message = one_line(error)
        assert "cannot be written (No space left on device); nothing of it was kept" in message
        assert "MiB are free there. Free some space and run the same command again" in message
        met.add(message.split(":")[0].rpartition("/")[2])
        for name, content in contents(out / "texts").items():
            assert content == whole[name]
    small_disk.free()
    assert contents(embed(encoder, texts, out)) == whole
    assert met >= {"plan.json", "00000.tar", "00001.tar", "00002.tar", "header.json"}


def test_a_file_that_may_not_grow_is_told_and_leaves_nothing(encoder, texts, tmp_path):
    whole = contents(embed(encoder, texts, tmp_path / "whole"))
    with files_of_at_most(9000), pytest.raises(ValueError, match="File too large") as info:
        embed(encoder, texts, tmp_path / "out")
    assert "00000.tar: cannot be written (File too large)" in one_line(info.value)
    assert [p.name for p in (tmp_path / "out" / "texts").iterdir()] == ["plan.json"]
    assert contents(embed(encoder, texts, tmp_path / "out")) == whole


def conversations(tmp_path, count=200) -> Path:
    path = tmp_path / "conversations.json"
    turns = [{"from": "human", "value": "what? " * 40}, {"from": "gpt", "value": "a cat"}]
    path.write_text(json.dumps([{"id": i, "conversations": turns} for i in range(count)]))
    return path


def index(input, directory):
    return build_index(input, directory, image_root=None, check=lambda record: None)


def test_an_index_on_a_full_disk_is_told_and_leaves_nothing(tmp_path, small_disk):
    input = conversations(tmp_path)
    root = small_disk.directory / "index"
    for kib in (0, 4, 8, 16, 32, 48):
        small_disk.leave(kib)
        with pytest.raises(ValueError, match=r"index.*: cannot be written \(No space") as info:
            index(input, root)
        one_line(info.value)
        assert not root.exists() or list(root.iterdir()) == []
    small_disk.free()
    assert index(input, root)[199].id == "199"


def test_an_index_that_may_not_grow_is_told_and_leaves_nothing(tmp_path):
    input = conversations(tmp_path)
    with (
        files_of_at_most(20_000),
        pytest.raises(ValueError, match=r"index.*: cannot be written \(File too large\)"),
    ):
        index(input, tmp_path / "index")
    assert list((tmp_path / "index").iterdir()) == []


# ---- files that vanish


def data(directory, max_length=None, **options):
    turns = TurnEncoder(bpe_tokenizer(), "plain", max_length=max_length)
    return VisualDataModule(
        turns=turns, shards=directory, schedule=Schedule(batch_size=8), shuffle_blocks=2, **options
    )


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_shard_that_vanishes_in_the_middle_of_an_epoch_is_named(tmp_path, num_workers):
    directory = write_set(tmp_path / "set", cloud(0, 130, 4), "text", block_rows=10)
    module = data(directory, num_workers=num_workers)
    module.trainer = TRAINER
    batches = iter(module.train_dataloader())
    next(batches)
    for path in directory.glob("*.tar"):
        path.unlink()
    with pytest.raises(ValueError, match=r"0000\d\.tar: missing shard") as info:
        list(batches)
    line = _sentence(info.value)  # what the command prints
    assert line.endswith(".tar: missing shard; run the command that wrote the set")
    assert "Traceback" not in line


class TRAINER:
    """What a datamodule asks of its trainer."""

    global_rank, world_size, global_step = 0, 1, 0

    class strategy:
        root_device = torch.device("cpu")


def test_an_input_that_vanishes_while_it_is_embedded_is_named(encoder, tmp_path, monkeypatch):
    for k in range(3):
        with tarfile.open(tmp_path / f"{k}.tar", "w") as tar:
            for i in range(5):
                member = tarfile.TarInfo(f"{k}{i}.txt")
                member.size = 9
                tar.addfile(member, io.BytesIO(b"a red cat"))
    whole = contents(embed(encoder, tmp_path, tmp_path / "whole"))
    encode = type(encoder).encode_texts

    def encode_and_lose(self, inputs):
        if (tmp_path / "2.tar").exists():
            (tmp_path / "2.tar").rename(tmp_path / "2.lost")
        return encode(self, inputs)

    with monkeypatch.context() as patched:
        patched.setattr(type(encoder), "encode_texts", encode_and_lose)
        with pytest.raises(ValueError, match=r"2\.tar: cannot be read to its end .*restore it"):
            embed(encoder, tmp_path, tmp_path / "out")
    assert not (tmp_path / "out/texts/header.json").exists()
    (tmp_path / "2.lost").rename(tmp_path / "2.tar")
    assert contents(embed(encoder, tmp_path, tmp_path / "out")) == whole


# ---- odd records, from the input to a training batch


def test_odd_pictures_are_embedded_as_they_are_meant_or_quarantined(encoder, tmp_path):
    red = Image.new("RGB", (20, 20), (255, 0, 0))
    turned = Image.Exif()
    turned[0x0112] = 6
    good = {
        "plain.png": encoded(red),
        "animated.gif": encoded(
            red, "gif", save_all=True, append_images=[Image.new("RGB", (20, 20))]
        ),
        "cmyk.tiff": encoded(Image.new("CMYK", (20, 20), (0, 255, 255, 0)), "tiff"),
        "turned.png": encoded(red, exif=turned),
        "mislabelled.jpg": encoded(red),
        "transparent.png": encoded(Image.new("RGBA", (20, 20), (255, 0, 0, 255))),
    }
    deep = np.full((20, 20), 2**15 + 128, np.uint16)
    good["grey16.png"] = encoded(Image.fromarray(deep))
    bad = {
        "empty.png": b"",
        "page.png": b"<html>404</html>",
        "cut.png": png(1, (64, 64))[:400],
        "bomb.png": bomb(),
    }
    for name, content in (good | bad).items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "root").mkdir()
    (tmp_path / "link.png").symlink_to("/etc/passwd")
    names = [*good, *bad, "link.png", "../secret.png", "/etc/passwd", "gone.png"]
    path = tmp_path / "data.jsonl"
    path.write_text("\n".join(json.dumps({"id": name, "image": name}) for name in names))
    directory = embed(encoder, path, tmp_path / "out", modality="image", image_root=tmp_path)
    assert verify(directory) == []
    reader = ShardReader(directory)
    assert list(reader.row_ids()) == list(good)
    rows = np.concatenate(list(reader.iter_rows())).astype(float)
    reds = [rows[list(good).index(name)] for name in good if name != "grey16.png"]
    assert min(float(row @ reds[0]) for row in reds) > 0.999
    rejected = [json.loads(line) for line in (directory / "quarantine.jsonl").open()]
    assert {r["id"] for r in rejected} == {*bad, *names[-4:]}
    reasons = {r["id"]: r["reason"] for r in rejected}
    assert "DecompressionBomb" in reasons["bomb.png"]
    assert all("outside the image root" in reasons[name] for name in names[-4:-1])


def bomb() -> bytes:
    """A PNG of a few bytes that claims 4 GPixel."""
    content = bytearray(png())
    content[16:24] = struct.pack(">II", 2**16, 2**16)
    content[29:33] = struct.pack(">I", zlib.crc32(bytes(content[12:29])))
    return bytes(content)


IDS = ["a/b", "../../etc/passwd", "/", "..", "\0", "a\nb", "日本", "x" * 10**6, '"', " ", "-1"]


@pytest.mark.slow
def test_odd_ids_and_a_caption_of_ten_megabytes_reach_the_training_batch(encoder, tmp_path):
    path = tmp_path / "data.jsonl"
    texts = ["a red cat"] * (len(IDS) - 1) + ["a red cat " * 1_000_000]
    lines = [json.dumps({"id": i, "text": t}) for i, t in zip(IDS, texts, strict=True)]
    bad = b'{"id": "bad", "text": "caf\xe9"}'
    path.write_bytes("\n".join(lines).encode() + b"\n" + bad)
    directory = embed(encoder, path, tmp_path / "out")
    assert verify(directory) == []
    assert list(ShardReader(directory).row_ids()) == IDS
    [rejected] = map(json.loads, (directory / "quarantine.jsonl").open())
    assert "not valid Unicode (UTF-8)" in rejected["reason"]
    assert rejected["address"].endswith("line 12")
    batches = data(directory, max_length=50).first_batches(9)
    assert sorted(id for batch in batches for id in batch.ids) == sorted(IDS)
    assert max(batch.input_ids.shape[1] for batch in batches) == 50
    written = {p.name for p in tmp_path.rglob("*") if p.is_file()}
    assert written == {"data.jsonl", *contents(directory)}  # an id never became a path
