"""The command line of `embed.py`, its configs, and two processes against one."""

import inspect
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hydra.utils import get_method
from omegaconf import OmegaConf
from PIL import Image

import embed
from revision.config import compose
from revision.shards import ShardReader
from tests.tiny_encoders import save_clip

ROOT = Path(__file__).resolve().parents[1]
ENCODERS = sorted((ROOT / "conf" / "encoder").glob("*.yaml"))


@pytest.fixture(scope="module")
def encoder_dir(tmp_path_factory):
    return save_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture
def input(tmp_path):
    random = np.random.default_rng(0)
    images = []
    for i in range(10):
        Image.fromarray(random.integers(0, 256, (20, 20, 3), dtype=np.uint8)).save(
            tmp_path / f"{i}.png"
        )
        images.append({"id": i, "image": f"{i}.png"})
    texts = [{"id": i, "text": f"a red cat {i}"} for i in range(7)] + [{"id": 7, "text": ""}]
    path = tmp_path / "data.json"
    path.write_text(json.dumps({"images": images, "texts": texts}))
    return path


def overrides(encoder_dir, input, output_dir, *more):
    return [
        "encoder=clip_b32",
        f"encoder.path={encoder_dir}",
        "encoder.revision=null",
        f"input={input}",
        f"image_root={input.parent}",
        f"output_dir={output_dir}",
        "rows_per_shard=3",
        "batch_size=2",
        "num_workers=0",
        "accelerator=cpu",
        *more,
    ]


def command(*arguments, **environment):
    return subprocess.run(
        [sys.executable, "embed.py", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
    )


def test_every_encoder_config_binds_to_its_constructor():
    assert len(ENCODERS) == 10
    for path in ENCODERS:
        options = OmegaConf.to_container(OmegaConf.load(path))
        constructor = get_method(options.pop("_target_"))
        inspect.signature(constructor).bind(**options)


@pytest.mark.parametrize("path", ENCODERS, ids=lambda path: path.stem)
def test_every_encoder_composes(path):
    cfg = compose("embed", [f"encoder={path.stem}", "input=a", "output_dir=b"])
    assert OmegaConf.to_container(cfg, throw_on_missing=True)["encoder"]["_target_"]


def test_run_writes_both_sets(encoder_dir, input, tmp_path):
    out = embed.run(compose("embed", overrides(encoder_dir, input, tmp_path / "out", "devices=1")))
    assert ShardReader(out / "images").num_rows == 10
    texts = ShardReader(out / "texts")
    assert (texts.num_rows, texts.header.num_rejected) == (7, 1)
    assert "empty text" in (out / "texts" / "quarantine.jsonl").read_text()


@pytest.mark.slow
def test_a_user_error_ends_with_one_line_and_status_1(encoder_dir, tmp_path):
    done = command(*overrides(encoder_dir, tmp_path / "absent.json", tmp_path / "out"))
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].startswith("error: ")
    assert "absent.json: no such input file" in done.stderr
    assert "Traceback" not in done.stderr


def test_several_devices_inside_another_script_start_embed_itself(tmp_path, monkeypatch):
    """Lightning would start the other processes by repeating pytest's command line."""
    started = []
    monkeypatch.setattr(
        "revision.training.launch.in_own_processes", lambda *what: started.append(what)
    )
    cfg = compose("embed", overrides("clip", tmp_path / "a.json", tmp_path / "out", "devices=2"))
    assert embed.run(cfg) == tmp_path / "out"
    [(script, text)] = started
    assert Path(script) == ROOT / "embed.py"
    assert OmegaConf.create(text) == cfg


@pytest.mark.slow
def test_another_script_may_embed_with_two_processes(encoder_dir, input, tmp_path):
    cfg = compose("embed", overrides(encoder_dir, input, tmp_path / "out", "devices=2"))
    out = embed.run(cfg)
    assert ShardReader(out / "images").num_rows == 10


@pytest.mark.slow
def test_two_processes_write_the_same_sets_as_one(encoder_dir, input, tmp_path):
    for devices in (1, 2):
        out = tmp_path / str(devices)
        done = command(*overrides(encoder_dir, input, out, f"devices={devices}"))
        assert done.returncode == 0, done.stderr
    for side in ("images", "texts"):
        one, two = (
            {p.name: p.read_bytes() for p in (tmp_path / str(n) / side).iterdir()} for n in (1, 2)
        )
        assert one == two
    assert "MEMBER: 2/2" in done.stderr + done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("named", [True, False])
def test_each_job_of_a_sweep_has_its_directory(encoder_dir, input, tmp_path, named):
    out = tmp_path / "out"
    directory = f"{out}/${{data.num_samples}}" if named else out
    sweep = ["-m", *overrides(encoder_dir, input, directory), "data.num_samples=2,4"]
    for _ in range(2):  # the second time everything is there
        done = command(*sweep)
        assert done.returncode == 0, done.stderr
    names = {2: "2", 4: "4"} if named else {n: f"data.num_samples={n}" for n in (2, 4)}
    assert {path.name for path in out.iterdir()} == set(names.values())
    ids = {}
    for number, name in names.items():
        reader = ShardReader(out / name / "texts")
        ids[number] = {record.id for b in range(len(reader.blocks)) for record in reader.records(b)}
        assert len(ids[number]) == number
        assert reader.header.source["selection"]["controls"] == {"num_samples": number}
    assert ids[2] < ids[4]


@pytest.mark.slow
def test_a_control_that_cannot_be_meant_ends_with_one_line(encoder_dir, input, tmp_path):
    done = command(*overrides(encoder_dir, input, tmp_path / "out", "data.caption_length=tiny"))
    assert done.returncode == 1
    assert "error: caption_length is short, medium, long or" in done.stderr
