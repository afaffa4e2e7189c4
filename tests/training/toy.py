"""A toy model and data for the laws of training; also a script for several processes.

    python toy.py <settings as JSON>

trains and writes the trained weights of the whole model to `<directory>/weights.pt`.
"""

import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Sampler

VOCABULARY, WIDTH, SEED = 11, 8, 3


class LossSum(NamedTuple):
    loss: Tensor
    num_targets: int


@dataclass
class ToyBatch:
    tokens: Tensor
    lengths: Tensor
    window_targets: int = 0

    def __len__(self) -> int:
        return len(self.lengths)

    def to(self, device: Any, non_blocking: bool = False) -> "ToyBatch":
        return replace(self, tokens=self.tokens.to(device), lengths=self.lengths.to(device))


class Toy(nn.Module):
    """A frozen embedding, two trained layers in a list, a trained head."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(SEED)
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.projector = nn.Linear(WIDTH, WIDTH)
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(2))
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)

    def forward(self, batch: ToyBatch) -> LossSum:
        hidden = self.projector(self.embedding(batch.tokens[:, :-1]))
        for layer in self.layers:
            hidden = hidden + torch.tanh(self.dropout(layer(hidden)))
        positions = torch.arange(hidden.shape[1], device=hidden.device)
        is_target = positions < (batch.lengths - 1)[:, None]
        losses = nn.functional.cross_entropy(
            self.head(hidden).flatten(0, 1).float(),
            batch.tokens[:, 1:].flatten(),
            reduction="none",
        )
        return LossSum((losses * is_target.flatten()).sum(), int(is_target.sum()))


class MicroBatches(Dataset):
    """Item i is this rank's micro-batch i; the samples of a step do not depend on how it is cut."""

    def __init__(
        self, *, samples: list[Tensor], rank: int, world: int, batch: int, accumulate: int
    ):
        self.samples = samples
        self.rank, self.world, self.batch, self.accumulate = rank, world, batch, accumulate

    def _chosen(self, index: int) -> list[Tensor]:
        step, micro = divmod(index, self.accumulate)
        size = self.batch * self.accumulate * self.world
        start = step * size + (micro * self.world + self.rank) * self.batch
        return [self.samples[(start + k) % len(self.samples)] for k in range(self.batch)]

    def __getitem__(self, index: int) -> ToyBatch:
        first = index - index % self.accumulate
        window = [s for i in range(self.accumulate) for s in self._chosen(first + i)]
        batch = pad(self._chosen(index))
        return replace(batch, window_targets=sum(len(s) - 1 for s in window))


class From(Sampler):
    """Says the full length and starts where the trainer stands."""

    def __init__(self, total: int, trainer: L.Trainer) -> None:
        self.total, self.trainer = total, trainer

    def __len__(self) -> int:
        return self.total

    def __iter__(self):
        start = self.trainer.global_step * self.trainer.accumulate_grad_batches
        return iter(range(start, self.total))


class ToyData(L.LightningDataModule):
    def __init__(self, *, batch: int, accumulate: int, total_steps: int, validate: bool) -> None:
        super().__init__()
        self.batch, self.accumulate, self.total_steps = batch, accumulate, total_steps
        self.validate = validate

    def _loader(self, samples: list[Tensor], start: bool) -> DataLoader:
        trainer = self.trainer
        data = MicroBatches(
            samples=samples,
            rank=trainer.global_rank,
            world=trainer.world_size,
            batch=self.batch,
            accumulate=self.accumulate if start else 1,
        )
        total = self.total_steps * self.accumulate if start else 2
        sampler = From(total, trainer) if start else range(total)
        return DataLoader(data, batch_size=None, sampler=sampler)

    def train_dataloader(self) -> DataLoader:
        return self._loader(toy_samples(), start=True)

    def val_dataloader(self) -> Any:
        return self._loader(toy_samples()[:8], start=False) if self.validate else []


def toy_samples() -> list[Tensor]:
    """24 sequences of 2 to 9 tokens: the number of targets differs from sample to sample."""
    generator = torch.Generator().manual_seed(SEED)
    lengths = torch.randint(2, 10, (24,), generator=generator)
    return [torch.randint(0, VOCABULARY, (int(n),), generator=generator) for n in lengths]


def pad(samples: list[Tensor]) -> ToyBatch:
    lengths = torch.tensor([len(s) for s in samples])
    return ToyBatch(nn.utils.rnn.pad_sequence(samples, batch_first=True), lengths)


class Killed(Exception):
    pass


class StopAfter(L.Callback):
    """Simulates a kill: after the given optimiser step, or in the middle of its validation."""

    def __init__(self, step: int, *, in_validation: bool = False) -> None:
        self.step, self.in_validation = step, in_validation

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            raise Killed

    def on_validation_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if self.in_validation and trainer.global_step == self.step:
            raise Killed


def train_toy(directory: Path, **chosen: Any) -> dict[str, Tensor]:
    """Train the toy with `chosen` settings; `stop_after` interrupts it after that step."""
    from revision.training import strategies
    from revision.training.module import TrainingModule
    from revision.training.optim import OptimizerSettings
    from revision.training.run import RunSettings, fit, make_trainer

    defaults = {"batch": 8, "accumulate": 1, "steps": 3, "world": 1, "strategy": "auto"}
    chosen = defaults | chosen
    clip = chosen.get("max_grad_norm")
    module = TrainingModule(
        Toy(dropout=chosen.get("dropout", 0.0)),
        trainable=["projector.*", "layers.*", "head.*"],
        optimizer=OptimizerSettings(
            learning_rate=1e-2, projector_learning_rate=3e-2, weight_decay=0.1, max_grad_norm=clip
        ),
        total_steps=chosen["steps"],
        seed=SEED,
    )
    name, *arguments = chosen["strategy"].split(":")
    options = dict(zip(("stage", "offload"), map(int, arguments), strict=False))
    settings = RunSettings(
        accumulate=chosen["accumulate"],
        max_grad_norm=clip,
        accelerator="cpu",
        devices=chosen["world"],
        precision=chosen.get("precision", "32-true"),
        val_every=chosen.get("val_every"),
        checkpoint_steps=chosen.get("checkpoint_steps"),
        progress=False,
    )
    stop = []
    if "stop_after" in chosen:
        in_validation = chosen.get("stop_in_validation", False)
        stop = [StopAfter(chosen["stop_after"], in_validation=in_validation)]
    trainer = make_trainer(
        directory,
        settings,
        total_steps=chosen["steps"],
        strategy=getattr(strategies, name)(**options),
        callbacks=stop,
    )
    data = ToyData(
        batch=chosen["batch"],
        accumulate=chosen["accumulate"],
        total_steps=chosen["steps"],
        validate="val_every" in chosen,
    )
    try:
        return fit(trainer, module, data, directory)
    except Killed:
        return {}


if __name__ == "__main__":
    settings = json.loads(sys.argv[1])
    target = Path(settings.pop("directory"))
    weights = train_toy(target, **settings)
    if weights:
        torch.save(weights, target / "weights.pt")
