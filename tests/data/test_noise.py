"""Noise on the fly: a function of (seed, record, epoch), whatever loads the rows in what order."""

import lightning as L
import numpy as np
import pytest
import torch

import align
from revision.alignment import Cloud
from revision.alignment.apply import apply_alignment
from revision.alignment.methods.mean_shift import MeanShift
from revision.alignment.methods.none import NoAlignment
from revision.alignment.noise import Disturbed, GaussianNoise
from revision.alignment.storage import load_alignment
from revision.config import compose
from revision.data.plan import EpochPlan, StepPlan
from revision.data.schedule import Schedule
from revision.data.shard_source import ShardSource
from revision.data.turn_encoder import TurnEncoder
from revision.data.visual_datamodule import VisualDataModule
from revision.data.windows import WindowDataset, WindowLoader
from tests.feature_sets import cloud, write_set
from tests.tiny_models import bpe_tokenizer

DIM, ROWS = 8, 30
NOISE = GaussianNoise(std=0.2, seed=5)
TURNS = TurnEncoder(bpe_tokenizer(), "plain")


@pytest.fixture
def rows() -> np.ndarray:
    return cloud(1, ROWS, DIM)


def noised(method, rows: np.ndarray, **options):
    alignment = method(**options)
    alignment.fit(Cloud.of(rows), Cloud.of(cloud(2, ROWS, DIM)))
    alignment.add_noise(NOISE)
    return alignment


def seen(source: ShardSource, epoch: int = 0) -> torch.Tensor:
    return torch.cat([source.sample(i, epoch).visual[:, 0] for i in range(ROWS)])


def visits(source: ShardSource, **options) -> dict[tuple[int, str], bytes]:
    """Every (epoch, record id) that three epochs show, with the row that was shown."""
    workers = options.pop("num_workers", 0)
    found: dict[tuple[int, str], bytes] = {}
    for rank in range(options.get("world_size", 1)):
        plan = StepPlan(
            EpochPlan(source.block_sizes, seed=options.pop("seed", 0)), rank=rank, **options
        )
        steps = plan.end(2)
        loader = WindowLoader(
            WindowDataset(source, plan),
            num_steps=steps,
            batches_per_step=plan.accumulate,
            num_workers=workers,
        )
        for index, batch in enumerate(loader):
            epoch = plan.place(index // plan.accumulate).epoch
            if batch.visual is not None:
                shown = zip(batch.ids, batch.visual[:, 0], strict=True)
                found |= {(epoch, id): row.numpy().tobytes() for id, row in shown}
    return found


def test_workers_batches_processes_shards_and_order_change_no_bit(rows, tmp_path):
    one = write_set(tmp_path / "one", rows, "text")
    cut = write_set(tmp_path / "cut", rows, "text", shard_rows=11, block_rows=4)
    expected = visits(ShardSource(one, TURNS, alignment=Disturbed(NOISE)), batch_size=5)
    assert len(expected) == 3 * ROWS == len(set(expected.values()))
    source = ShardSource(cut, TURNS, alignment=Disturbed(NOISE))
    for options in (
        {"batch_size": 1},
        {"batch_size": 7, "accumulate": 2, "seed": 3},
        {"batch_size": 4, "num_workers": 2},
        {"batch_size": 3, "world_size": 2},
    ):
        assert visits(source, **options) == expected, options


def test_the_command_line_writes_the_same_noise(rows, tmp_path):
    text = write_set(tmp_path / "text", rows, "text")
    image = write_set(tmp_path / "image", cloud(2, ROWS, DIM), "image")
    where = [f"source={text}", f"target={image}", f"output_dir={tmp_path / 'out'}", "report=null"]
    align.run(compose("align", ["alignment=mean_shift", "noise=close", *where]))
    alignment = load_alignment(tmp_path / "out" / "alignment")
    assert alignment.noise == GaussianNoise(std=0.04)
    offline = seen(ShardSource(tmp_path / "out" / "shards", TURNS))
    assert torch.equal(seen(ShardSource(text, TURNS, alignment=alignment)), offline)
    with pytest.raises(ValueError, match="holds a map fitted with noise"):
        align.run(compose("align", ["alignment=mean_shift", "noise=capdec", *where]))
    with pytest.raises(ValueError, match="takes no second noise"):
        align.run(compose("align", ["alignment=c3", "noise=close", *where]))


@pytest.mark.parametrize("method", [NoAlignment, MeanShift])
def test_epoch_0_on_the_fly_is_what_is_written_offline(method, rows, tmp_path):
    text = write_set(tmp_path / "text", rows, "text", shard_rows=13)
    apply_alignment(noised(method, rows), text, tmp_path / "shards")
    offline = seen(ShardSource(tmp_path / "shards", TURNS))
    on_the_fly = ShardSource(text, TURNS, alignment=noised(method, rows))
    assert torch.equal(seen(on_the_fly), offline)
    assert (seen(on_the_fly, epoch=1) - offline).abs().amax(1).min() > 1e-3


def test_noise_alone_is_noise_on_the_map_that_does_nothing(rows, tmp_path):
    text = write_set(tmp_path / "text", rows, "text")
    alone = ShardSource(text, TURNS, alignment=Disturbed(NOISE))
    mapped = ShardSource(text, TURNS, alignment=noised(NoAlignment, rows))
    assert torch.equal(seen(alone, 2), seen(mapped, 2))
    assert (seen(alone).double().norm(dim=1) - 1).abs().max() < 2e-7


def test_rows_that_are_not_to_be_normalised_keep_their_norm(rows, tmp_path):
    alignment = MeanShift(normalize=False)
    alignment.fit(Cloud.of(rows), Cloud.of(cloud(2, ROWS, DIM)))
    text = write_set(tmp_path / "text", rows, "text")
    apply_alignment(alignment, text, tmp_path / "shards")
    offline = seen(ShardSource(tmp_path / "shards", TURNS))
    assert torch.equal(seen(ShardSource(text, TURNS, alignment=alignment)), offline)
    assert (offline.norm(dim=1) - 1).abs().max() > 0.05


def test_held_out_rows_are_not_disturbed(rows, tmp_path):
    text = write_set(tmp_path / "text", rows, "text")
    data = VisualDataModule(
        turns=TURNS,
        shards=text,
        val_shards=text,
        alignment=Disturbed(NOISE),
        schedule=Schedule(batch_size=4),
    )
    assert isinstance(data, L.LightningDataModule)
    train, held_out = data.sources
    assert torch.equal(seen(held_out), seen(ShardSource(text, TURNS)))
    assert (seen(train) - seen(held_out)).abs().amax(1).min() > 1e-3
