"""Runs that write down which samples they see; also a script for several processes.

    python resume_runs.py <runs as a JSON list>

carries the runs out one after the other in the same processes, as `run_recorded` does.
"""

import json
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from revision.data.schedule import Schedule
from revision.data.turn_encoder import TurnEncoder
from revision.data.visual_datamodule import VisualDataModule
from revision.models.loss import LossSum
from revision.records import Record, Turn
from revision.shards import ShardWriter, write_header
from revision.training import strategies
from revision.training.module import TrainingModule
from revision.training.optim import OptimizerSettings
from revision.training.resume import continue_data
from revision.training.run import RunSettings, fit, make_trainer
from tests.tiny_models import bpe_tokenizer
from tests.training.toy import Killed, StopAfter

DIM = 4
SETS = {"cats": [3, 4, 2, 4, 1, 7], "dogs": [5, 1, 7]}  # records of each block, two to a shard


def write_sets(directory: Path, dim: int = DIM) -> None:
    """Text-only, single- and multi-image conversations of several lengths, in uneven shards."""
    rng = np.random.default_rng(0)
    for name, blocks in SETS.items():
        number = 0
        for shard in range(0, len(blocks), 2):
            with ShardWriter(directory / name, shard // 2, dim, "float32") as writer:
                for size in blocks[shard : shard + 2]:
                    numbers = range(number, number + size)
                    pictures = [n % 3 for n in numbers]
                    records = [record(f"{name}-{n}", n % 3, n) for n in numbers]
                    writer.add_block(rng.standard_normal((sum(pictures), dim)), records, pictures)
                    number += size
        header = {"encoder": {"name": "x"}, "source": {"input": "test"}, "kind": "image"}
        write_header(directory / name, num_shards=len(blocks) // 2 + len(blocks) % 2, **header)


def record(id: str, num_images: int, length: int) -> Record:
    question = "<image>" * num_images + "Is it a cat?"
    answer = "Yes. " * (1 + length % 5)
    return Record(id=id, conversations=(Turn("user", question), Turn("assistant", answer)))


class Remember(nn.Module):
    """Writes the ids of its batches into `directory`; its gradient depends on them."""

    def __init__(self, directory: Path) -> None:
        super().__init__()
        self.directory = directory
        self.weight = nn.Parameter(torch.zeros(2))
        self.step = self.rank = 0

    def forward(self, batch: Any) -> LossSum:
        with (self.directory / f"seen-{self.rank}.jsonl").open("a") as file:
            ids = [id for id in batch.ids if id]
            file.write(json.dumps([self.step, ids, int(batch.lengths.sum())]) + "\n")
        features = torch.stack([batch.input_ids.clamp(min=0).sum(), batch.lengths.sum()])
        return LossSum((self.weight * features).sum() / 1000, batch.num_targets)


class Recorded(TrainingModule):
    def on_train_batch_start(self, *_: Any) -> None:
        self.model.step, self.model.rank = self.trainer.global_step, self.global_rank


def data_of(sets: Path, kind: str, **options: Any) -> VisualDataModule:
    cats, dogs = str(sets / "cats"), str(sets / "dogs")
    sources: dict[str, Any] = {
        "plain": {"shards": cats},
        "mixture": {"mixture": [{"shards": cats}, {"shards": dogs, "weight": 1.5}]},
    }
    packed = {"pack_tokens": 60, "tokens": "cached"}
    return VisualDataModule(
        turns=TurnEncoder(bpe_tokenizer(), "vicuna_v1"),
        shuffle_blocks=2,
        token_root=sets / "tokens",
        **sources[kind.removeprefix("packed ")],
        **options | (packed if kind.startswith("packed") else {}),
    )


def run_recorded(directory: Path, sets: Path, **chosen: Any) -> None:
    """One run; `stop_after` interrupts it after that step. Ids go to `seen-<process>.jsonl`."""
    chosen = {"world": 1, "accumulate": 1, "batch_size": 4, "epochs": 2, "workers": 0} | chosen
    data = data_of(
        sets,
        chosen["kind"],
        schedule=Schedule(
            batch_size=chosen["batch_size"],
            accumulate=chosen["accumulate"],
            epochs=chosen["epochs"],
            max_tokens=chosen.get("max_tokens"),
        ),
        num_workers=chosen["workers"],
        tokens=chosen.get("tokens", "online"),
    )
    continue_data(data, directory)
    steps = data.num_steps(chosen["world"])
    settings = RunSettings(
        accumulate=chosen["accumulate"],
        accelerator="cpu",
        devices=chosen["world"],
        precision="32-true",
        checkpoint_steps=1,
        progress=False,
    )
    stop = [StopAfter(chosen["stop_after"])] if "stop_after" in chosen else []
    trainer = make_trainer(
        directory, settings, total_steps=steps, strategy=strategies.auto(), callbacks=stop
    )
    model = Remember(directory)
    module = Recorded(
        model,
        trainable=["weight"],
        optimizer=OptimizerSettings(learning_rate=1e-2),
        total_steps=steps,
    )
    with suppress(Killed):
        fit(trainer, module, data, directory)


if __name__ == "__main__":
    for settings in json.loads(sys.argv[1]):
        run_recorded(Path(settings.pop("directory")), Path(settings.pop("sets")), **settings)
