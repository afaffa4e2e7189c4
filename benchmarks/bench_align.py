"""Time fit + apply of ReAlign on feature shards, beside a plain implementation and the disk.

    python benchmarks/bench_align.py [--rows 20000] [--dim 1280] [--repeats 3]

First the outputs of both are compared, then both run in turn, so that a busy machine slows both.
The plain implementation is the public algorithm as one would write it down: four passes over text
and two over images, whole chunks of 10,000 rows in float64 (arXiv:2602.07026v3, Sec. 4;
Yu-xm/ReVision@2d26f3a embed_ReAlign.py). Its input lies in plain .npy files, which is kinder than
the pickles of the original. The limit is reading both sets once and writing the result once.
"""

import argparse
import os
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from revision.alignment import ReAlign, apply_alignment
from revision.alignment.fit import fit_alignment, read_sets
from revision.records import Record
from revision.shards import Kind, ShardReader, ShardWriter, write_header

CHUNK = 10_000
SHARD_ROWS = 16_384
BLOCK_ROWS = 4096
Timing = tuple[float, float]


def synthetic(rows: int, dim: int, seed: int) -> np.ndarray:
    """Anisotropic float16 unit rows around a random mean of norm 0.4."""
    rng = np.random.default_rng(seed)
    center = rng.standard_normal(dim).astype(np.float32)
    center *= 0.4 / np.linalg.norm(center)
    spread = np.arange(1, dim + 1, dtype=np.float32) ** -0.6
    spread *= 0.9 / np.linalg.norm(spread)
    drawn = center + spread * rng.standard_normal((rows, dim), dtype=np.float32)
    return (drawn / np.linalg.norm(drawn, axis=1, keepdims=True)).astype(np.float16)


def write_inputs(directory: Path, rows: int, dim: int) -> None:
    kinds: tuple[Kind, ...] = ("text", "image")
    for seed, kind in enumerate(kinds):
        features = synthetic(rows, dim, seed)
        np.save(directory / f"{kind}.npy", features)
        starts = range(0, rows, SHARD_ROWS)
        for index, start in enumerate(starts):
            with ShardWriter(directory / kind, index, dim, "float16") as writer:
                for first in range(start, min(start + SHARD_ROWS, rows), BLOCK_ROWS):
                    block = features[first : min(first + BLOCK_ROWS, start + SHARD_ROWS)]
                    records = [
                        Record(id=str(first + i), text="a caption") for i in range(len(block))
                    ]
                    writer.add_block(block, records)
        write_header(directory / kind, kind=kind, encoder={}, source={}, num_shards=len(starts))


def plain(directory: Path) -> None:
    """Four passes over text, two over images."""
    text = np.load(directory / "text.npy", mmap_mode="r")
    image = np.load(directory / "image.npy", mmap_mode="r")
    mu_y, mu_x = (sum(c.sum(0) for c in chunks(rows)) / len(rows) for rows in (text, image))
    trace_y = sum(((c - mu_y) ** 2).sum() for c in chunks(text)) / len(text)
    trace_x = sum(((c - mu_x) ** 2).sum() for c in chunks(image)) / len(image)
    scale = np.sqrt(trace_x / (trace_y + 1e-10))
    centroid = sum(unit((c - mu_y) * scale + mu_x).sum(0) for c in chunks(text)) / len(text)
    out = np.lib.format.open_memmap(directory / "plain.npy", "w+", np.float32, text.shape)
    for index, chunk in enumerate(chunks(text)):
        moved = unit((chunk - mu_y) * scale + mu_x) - centroid + mu_x
        out[index * CHUNK : index * CHUNK + len(chunk)] = unit(moved)
    out.flush()


def ours(directory: Path) -> None:
    remove(directory / "ours")
    sets = read_sets(directory / "text", directory / "image")
    alignment = fit_alignment(ReAlign(), sets, directory / "ours" / "alignment")
    apply_alignment(alignment, directory / "text", directory / "ours" / "shards")


def limit(directory: Path) -> None:
    """Read both inputs once, write as many bytes as the result has, and flush them to the disk."""
    size = sum(len((directory / f"{kind}.npy").read_bytes()) for kind in ("text", "image"))
    piece = bytes(1 << 20)
    with open(directory / "limit.bin", "wb") as file:
        for _ in range(size // len(piece)):  # float32 text = float16 text + float16 images
            file.write(piece)
        file.flush()
        os.fsync(file.fileno())


def chunks(rows: np.ndarray) -> Iterator[np.ndarray]:
    for start in range(0, len(rows), CHUNK):
        yield unit(rows[start : start + CHUNK].astype(np.float64))


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def remove(directory: Path) -> None:
    for path in sorted(directory.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()


def check_equal(directory: Path) -> None:
    expected = np.load(directory / "plain.npy", mmap_mode="r")
    found = np.concatenate(list(ShardReader(directory / "ours" / "shards").iter_rows()))
    difference = float(np.abs(found - expected).max())
    print(f"largest difference {difference:.1e}, equal float32 {np.mean(found == expected):.4%}")
    if difference > 1e-7:
        raise SystemExit("the two implementations disagree")


def timed(work: Callable[[Path], None], directory: Path) -> Timing:
    wall, cpu = time.perf_counter(), time.process_time()
    work(directory)
    return time.perf_counter() - wall, time.process_time() - cpu


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--dim", type=int, default=1280)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        write_inputs(directory, options.rows, options.dim)
        rounds = [{w: timed(w, directory) for w in (plain, ours, limit)}]
        check_equal(directory)
        for _ in range(options.repeats):
            rounds.append({w: timed(w, directory) for w in (plain, ours, limit)})
    print(f"{options.rows} + {options.rows} rows of width {options.dim}, {options.repeats} rounds")
    for work in (plain, ours, limit):
        wall, cpu = np.median([times[work] for times in rounds[1:]], axis=0)
        print(f"{work.__name__:6} {wall:7.2f} s wall {cpu:7.2f} s CPU")
    for other in (plain, limit):
        ratios = [np.divide(times[other], times[ours]) for times in rounds[1:]]
        wall, cpu = np.median(ratios, axis=0)
        print(f"{other.__name__} / ours: {wall:.2f} wall, {cpu:.2f} CPU (median of rounds)")
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB")


if __name__ == "__main__":
    main()
