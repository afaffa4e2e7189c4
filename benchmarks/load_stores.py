"""The same rows and captions in the layouts that `bench_load.py` reads, written once and kept.

    shards/     our feature set, blocks of 4096 rows (which plain webdataset reads as well)
    pickles/    lists of {"id", "caption", "embed": float16 row}, 200,000 records a file: what the
                public code writes (Yu-xm/ReVision@2d26f3a); our own code, from that description
    singles/    webdataset tars with two members a record, `<id>.npy` and `<id>.json`
    plain/      rows.f16, nothing but the rows: what is compared against, and gathered as the limit

Rows are synthetic, captions those of data/openclipart in turn.
"""

import io
import json
import pickle
import shutil
import tarfile
from collections.abc import Callable, Iterator
from itertools import cycle, islice
from pathlib import Path

import numpy as np
from bench_align import BLOCK_ROWS, RECORDS_PER_PICKLE, ROOT, SHARD_ROWS, synthetic

from revision.progress import track
from revision.records import Record, read_records
from revision.shards import ShardWriter, write_header

SINGLES_PER_TAR = 10_000
Block = tuple[list[str], list[str], np.ndarray]


def captions() -> list[str]:
    """The real captions, as many as there are."""
    entries = read_records(str(ROOT / "data/openclipart/pretrain-000.tar"), side="text")
    return [str(entry.text) for entry in entries if isinstance(entry, Record)]


def blocks(rows: int, dim: int) -> Iterator[Block]:
    """Ids, captions and float16 rows of 4096 records at a time."""
    texts, first = cycle(captions()), 0
    for drawn in synthetic(rows, dim, seed=0):
        ids = [f"{number:08d}" for number in range(first, first + len(drawn))]
        yield ids, list(islice(texts, len(ids))), drawn
        first += len(drawn)


def prepare(directory: Path, rows: int, dim: int, singles: int) -> None:
    """Write what is not there; a layout is there when its directory is."""
    made: list[tuple[str, int, Callable[[Path, Iterator[Block], int], None]]] = [
        ("shards", rows, write_shards),
        ("pickles", rows, write_pickles),
        ("singles", singles, write_singles),
        ("plain", rows, write_plain),
    ]
    for name, count, write in made:
        if (directory / name).exists():
            continue
        temporary = directory / f"{name}.tmp"
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        total = -(-count // BLOCK_ROWS)
        write(temporary, track(blocks(count, dim), f"write {name}", total=total), count)
        temporary.rename(directory / name)


def write_shards(directory: Path, drawn: Iterator[Block], count: int) -> None:
    """Whole shards of embed.py; of a small set one block each, so that two ranks have some."""
    index, size = 0, SHARD_ROWS // BLOCK_ROWS if count > 2 * SHARD_ROWS else 1
    while group := list(islice(drawn, size)):
        with ShardWriter(directory, index, group[0][2].shape[1], "float16") as writer:
            for ids, texts, rows in group:
                named = zip(ids, texts, strict=True)
                writer.add_block(rows, [Record(id=id, text=text) for id, text in named])
        index += 1
    write_header(directory, kind="text", encoder={}, source={}, num_shards=index)


def write_pickles(directory: Path, drawn: Iterator[Block], _: int) -> None:
    records = (
        {"id": id, "caption": text, "embed": row}
        for block in drawn
        for id, text, row in zip(*block, strict=True)
    )
    number = 0
    while part := list(islice(records, RECORDS_PER_PICKLE)):
        with open(directory / f"{number:04d}.pkl", "wb") as file:
            pickle.dump(part, file)
        number += 1


def write_singles(directory: Path, drawn: Iterator[Block], count: int) -> None:
    samples = (sample for block in drawn for sample in zip(*block, strict=True))
    number, size = 0, min(SINGLES_PER_TAR, -(-count // 4))
    while part := list(islice(samples, size)):
        with tarfile.open(directory / f"{number:05d}.tar", "w") as tar:
            for id, text, row in part:
                content = io.BytesIO()
                np.save(content, row)
                _add(tar, f"{id}.npy", content.getvalue())
                _add(tar, f"{id}.json", json.dumps({"id": id, "caption": text}).encode())
        number += 1


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    tar.addfile(info, io.BytesIO(content))


def write_plain(directory: Path, drawn: Iterator[Block], _: int) -> None:
    with open(directory / "rows.f16", "wb") as file:
        for _, _, rows in drawn:
            file.write(rows.tobytes())
