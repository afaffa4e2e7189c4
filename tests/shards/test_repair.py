"""Repair makes again what is broken, nothing else, and to the same bytes."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from revision.alignment import Cloud, ReAlign, apply_alignment, save_alignment
from revision.captions import Controls
from revision.config import compose
from revision.encoders.embedding import OpenShard, embed_records
from revision.encoders.load import load_encoder
from revision.shards import read_header, verify
from scripts import verify_shards
from tests.feature_sets import cloud, write_set
from tests.tiny_encoders import save_clip

ROOT = Path(__file__).resolve().parents[2]
NUM = 11
OPTIONS = {"rows_per_shard": 4, "batch_size": 2, "num_workers": 0}
OPTIONS |= {"accelerator": "cpu", "devices": 1}


@pytest.fixture(scope="module")
def encoder_dir(tmp_path_factory):
    return save_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture
def embedded(encoder_dir, tmp_path):
    """Image and text sets of three shards each; one picture of each third cannot be read."""
    random = np.random.default_rng(0)
    entries = {"images": [], "texts": []}
    for i in range(NUM):
        pixels = random.integers(0, 256, (20, 20, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
        entries["images"].append({"id": i, "image": f"{i}.png"})
        entries["texts"].append({"id": f"t{i}", "text": "a red cat" + " dog" * (i % 5)})
    (tmp_path / "5.png").write_bytes(b"")
    (tmp_path / "data.json").write_text(json.dumps(entries))
    embed_records(
        load_encoder(encoder_dir),
        input=tmp_path / "data.json",
        image_root=tmp_path,
        output_dir=tmp_path / "out",
        **OPTIONS,
    )
    return tmp_path / "out"


def contents(directory):
    return {p.name: p.read_bytes() for p in directory.iterdir() if ".broken" not in p.name}


def verified(directory, encoder_dir, *more):
    """Run the command; `encoder_dir` None leaves the encoder out."""
    chosen = [
        "encoder=clip_b32",
        f"encoder.path={encoder_dir}",
        "encoder.revision=null",
        "batch_size=2",
        "num_workers=0",
        "accelerator=cpu",
    ]
    overrides = [f"input={directory}", *(chosen if encoder_dir else []), *more]
    verify_shards.run(compose("verify_shards", overrides))


def flip(path, position=1000):
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


def cut(path):
    path.write_bytes(path.read_bytes()[:900])


DAMAGES = {"flipped": flip, "cut": cut, "gone": Path.unlink, "empty": lambda p: p.write_bytes(b"")}


@pytest.mark.parametrize("side", ["images", "texts"])
@pytest.mark.parametrize("name", DAMAGES)
def test_only_the_broken_shards_are_made_again_to_the_same_bytes(
    embedded, encoder_dir, side, name, monkeypatch, capsys
):
    directory = embedded / side
    before = contents(directory)
    DAMAGES[name](directory / "00001.tar")
    with pytest.raises(ValueError, match=r"\d problems; .* repair=true makes broken shards again"):
        verified(directory, encoder_dir)
    finish, finished = OpenShard.finish, []
    monkeypatch.setattr(
        OpenShard, "finish", lambda shard: (finished.append(shard.address.name), finish(shard))
    )
    verified(directory, encoder_dir, "repair=true", "check_input=true")
    assert finished == ["00001.tar"]
    assert contents(directory) == before
    aside = [p.name for p in directory.iterdir() if ".broken" in p.name]
    assert aside == ([] if name == "gone" else ["00001.tar.broken"])
    printed = capsys.readouterr().out
    assert "made again with the same bytes" in printed
    assert "fine; " in printed


def test_the_same_records_are_chosen_again(embedded, encoder_dir, tmp_path):
    embed_records(
        load_encoder(encoder_dir),
        input=tmp_path / "data.json",
        output_dir=tmp_path / "chosen",
        modality="text",
        controls=Controls(caption_length=[4, 7], num_samples=6, max_caption_words=2),
        **OPTIONS,
    )
    directory = tmp_path / "chosen" / "texts"
    before = contents(directory)
    flip(directory / "00001.tar")
    verified(directory, encoder_dir, "repair=true", "check_input=true")
    assert contents(directory) == before
    assert read_header(directory).num_records == 6


def test_a_set_of_patches_is_repaired(encoder_dir, embedded, tmp_path):
    embed_records(
        load_encoder(encoder_dir, pooling="patches"),
        input=tmp_path / "data.json",
        image_root=tmp_path,
        output_dir=tmp_path / "patches",
        modality="image",
        **(OPTIONS | {"rows_per_shard": 64}),
    )
    directory = tmp_path / "patches" / "images"
    before = contents(directory)
    flip(directory / "00001.tar")
    verified(directory, encoder_dir, "repair=true", "encoder.pooling=patches")
    assert contents(directory) == before


def test_what_was_set_aside_before_is_kept(embedded, encoder_dir):
    directory = embedded / "texts"
    for _ in range(2):
        flip(directory / "00000.tar")
        verified(directory, encoder_dir, "repair=true")
    names = {p.name for p in directory.iterdir() if ".broken" in p.name}
    assert names == {"00000.tar.broken", "00000.tar.broken2"}
    assert verify(directory) == []


def test_other_bytes_are_told_and_the_header_follows_them(embedded, encoder_dir, capsys):
    """As on other hardware: here the shard and the header held another row before."""
    directory = embedded / "texts"
    path = directory / "header.json"
    fields = json.loads(path.read_text())
    fields["shards"][1]["sha256"] = "0" * 64
    path.write_text(json.dumps(fields))
    verified(directory, encoder_dir, "repair=true")
    assert "made again with other bytes (sha256" in capsys.readouterr().out
    assert verify(directory) == []
    assert read_header(directory).source == fields["source"]


def test_embed_py_run_again_brings_back_a_shard_and_the_header_follows(
    embedded, tmp_path, encoder_dir
):
    directory = embedded / "texts"
    path = directory / "header.json"
    path.write_text(path.read_text().replace('"sha256": "', '"sha256": "0', 1))  # was another one
    (directory / "00000.tar").unlink()
    embed_records(
        load_encoder(encoder_dir),
        input=tmp_path / "data.json",
        output_dir=embedded,
        modality="text",
        **OPTIONS,
    )
    assert verify(directory) == []


def test_header_and_quarantine_are_declared_again_from_good_shards(embedded):
    directory = embedded / "images"
    before = contents(directory)
    (directory / "quarantine.jsonl").unlink()
    path = directory / "header.json"
    path.write_text(path.read_text().replace('"num_rows": 10', '"num_rows": 12', 1))
    verified(directory, None, "repair=true")
    assert contents(directory) == before


@pytest.mark.parametrize("why", ["no encoder", "another encoder", "another input", "its name"])
def test_what_cannot_be_made_again_stays_as_it_was(embedded, encoder_dir, tmp_path, why):
    directory = embedded / "texts"
    flip(directory / "00001.tar")
    used, more, message = encoder_dir, [], "give encoder=<name>"
    if why == "no encoder":
        used = None
    elif why == "another encoder":
        more, message = ["encoder.dtype=bfloat16"], "was made by another encoder than"
    elif why == "another input":
        data = tmp_path / "data.json"
        data.write_text(data.read_text().replace("a red cat", "a blue cat"))
        message = "input_sha256 was"
    else:
        directory, message = directory.rename(embedded / "other"), "writes text rows to a folder"
    before = {p.name: p.read_bytes() for p in directory.iterdir()}
    with pytest.raises(ValueError, match=message):
        verified(directory, used, "repair=true", *more)
    assert {p.name: p.read_bytes() for p in directory.iterdir()} == before


KILLED = """
import os, signal, sys
sys.path[:0] = [{root!r}]
from revision.files import Path
from tests.shards.test_repair import verified
from revision.encoders.embedding import OpenShard
OpenShard.finish = lambda _: os.kill(os.getpid(), signal.SIGKILL)
verified(Path({directory!r}), Path({encoder!r}), "repair=true")
"""


def test_a_killed_repair_goes_on(embedded, encoder_dir):
    directory = embedded / "texts"
    before = contents(directory)
    flip(directory / "00001.tar")
    (directory / "00002.tar").unlink()
    code = KILLED.format(root=str(ROOT), directory=str(directory), encoder=str(encoder_dir))
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert not (directory / "00001.tar").exists()
    verified(directory, encoder_dir, "repair=true")
    assert contents(directory) == before


def test_input_and_pictures_may_have_moved(embedded, encoder_dir, tmp_path):
    directory, moved = embedded / "images", tmp_path / "moved"
    before = contents(directory)
    moved.mkdir()
    for path in [*tmp_path.glob("*.png"), tmp_path / "data.json"]:
        path.rename(moved / path.name)
    cut(directory / "00002.tar")
    with pytest.raises(ValueError, match="no such input file"):
        verified(directory, encoder_dir, "repair=true")
    places = [f"records={moved / 'data.json'}", f"image_root={moved}"]
    verified(directory, encoder_dir, "repair=true", *places)
    assert contents(directory) == before


def test_ids_that_the_input_has_and_the_set_has_not(embedded, tmp_path, capsys):
    verified(embedded / "images", None, "check_input=true")
    assert "  1 rejected: unreadable image (ValueError: it is empty" in capsys.readouterr().out
    data = tmp_path / "data.json"
    data.write_text(data.read_text().replace('"t3"', '"t33"'))
    with pytest.raises(ValueError, match="1 problems"):
        verified(embedded / "texts", None, "check_input=true")
    assert "is not what" in capsys.readouterr().out


# ---- sets of other commands


@pytest.fixture
def aligned(tmp_path):
    texts, images = cloud(0, 130), cloud(1, 90)
    source = write_set(tmp_path / "texts", texts, "text")
    alignment = ReAlign()
    alignment.fit(Cloud.of(texts), Cloud.of(images))
    save_alignment(alignment, tmp_path / "run" / "alignment", {})
    apply_alignment(alignment, source, tmp_path / "run" / "shards")
    return tmp_path / "run" / "shards"


def test_broken_shards_of_an_aligned_set_are_aligned_again(aligned, tmp_path):
    before = contents(aligned)
    flip(aligned / "00001.tar", 2000)
    with pytest.raises(ValueError, match="give source=<text shards>"):
        verified(aligned, None, "repair=true")
    kept = (aligned / "00000.tar").stat().st_mtime_ns
    verified(aligned, None, "repair=true", f"source={tmp_path / 'texts'}")
    assert contents(aligned) == before
    assert (aligned / "00000.tar").stat().st_mtime_ns == kept


def test_a_set_without_a_plan_cannot_be_made_again(tmp_path):
    directory = write_set(tmp_path / "set", cloud(0, 60), "text")
    flip(directory / "00000.tar", 2000)
    with pytest.raises(ValueError, match=r"no plan\.json says how its shards were made"):
        verified(directory, None, "repair=true")


def test_for_a_converted_set_the_command_is_told(tmp_path):
    import pickle

    from revision.conversion import import_pickles

    (tmp_path / "pickles").mkdir()
    records = [{"id": str(i), "caption": "t", "embed": row} for i, row in enumerate(cloud(0, 30))]
    (tmp_path / "pickles" / "text_0.pkl").write_bytes(pickle.dumps(records))
    import_pickles(tmp_path / "pickles", tmp_path / "set", kind="text", rows_per_shard=10)
    before = contents(tmp_path / "set")
    flip(tmp_path / "set" / "00001.tar", 2000)
    with pytest.raises(ValueError, match=r"delete 00001\.tar and run `(.*)`") as info:
        verified(tmp_path / "set", None, "repair=true")
    words = str(info.value).split("`")[1].split()[1:]
    (tmp_path / "set" / "00001.tar").unlink()
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, *words], cwd=ROOT, env=environment, check=True)
    assert contents(tmp_path / "set") == before
