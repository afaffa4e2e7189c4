"""DataModules under a real Lightning trainer: order, resumption, held-out data, refusals."""

import json
from dataclasses import fields

import lightning as L
import pytest
import torch

from revision.captions import Controls
from revision.data.pairs_datamodule import PairedRowsDataModule
from revision.data.schedule import Schedule
from revision.data.turn_encoder import TurnEncoder
from revision.data.visual_datamodule import VisualDataModule
from tests.feature_sets import cloud, write_set
from tests.tiny_encoders import tiny_composed
from tests.tiny_models import bpe_tokenizer

QUIET = {
    "accelerator": "cpu",
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


class Recorder(L.LightningModule):
    """Remembers the batches that Lightning hands it, and moves one weight."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen, self.held_out = [], []

    def training_step(self, batch, index):
        self.seen.append((self.global_step, batch.ids, batch.window_targets, batch.num_targets))
        return self.weight * 1.0

    def validation_step(self, batch, index):
        self.held_out.append(batch)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    directory = tmp_path_factory.mktemp("sets")
    write_set(directory / "train", cloud(0, 21, 4), "text", block_rows=4)
    write_set(directory / "val", cloud(1, 7, 4), "image", block_rows=4)
    return directory


def scheduled(options):
    """Options of a DataModule, with those of its schedule in one."""
    names = {field.name for field in fields(Schedule)}
    rest = {name: value for name, value in options.items() if name not in names}
    return rest | {"schedule": Schedule(**{n: options[n] for n in names & options.keys()})}


def data(shards, template="plain", **options):
    turns = TurnEncoder(bpe_tokenizer(), template)
    return VisualDataModule(turns=turns, shards=shards / "train", **scheduled(options))


def trainer(**options):
    return L.Trainer(**QUIET, **{"max_epochs": 1} | options)


def run(datamodule, recorder=None, ckpt_path=None, **options):
    recorder = recorder or Recorder()
    fit = trainer(accumulate_grad_batches=datamodule.schedule.accumulate, **options)
    fit.fit(recorder, datamodule=datamodule, ckpt_path=ckpt_path)
    return recorder, fit


class SaveAt(L.Callback):
    """Save after optimiser step `step`, as a run does that is killed later."""

    def __init__(self, step, path):
        self.step, self.path = step, path

    def on_train_batch_end(self, trainer, module, outputs, batch, index):
        if trainer.global_step == self.step and not self.path.exists():
            trainer.save_checkpoint(self.path)


def test_lightning_sees_every_sample_once_per_epoch_in_whole_steps(shards):
    module = data(shards, batch_size=2, accumulate=3, epochs=2)
    assert module.num_steps() == 8
    recorder, fit = run(module)
    assert fit.global_step == 8
    ids = [id for _, batch_ids, _, _ in recorder.seen for id in batch_ids if id]
    assert sorted(ids) == sorted(2 * [str(n) for n in range(21)])
    for step in range(8):
        window = [entry for entry in recorder.seen if entry[0] == step]
        assert len(window) == 3
        assert {entry[2] for entry in window} == {sum(entry[3] for entry in window)}


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("stop", [1, 5])
def test_a_resumed_run_continues_the_order(shards, tmp_path, stop, num_workers):
    options = {"batch_size": 2, "accumulate": 2, "epochs": 2, "num_workers": num_workers}
    state = tmp_path / "state"
    whole, _ = run(data(shards, **options), callbacks=[SaveAt(stop, state)])
    rest, fit = run(data(shards, **options), ckpt_path=state)
    assert rest.seen == whole.seen[2 * stop :]
    assert fit.global_step == 12


def test_max_steps_and_num_samples_set_the_length(shards):
    assert data(shards, batch_size=2, max_steps=50).num_steps() == 50
    assert data(shards, batch_size=2, captions=Controls(num_samples=8)).num_steps(world_size=2) == 2
    recorder, _ = run(data(shards, batch_size=2, captions=Controls(num_samples=3), epochs=2))
    assert len({id for _, ids, _, _ in recorder.seen for id in ids}) == 3


def test_held_out_data_is_whole_real_and_uncut(shards):
    module = data(
        shards, batch_size=2, val_shards=shards / "val", val_batch_size=3,
        captions=Controls(max_caption_words=1), alignment=Negate(),
    )  # fmt: skip
    recorder, _ = run(module, num_sanity_val_steps=0)
    assert [id for batch in recorder.held_out for id in batch.ids] == [str(n) for n in range(7)]
    rows = torch.cat([batch.visual for batch in recorder.held_out])[:, 0]
    assert torch.allclose(rows, torch.nn.functional.normalize(torch.from_numpy(cloud(1, 7, 4))))
    trained = module.sources[0].sample(0).visual[0, 0]
    assert torch.allclose(trained, -torch.nn.functional.normalize(torch.tensor(cloud(0, 21, 4)))[0])
    counts = [batch.window_targets for batch in recorder.held_out]
    assert counts == [batch.num_targets for batch in recorder.held_out]
    assert counts[0] / 3 > module.sources[0].sample(0).num_targets


class Negate:
    is_random, normalize = False, True

    def __call__(self, rows, keys):
        return -rows


def test_pairs_under_lightning(shards, tmp_path):
    text = write_set(tmp_path / "text", cloud(2, 21, 6), "text")
    schedule = Schedule(batch_size=8, epochs=2)
    module = PairedRowsDataModule(images=shards / "train", texts=text, schedule=schedule)
    assert module.num_steps() == 6
    seen = []

    class Pairs(Recorder):
        def training_step(self, batch, index):
            seen.append((batch["image"].shape, batch["text"].shape, batch.window_targets))
            return self.weight * 1.0

    run(module, Pairs())
    assert seen == 2 * [((8, 4), (8, 6), 8), ((8, 4), (8, 6), 8), ((5, 4), (5, 6), 5)]


def test_refusals(shards, tmp_path):
    turns, schedule = TurnEncoder(bpe_tokenizer(), "plain"), Schedule(batch_size=1)
    with pytest.raises(ValueError, match=r"exactly one of data.shards .* and data.input"):
        VisualDataModule(turns=turns, schedule=schedule)
    with pytest.raises(ValueError, match=r"exactly one of data.val_shards .* and data.val_input"):
        data(shards, batch_size=1, val_shards="a", val_input="b")
    (tmp_path / "x.json").write_text("[]")
    with pytest.raises(ValueError, match=r"holds pictures and this model has no encoder"):
        VisualDataModule(turns=turns, input=tmp_path / "x.json", schedule=schedule).num_steps()
    with pytest.raises(ValueError, match="not a feature set"):
        VisualDataModule(turns=turns, shards=tmp_path, schedule=schedule).num_steps()
    with pytest.raises(ValueError, match="held-out pairs need both"):
        PairedRowsDataModule(images="a", texts="b", val_images="c", schedule=schedule)


@pytest.mark.parametrize("rank", [0, 1])
def test_the_first_process_says_how_many_records_were_rejected(tmp_path, capsys, monkeypatch, rank):
    monkeypatch.setattr("lightning.pytorch.utilities.rank_zero_only.rank", rank)
    turns = [{"from": "human", "value": "Is it?"}, {"from": "gpt", "value": "Yes."}]
    records = [{"id": "good", "conversations": turns}, {"id": "silent", "conversations": turns[:1]}]
    path = tmp_path / "data.json"
    path.write_text(json.dumps(records))
    module = VisualDataModule(
        turns=TurnEncoder(bpe_tokenizer(), "chat"),
        input=path,
        encoder=tiny_composed(),
        index_root=tmp_path / "index",
        schedule=Schedule(batch_size=1),
    )
    module.prepare_data()
    told = [line for line in capsys.readouterr().out.splitlines() if "rejected" in line]
    quarantine = next((tmp_path / "index").glob("*/quarantine.jsonl"))
    expected = f"{path}: 1 records, 1 rejected, see {quarantine}"
    assert told == ([expected] if rank == 0 else [])
