"""How each of the layouts of `load_stores.py` is read in training: one epoch, in shuffled batches.

    ours      the path of train.py: VisualDataModule -> plan -> ShardSource -> WindowLoader, with
              token ids, labels and unit rows; texts were tokenised before (tokens=cached)
    online    the same with texts tokenised while they are read
    stored    the rows alone, as they are stored, in the order of ours
    dict      every pickle of the public code into one dict by id, rows stacked from it
    singles   one member per row, through webdataset.WebDataset and WebLoader
    trained   the same made into what ours gives: tokenised, rows of norm 1
    blocks    our shards through plain webdataset, a block at a time
    limit     nothing but a gather: every row copied once from mapped memory, in the order of ours

Ours, `online` and `trained` hand over token ids, labels and rows of norm 1, ready for the model;
the others rows, and captions but for `stored` and `limit`, as they are stored.
"""

import io
import json
import pickle
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from bench_align import BLOCK_ROWS

SEED = 0


@dataclass
class Rows:
    """A batch. `texts` are captions, or what a tokenizer made of them."""

    ids: list[str]
    rows: Any
    texts: Any


@dataclass
class Job:
    """What one process reads."""

    directory: Path
    tokenizer: str
    dim: int
    batch_size: int = 256
    rank: int = 0
    world_size: int = 1
    first_step: int = 0


Reader = Callable[[Job], Iterator[Rows]]


def ours(job: Job, tokens: str = "cached") -> Reader:
    import torch
    from transformers import AutoTokenizer

    from revision.data.schedule import Schedule
    from revision.data.turn_encoder import TurnEncoder
    from revision.data.visual_datamodule import VisualDataModule

    torch.set_num_threads(1)
    turns = TurnEncoder(AutoTokenizer.from_pretrained(job.tokenizer), "plain")  # the model's own

    def read(job: Job) -> Iterator[Rows]:
        data = VisualDataModule(
            turns=turns,
            shards=job.directory / "shards",
            schedule=Schedule(batch_size=job.batch_size, seed=SEED),
            tokens=tokens,
            token_root=job.directory / "tokens",
        )
        data.trainer: Any = SimpleNamespace(  # what the module asks of Lightning's trainer
            global_rank=job.rank,
            world_size=job.world_size,
            global_step=job.first_step,
            strategy=SimpleNamespace(root_device=torch.device("cpu")),
        )
        for batch in data.train_dataloader():
            if batch.visual is not None:
                yield Rows(batch.ids, batch.visual[:, 0], batch.labels)

    return read


def stored(job: Job) -> Reader:
    from revision.data.plan import EpochPlan, StepPlan
    from revision.data.rows import StoredRows

    def read(job: Job) -> Iterator[Rows]:
        rows = StoredRows(job.directory / "shards")
        sizes = [block.rows for block in rows.reader.blocks]
        order = EpochPlan(sizes, block_shards=rows.block_shards, seed=SEED)
        plan = StepPlan(order, job.batch_size, rank=job.rank, world_size=job.world_size)
        for step in range(job.first_step, plan.end(0)):
            chosen = np.array(plan.window(step)[0], np.int64)
            if len(chosen):
                yield Rows([], rows.gather(chosen), chosen)

    return read


def dictionary(job: Job) -> Reader:
    def read(job: Job) -> Iterator[Rows]:
        store: dict[str, Any] = {}
        for path in sorted((job.directory / "pickles").glob("*.pkl")):
            with open(path, "rb") as file:
                store |= {record["id"]: record for record in pickle.load(file)}
        ids = list(store)
        order = np.random.default_rng(SEED).permutation(len(ids))[job.rank :: job.world_size]
        for start in range(0, len(order), job.batch_size):
            chosen = [store[ids[place]] for place in order[start : start + job.batch_size]]
            rows = np.stack([record["embed"] for record in chosen])
            yield Rows([r["id"] for r in chosen], rows, [r["caption"] for r in chosen])

    return read


def singles(job: Job) -> Reader:
    import webdataset

    def read(job: Job) -> Iterator[Rows]:
        tars = sorted(map(str, (job.directory / "singles").glob("*.tar")))
        dataset = (
            webdataset.WebDataset(tars[job.rank :: job.world_size], shardshuffle=100, seed=SEED)
            .shuffle(1000, seed=SEED)
            .decode()
            .to_tuple("npy", "json")
            .batched(job.batch_size)
        )
        for rows, fields in webdataset.WebLoader(dataset, batch_size=None, num_workers=0):
            yield Rows([f["id"] for f in fields], rows, [f["caption"] for f in fields])

    return read


def trained(job: Job) -> Reader:
    import torch
    from transformers import AutoTokenizer

    from revision.data.rows import unit_rows
    from revision.data.samples import Sample, collate
    from revision.data.turn_encoder import TurnEncoder
    from revision.records import Turn

    torch.set_num_threads(1)
    turns = TurnEncoder(AutoTokenizer.from_pretrained(job.tokenizer), "plain")
    raw = singles(job)

    def read(job: Job) -> Iterator[Rows]:
        for batch in raw(job):
            said = [[Turn("user", "<image>"), Turn("assistant", text)] for text in batch.texts]
            encoded = turns.encode_all(said)
            rows = unit_rows(np.stack(batch.rows), lambda row: f"row {row} of a batch")
            samples = [
                Sample(id, *tokens, visual=row[None, None])  # type: ignore[misc]
                for id, tokens, row in zip(batch.ids, encoded, rows, strict=True)
            ]
            made = collate(samples)
            assert made.visual is not None
            yield Rows(made.ids, made.visual[:, 0], made.labels)

    return read


def blocks(job: Job) -> Reader:
    import webdataset

    def read(job: Job) -> Iterator[Rows]:
        tars = sorted(map(str, (job.directory / "shards").glob("*.tar")))
        dataset = webdataset.WebDataset(
            tars[job.rank :: job.world_size], shardshuffle=100, seed=SEED
        ).select(lambda sample: "features.npy" in sample)
        rng = np.random.default_rng(SEED)
        for sample in dataset:
            rows = np.load(io.BytesIO(sample["features.npy"]))
            records = [json.loads(line) for line in sample["records.jsonl"].splitlines()]
            order = rng.permutation(len(rows))
            for start in range(0, len(order), job.batch_size):
                chosen = order[start : start + job.batch_size]
                own = [records[place] for place in chosen]
                yield Rows([r["id"] for r in own], rows[chosen], [r["text"] for r in own])

    return read


def limit(job: Job) -> Reader:
    from revision.data.plan import EpochPlan

    def read(job: Job) -> Iterator[Rows]:
        rows = plain_rows(job)
        sizes = [min(BLOCK_ROWS, len(rows) - start) for start in range(0, len(rows), BLOCK_ROWS)]
        order = EpochPlan(sizes, seed=SEED)
        step = job.batch_size * job.world_size
        for start in range(job.rank * job.batch_size, len(rows), step):
            chosen = order.records(0, start, min(start + job.batch_size, len(rows)))
            yield Rows([], rows[chosen], chosen)

    return read


def plain_rows(job: Job) -> np.ndarray:
    """All rows, mapped."""
    path = job.directory / "plain" / "rows.f16"
    return np.memmap(path, np.float16, mode="r").reshape(-1, job.dim)


MAKERS: dict[str, Callable[[Job], Reader]] = {
    "ours": ours,
    "online": partial(ours, tokens="online"),
    "stored": stored,
    "dict": dictionary,
    "singles": singles,
    "trained": trained,
    "blocks": blocks,
    "limit": limit,
}
