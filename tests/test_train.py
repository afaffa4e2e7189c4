"""The command line of `train.py` on tiny real parts: stages, refusals, resume, sweeps."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import wandb
from PIL import Image
from safetensors.torch import load_file

import train
from revision.alignment import Cloud, ReAlign
from revision.alignment.storage import save_alignment
from revision.config import compose
from revision.encoders.load import load_encoder
from revision.models.directory import load_model
from revision.records import Record, read_records
from revision.shards import ShardWriter, write_header
from revision.training.metrics_file import read_metrics
from tests.tiny_encoders import save_clip, tiny_towers
from tests.tiny_models import save_tiny_llm

ROOT = Path(__file__).resolve().parents[1]
WORDS = ["red", "cat", "blue", "mat", "image", "helpful", "polite", "answers"]


def write_features(directory, rows, kind, records, encoder):
    with ShardWriter(directory, 0, rows.shape[1], "float32") as writer:
        for start in range(0, len(rows), 8):
            writer.add_block(rows[start : start + 8], records[start : start + 8])
    write_header(directory, kind=kind, encoder=encoder, source={"input": "test"}, num_shards=1)
    return directory


def captions(count):
    rng = np.random.default_rng(0)
    return [Record(id=str(i), text=" ".join(rng.choice(WORDS, 1 + i % 5))) for i in range(count)]


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """A language model, an encoder, caption features of the encoder, and real conversations."""
    root = tmp_path_factory.mktemp("parts")
    save_tiny_llm(root / "llm")
    save_clip(root / "clip")
    encoder = load_encoder(root / "clip").identity()
    rng = np.random.default_rng(1)
    rows = rng.standard_normal((24, 8)).astype(np.float32)
    write_features(root / "texts", rows, "text", captions(24), encoder)
    write_features(root / "val", rows[:5], "image", captions(5), encoder)
    turns = []
    for i in range(8):
        pixels = rng.integers(0, 256, (20, 20, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / f"{i}.png")
        question = {"from": "human", "value": "<image>\nWhat is in the image?"}
        answer = {"from": "gpt", "value": f"A {WORDS[i]} cat"}
        turns.append({"id": i, "image": f"{i}.png", "conversations": [question, answer]})
    (root / "conversations.json").write_text(json.dumps(turns))
    return root


def overrides(parts, runs, *more):
    return [
        f"llm.name={parts / 'llm'}",
        f"run_root={runs}",
        "accelerator=cpu",
        "precision=32-true",
        "devices=1",
        "progress=false",
        "data.num_workers=0",
        "stage.batch_size=2",
        "stage.accumulate=2",
        *more,
    ]


def pretrain(parts, runs, *more):
    return overrides(
        parts,
        runs,
        "name=one",
        f"data.shards={parts / 'texts'}",
        f"data.val_shards={parts / 'val'}",
        *more,
    )


def command(*arguments):
    """`python train.py <arguments>`; processes that wait for each other are ended together."""
    process = subprocess.Popen(
        [sys.executable, "train.py", *map(str, arguments)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        start_new_session=True,
    )
    try:
        stdout, stderr = process.communicate(timeout=240)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    return subprocess.CompletedProcess(arguments, process.returncode, stdout, stderr)


def weights(model_dir):
    projector = load_file(model_dir / "projector.safetensors")
    llm = load_file(model_dir / "llm" / "model.safetensors")
    return {**projector, **llm}


def difference(one, other):
    assert one.keys() == other.keys()
    return max(float((one[name].float() - other[name].float()).abs().max()) for name in one)


def test_pretraining_leaves_a_model_whose_projector_learned(parts, tmp_path):
    run_dir = train.run(
        compose("train", pretrain(parts, tmp_path, "stage.max_steps=6", "val_every=3"))
    )
    curves = read_metrics(run_dir / "metrics.csv")
    assert [step for step, _ in curves["train/loss"]] == [1, 2, 3, 4, 5, 6]
    assert [step for step, _ in curves["val/loss"]] == [3, 6]
    model = load_model(run_dir / "model")
    assert model.template == "plain"
    before, after = (
        load_file(path / "model.safetensors") for path in (parts / "llm", run_dir / "model" / "llm")
    )
    assert difference(before, after) == 0
    assert json.loads((run_dir / "model" / "provenance.json").read_text())["inputs"]["data.shards"]
    assert not (run_dir / "checkpoints").exists()

    for name in ("speed/tokens_per_s", "speed/data_wait_share", "memory/peak_host_gib"):
        assert [step for step, _ in curves[name]] == [1, 2, 3, 4, 5, 6]
    assert all(rate > 0 for _, rate in curves["speed/tokens_per_s"])
    assert all(0 <= share < 1 for _, share in curves["speed/data_wait_share"])
    assert all(0 < gib < 64 for _, gib in curves["memory/peak_host_gib"])


def test_mixed_precision_trains_as_float32_does_but_for_rounding(parts, tmp_path):
    losses = {}
    for precision in ("32-true", "bf16-mixed"):
        more = ["stage.max_steps=4", f"name={precision}", f"precision={precision}"]
        run_dir = train.run(compose("train", pretrain(parts, tmp_path, *more)))
        curve = read_metrics(run_dir / "metrics.csv")["train/loss"]
        losses[precision] = [value for _, value in curve]
        assert all(tensor.isfinite().all() for tensor in weights(run_dir / "model").values())
    assert losses["bf16-mixed"] != losses["32-true"]
    assert losses["bf16-mixed"] == pytest.approx(losses["32-true"], rel=2e-2)


def test_what_a_kill_left_behind_is_removed_at_the_next_start(parts, tmp_path):
    """Of a writer that was killed before its result was whole, and of a run killed behind it."""
    cfg = compose("train", pretrain(parts, tmp_path, "stage.max_steps=1"))
    run_dir = tmp_path / "one"
    (run_dir / ".model-killed" / "new").mkdir(parents=True)
    (run_dir / ".mine").mkdir()
    train.run(cfg)
    assert {path.name for path in run_dir.glob(".*")} == {".mine"}
    (run_dir / "checkpoints" / "step-00000000").mkdir(parents=True)
    (run_dir / ".model-killed").mkdir()
    train.run(cfg)
    assert not (run_dir / "checkpoints").exists()
    assert not (run_dir / ".model-killed").exists()
    assert (run_dir / "model" / "config.json").exists()


class Stopped(Exception):
    pass


def stop(*_, **__):
    raise Stopped


def test_only_the_first_process_claims_and_cleans(parts, tmp_path, monkeypatch):
    """Processes that were started from outside all run the script."""
    cfg = compose("train", pretrain(parts, tmp_path, "stage.max_steps=1"))
    run_dir = train.run(cfg)
    (run_dir / "checkpoints").mkdir()
    monkeypatch.setenv("RANK", "1")
    train.run(cfg)
    assert (run_dir / "checkpoints").exists()
    monkeypatch.setattr("revision.training.run.make_trainer", stop)
    other = compose("train", pretrain(parts, tmp_path, "name=other", "stage.max_steps=1"))
    with pytest.raises(Stopped):
        train.run(other)
    assert not (tmp_path / "other").exists()


def test_a_table_of_answers_that_fails_does_not_cost_the_model(parts, tmp_path, monkeypatch):
    monkeypatch.setattr("revision.training.visual_job.log_answers", stop)
    cfg = compose("train", pretrain(parts, tmp_path, "stage.max_steps=1"))
    with pytest.raises(Stopped):
        train.run(cfg)
    assert load_model(train.run(cfg) / "model")


def test_a_finished_run_says_so_and_another_config_is_refused(parts, tmp_path, capsys):
    cfg = compose("train", pretrain(parts, tmp_path, "stage.max_steps=1"))
    run_dir = train.run(cfg)
    before = (run_dir / "model" / "projector.safetensors").stat().st_mtime_ns
    capsys.readouterr()
    train.run(cfg)
    assert "is done" in capsys.readouterr().out
    assert (run_dir / "model" / "projector.safetensors").stat().st_mtime_ns == before
    other = compose("train", pretrain(parts, tmp_path, "stage.max_steps=1", "seed=5"))
    with pytest.raises(ValueError, match="seed was 0 and is now 5"):
        train.run(other)
    neutral = compose("train", pretrain(parts, tmp_path, "stage.max_steps=1", "logger=wandb"))
    train.run(neutral)


def test_a_run_whose_config_was_wrong_may_be_corrected_under_its_name(parts, tmp_path):
    with pytest.raises(ValueError, match="exactly one of data"):
        train.run(
            compose(
                "train",
                overrides(
                    parts,
                    tmp_path,
                    "name=one",
                    "encoder=clip_b32",
                    f"encoder.path={parts / 'clip'}",
                    "encoder.revision=null",
                ),
            )
        )
    train.run(compose("train", pretrain(parts, tmp_path, "stage.max_steps=1")))


def test_instruction_tuning_on_pictures_starts_from_the_pretrained_model(parts, tmp_path, capsys):
    clip = ["encoder=clip_b32", f"encoder.path={parts / 'clip'}", "encoder.revision=null"]
    first = train.run(compose("train", pretrain(parts, tmp_path, "stage.max_steps=2", *clip)))
    sft = compose(
        "train",
        overrides(
            parts,
            tmp_path,
            "stage=sft",
            "name=two",
            f"data.input={parts / 'conversations.json'}",
            f"data.image_root={parts}",
            f"data.index_root={tmp_path / 'index'}",
            f"start_from={first / 'model'}",
            "stage.optimizer.learning_rate=1e-3",
            "stage.template=vicuna_v1",
        ),
    )
    second = train.run(sft)
    assert f"llm and projector come from {first / 'model'}" in capsys.readouterr().out
    model = load_model(second / "model")
    assert model.encoder is not None
    made_of, started = (
        json.loads((run / "model" / "provenance.json").read_text()) for run in (first, second)
    )
    assert made_of["model"]["llm"] == str((parts / "llm").resolve())
    assert made_of["config"]["llm"]["name"] == str(parts / "llm")
    assert Path(started["model"]["llm"]) == first / "model" / "llm"
    assert started["model"]["projector"] == model.projector.options()
    assert not {"llm", "projector"} & started["config"].keys()
    assert model.template == "vicuna_v1"
    before, after = weights(first / "model"), weights(second / "model")
    assert difference(before, after) > 0
    towers = [load_file(run / "model" / "encoder" / "model.safetensors") for run in (first, second)]
    assert difference(*towers) == 0
    answer = model.answer([Image.open(parts / "0.png")], "What is in the image?", 5)
    assert isinstance(answer, str)


def test_pictures_on_the_fly_and_their_features_train_the_same_model(parts, tmp_path):
    encoder = load_encoder(parts / "clip")
    turns = json.loads((parts / "conversations.json").read_text())
    pictures = [Image.open(parts / turn["image"]).convert("RGB") for turn in turns]
    pixels = torch.stack([encoder.image_inputs(picture) for picture in pictures])
    records = list(read_records(parts / "conversations.json", side="both", image_root=parts))
    features = encoder.encode_images(pixels).numpy()
    write_features(tmp_path / "images", features, "image", records, encoder.identity())
    clip = ["encoder=clip_b32", f"encoder.path={parts / 'clip'}", "encoder.revision=null"]
    common = ["stage=sft", "stage.template=vicuna_v1", "stage.optimizer.learning_rate=1e-3", *clip]
    on_the_fly = [f"data.input={parts / 'conversations.json'}", f"data.image_root={parts}"]
    stored = [f"data.shards={tmp_path / 'images'}"]
    one, two = (
        train.run(compose("train", overrides(parts, tmp_path, f"name={name}", *common, *data)))
        for name, data in (("fly", on_the_fly), ("stored", stored))
    )
    assert [step for step, _ in read_metrics(one / "metrics.csv")["train/loss"]] == [1, 2]
    assert difference(weights(one / "model"), weights(two / "model")) < 1e-6
    assert load_model(two / "model").encoder is not None


def test_alignment_on_the_fly_equals_aligned_shards(parts, tmp_path):
    from revision.alignment.apply import apply_alignment
    from revision.shards import ShardReader

    reader = ShardReader(parts / "texts")
    rows = np.concatenate(list(reader.iter_rows()))
    target = rows[:, ::-1] + 0.5
    alignment = ReAlign()
    alignment.fit(Cloud.of(rows), Cloud.of(target))
    save_alignment(alignment, tmp_path / "alignment")
    apply_alignment(alignment, parts / "texts", tmp_path / "shards")
    offline = pretrain(parts, tmp_path / "a", "stage.max_steps=2")
    offline = [o for o in offline if not o.startswith("data.shards")]
    one = train.run(compose("train", [*offline, f"data.shards={tmp_path / 'shards'}"]))
    on_the_fly = f"data.alignment={tmp_path / 'alignment'}"
    two = train.run(
        compose("train", pretrain(parts, tmp_path / "b", "stage.max_steps=2", on_the_fly))
    )
    assert difference(weights(one / "model"), weights(two / "model")) < 1e-6
    for run_dir in (one, two):
        assert (run_dir / "model" / "alignment" / "alignment.json").exists()
    twice = [*offline, f"data.shards={tmp_path / 'shards'}", on_the_fly, "name=three"]
    with pytest.raises(ValueError, match="aligned already"):
        train.run(compose("train", twice))


REFUSALS = {
    "start_from=absent": "start_from=absent does not exist",
    "stage.trainable=[connector.*]": "'connector.*' matches none of the model's",
    "stage.template=vicuna": "unknown template 'vicuna'",
    "data.num_samples=100": "num_samples=100, but the data has 24 records",
}


@pytest.mark.parametrize("override", REFUSALS)
def test_what_cannot_be_trained_is_refused_before_it_claims_a_name(parts, tmp_path, override):
    with pytest.raises(ValueError, match=re.escape(REFUSALS[override])):
        train.run(compose("train", pretrain(parts, tmp_path, override)))
    assert not (tmp_path / "one" / "config.yaml").exists()


def test_features_of_another_encoder_are_refused(parts, tmp_path):
    rows = np.ones((3, 8), np.float32)
    shards = write_features(tmp_path / "x", rows, "text", captions(3), {"name": "other"})
    clip = ["encoder=clip_b32", f"encoder.path={parts / 'clip'}", "encoder.revision=null"]
    with pytest.raises(ValueError, match="made by another encoder: its name is 'other'"):
        train.run(
            compose("train", overrides(parts, tmp_path, "name=o", f"data.shards={shards}", *clip))
        )


def test_held_out_features_and_a_map_of_another_encoder_are_refused(parts, tmp_path):
    rows = np.random.default_rng(0).standard_normal((6, 8)).astype(np.float32)
    other = write_features(tmp_path / "x", rows, "image", captions(6), {"name": "other"})
    clip = ["encoder=clip_b32", f"encoder.path={parts / 'clip'}", "encoder.revision=null"]
    held_out = pretrain(parts, tmp_path, *clip, f"data.val_shards={other}")
    with pytest.raises(ValueError, match=r"x was made by another encoder: its name is 'other'"):
        train.run(compose("train", held_out))
    alignment = ReAlign()
    alignment.fit(Cloud.of(rows), Cloud.of(rows))
    card = {"source": {"encoder": {"name": "other"}}}
    save_alignment(alignment, tmp_path / "alignment", card)
    mapped = pretrain(parts, tmp_path, f"data.alignment={tmp_path / 'alignment'}")
    with pytest.raises(ValueError, match=r"alignment was made by another encoder: .* data\.shards"):
        train.run(compose("train", mapped))


def test_features_of_another_width_are_refused(parts, tmp_path):
    first = train.run(compose("train", pretrain(parts, tmp_path, "stage.max_steps=1")))
    shards = write_features(
        tmp_path / "wide", np.ones((3, 12), np.float32), "text", captions(3), {"name": "x"}
    )
    wide = overrides(
        parts, tmp_path, "name=w", f"data.shards={shards}", f"start_from={first / 'model'}"
    )
    with pytest.raises(ValueError, match=r"training features have width 12 .* reads 8"):
        train.run(compose("train", wide))


def test_data_that_changed_under_a_run_is_refused(parts, tmp_path):
    records, rows = captions(6), np.ones((6, 8), np.float32)
    shards = write_features(tmp_path / "x", rows, "text", records, {"name": "x"})
    cfg = compose("train", overrides(parts, tmp_path, "name=o", f"data.shards={shards}"))
    run_dir = train.run(cfg)
    (run_dir / "model" / "config.json").unlink()
    write_features(shards, 2 * rows, "text", records[:5] + captions(1), {"name": "y"})
    with pytest.raises(ValueError, match=r"data\.shards changed since"):
        train.run(cfg)


@pytest.mark.parametrize("stage", ["contrastive", "contrastive_scratch", "pretrain", "sft"])
def test_every_stage_composes_with_known_optimizer_keys(stage):
    from revision.training.optim import OptimizerSettings

    cfg = compose("train", [f"stage={stage}", "name=x"])
    OptimizerSettings(**cfg.stage.optimizer)
    assert cfg.stage.result == ("encoder" if "contrastive" in stage else "model")


@pytest.fixture(scope="module")
def towers(tmp_path_factory):
    """A pair of towers on disk and rows of 16 paired records, as encoder=towers embeds them."""
    root = tmp_path_factory.mktemp("towers")
    pair = tiny_towers()
    pair.save(root / "towers")
    identity = load_encoder(root / "towers").identity()
    rng = np.random.default_rng(2)
    for side, kind in (("images", "image"), ("texts", "text")):
        rows = rng.standard_normal((16, pair.feature_dim(kind))).astype(np.float32)
        write_features(root / side, rows, kind, captions(16), identity)
    return root


def contrastive(towers, runs, *more):
    return [
        "stage=contrastive",
        "encoder=clipart",
        f"encoder.path={towers / 'towers'}",
        f"data.images={towers / 'images'}",
        f"data.texts={towers / 'texts'}",
        f"data.val_images={towers / 'images'}",
        f"data.val_texts={towers / 'texts'}",
        f"run_root={runs}",
        "name=heads",
        "accelerator=cpu",
        "precision=32-true",
        "progress=false",
        "stage.batch_size=8",
        "stage.epochs=20",
        "stage.optimizer.learning_rate=1e-2",
        "stage.heads.dim=6",
        *more,
    ]


def test_contrastive_leaves_an_encoder_that_retrieves_its_training_pairs(towers, tmp_path):
    run_dir = train.run(compose("train", contrastive(towers, tmp_path)))
    curves = read_metrics(run_dir / "metrics.csv")
    assert len(curves["train/loss"]) == 40
    assert curves["val/loss"][-1][1] < curves["train/loss"][0][1] / 2
    assert curves["val/i2t_r1"][-1][1] > 90
    encoder = load_encoder(run_dir / "encoder")
    assert encoder.dim == 6
    assert encoder.card["training"]["logit_scale_kind"] == "fixed"
    assert encoder.card["held_out"]["validation"]["num_pairs"] == 16


def test_the_logit_scale_is_learned_where_the_stage_says_so(towers, tmp_path):
    learned = "stage.trainable=['*_head.weight',log_scale]"
    run_dir = train.run(compose("train", contrastive(towers, tmp_path, learned)))
    training = load_encoder(run_dir / "encoder").card["training"]
    assert training["logit_scale_kind"] == "learned"
    assert training["logit_scale"] != 50


def test_heads_need_towers(parts, towers, tmp_path):
    with pytest.raises(ValueError, match="give encoder=towers"):
        train.run(compose("train", contrastive(towers, tmp_path, f"encoder.path={parts / 'clip'}")))


@pytest.mark.slow
def test_a_killed_run_continues_to_the_same_weights(parts, tmp_path):
    """SIGKILL while it trains; the command again; against a run that was left alone."""
    settings = ["stage.max_steps=30", "val_every=10", "checkpoint_steps=3"]
    whole = command(*pretrain(parts, tmp_path / "whole", *settings))  # as many threads as the other
    assert whole.returncode == 0, whole.stderr
    arguments = pretrain(parts, tmp_path / "killed", *settings)
    process = subprocess.Popen(
        [sys.executable, "train.py", *arguments],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    checkpoints = tmp_path / "killed" / "one" / "checkpoints"
    while not list(checkpoints.glob("step-*")):
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert not (tmp_path / "killed" / "one" / "model").exists()
    done = command(*arguments)
    assert done.returncode == 0, done.stderr
    assert "Continuing after step" in done.stdout
    one, two = (tmp_path / name / "one" for name in ("whole", "killed"))
    assert difference(weights(one / "model"), weights(two / "model")) == 0
    curves = [read_metrics(run_dir / "metrics.csv") for run_dir in (one, two)]
    for name in ("train/loss", "val/loss"):
        assert curves[0][name] == curves[1][name]


@pytest.mark.slow
def test_a_user_error_ends_with_one_line_and_status_1(parts, tmp_path):
    done = command(*pretrain(parts, tmp_path, "start_from=absent"))
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1] == (
        "error: start_from=absent does not exist (absent: no such input file); correct the path"
    )


@pytest.mark.slow
def test_a_sweep_gives_every_job_its_directory(parts, tmp_path):
    sweep = ["-m", "data.num_samples=4,8", "data.max_caption_words=1,2", "stage.max_steps=1"]
    done = command(*sweep, *pretrain(parts, tmp_path))
    assert done.returncode == 0, done.stderr
    runs = sorted(path.name for path in (tmp_path / "one").iterdir() if path.name[0] != ".")
    assert runs == [
        f"data.max_caption_words={words},data.num_samples={samples}"
        for words in (1, 2)
        for samples in (4, 8)
    ]
    for run in runs:
        assert (tmp_path / "one" / run / "model" / "config.json").exists()


@pytest.mark.slow
def test_a_sweep_over_lengths_takes_a_third_each(parts, tmp_path):
    sweep = ["-m", "data.caption_length=short,medium,long", "stage.max_steps=1"]
    done = command(*sweep, *pretrain(parts, tmp_path))
    assert done.returncode == 0, done.stderr
    kept = []
    for length in ("short", "medium", "long"):
        run = tmp_path / "one" / f"data.caption_length={length}"
        made = json.loads((run / "model" / "provenance.json").read_text())
        ((key, selection),) = made["selection"].items()
        assert key == "data.shards"
        assert f"{key}: {selection['num_kept']} of 24 records kept" in done.stdout
        kept.append(selection["num_kept"])
    assert sum(kept) == 24 and max(kept) < 24


def test_a_run_with_other_controls_is_refused(parts, tmp_path):
    options = pretrain(parts, tmp_path, "stage.max_steps=1", "data.caption_length=short")
    run_dir = train.run(compose("train", options))
    made = json.loads((run_dir / "model" / "provenance.json").read_text())
    assert len(made["selection"]) == 1
    with pytest.raises(ValueError, match=r"data.caption_length was 'short' and is now 'long'"):
        train.run(compose("train", [*options, "data.caption_length=long"]))
    with pytest.raises(ValueError, match=r"short, medium, long or .* got 'tall'"):
        train.run(compose("train", [*options, "data.caption_length=tall", "name=two"]))


@pytest.mark.slow
def test_a_job_of_a_sweep_with_two_processes_gets_its_own(parts, tmp_path):
    sweep = ["-m", "data.num_samples=4,8", "stage.max_steps=1", "devices=2", "strategy=ddp"]
    done = command(*sweep, *[o for o in pretrain(parts, tmp_path) if o != "devices=1"])
    assert done.returncode == 0, done.stderr
    for run in (tmp_path / "one").iterdir():
        assert (run / "model" / "config.json").exists()


def sft(parts, runs, name, *more):
    return overrides(
        parts,
        runs,
        "stage=sft",
        f"name={name}",
        f"data.shards={parts / 'texts'}",
        f"data.val_shards={parts / 'val'}",
        "stage.optimizer.learning_rate=1e-3",
        "stage.optimizer.max_grad_norm=0.5",
        "stage.template=vicuna_v1",
        "stage.max_steps=3",
        "val_every=2",
        *more,
    )


@pytest.fixture(scope="module")
def one_process(parts, tmp_path_factory):
    runs = tmp_path_factory.mktemp("runs")
    whole = ["stage.batch_size=4", "stage.accumulate=2"]
    run_dir = train.run(compose("train", sft(parts, runs, "one", *whole)))
    return weights(run_dir / "model"), read_metrics(run_dir / "metrics.csv")


STRATEGIES = sorted(
    path.stem for path in (ROOT / "conf/strategy").glob("*.yaml") if path.stem != "auto"
)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_strategy_leaves_the_model_directory_of_one_process(
    parts, tmp_path, one_process, strategy
):
    """The real model, two processes over gloo, projector and language model trained."""
    two = ["devices=2", f"strategy={strategy}", "stage.batch_size=2", "stage.accumulate=2"]
    done = command(*[o for o in sft(parts, tmp_path, "two", *two) if o != "devices=1"])
    assert done.returncode == 0, done.stderr[-3000:]
    expected, curves = one_process
    assert difference(expected, weights(tmp_path / "two" / "model")) < 2e-6  # measured 6e-7
    found = read_metrics(tmp_path / "two" / "metrics.csv")
    for name in ("train/loss", "val/loss", "train/gradient_norm"):
        values = [value for _, value in curves[name]]
        assert [value for _, value in found[name]] == pytest.approx(values, rel=1e-5)


def test_wandb_without_a_key_runs_offline(parts, tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    logger = ["logger=wandb", "num_answers=2", "stage.max_steps=1"]
    run_dir = train.run(compose("train", pretrain(parts, tmp_path, *logger)))
    (offline,) = (run_dir / "wandb").glob("offline-run-*")
    assert list(offline.rglob("answers*.json"))
    assert wandb.run is None  # the next job of a sweep starts a run of its own
