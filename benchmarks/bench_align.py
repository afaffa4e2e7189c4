"""Time fit + apply of ReAlign by `align.py` beside the public algorithm and beside the disk.

    python benchmarks/bench_align.py [--rows 20000] [--dim 1280] [--rounds 3]

prints one row of Markdown and keeps it in `benchmarks/align.json`. Outputs are compared before
anything is timed. Then peer, ours, fit and limit run in turn, each in a fresh process, so that a
busy machine slows all of them; the first round warms up and is not counted.

    peer     four passes over texts and two over images (arXiv:2602.07026v3, Sec. 4;
             Yu-xm/ReVision@2d26f3a embed_ReAlign.py): pickled lists of {"id", ..., "embed"}, one
             file per 200,000 records, each loaded as a whole, cleaned and normalised in float64 by
             chunks of 10,000 rows in every pass, means rounded to float32. Our own code, written
             from that description
    ours     align.py alignment=realign alignment.mean_precision=float32 report=null
    fit      the same with apply=false: only the map, which train.py then applies on the fly
    limit    read both inputs once, write as many bytes as the result has, flush them to the disk

Ours flushes every shard to the disk, the peer flushes nothing. "After imports" leaves out the start
of Python and the imports; memory is the largest resident set of the process.
"""

import argparse
import json
import os
import pickle
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import date
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "align.json"
CHUNK = 10_000
RECORDS_PER_PICKLE = 200_000
SHARD_ROWS, BLOCK_ROWS = 65_536, 4096  # of embed.py
PIECE = 1 << 20
Numbers = dict[str, float]


# ---- inputs


def synthetic(rows: int, dim: int, seed: int) -> Iterator[Any]:
    """Chunks of anisotropic float16 unit rows around a random mean of norm 0.4."""
    import numpy as np

    rng = np.random.default_rng(seed)
    center = rng.standard_normal(dim).astype(np.float32)
    center *= 0.4 / np.linalg.norm(center)
    spread = np.arange(1, dim + 1, dtype=np.float32) ** -0.6
    spread *= 0.9 / np.linalg.norm(spread)
    for start in range(0, rows, BLOCK_ROWS):
        shape = min(BLOCK_ROWS, rows - start), dim
        drawn = center + spread * rng.standard_normal(shape, dtype=np.float32)
        yield (drawn / np.linalg.norm(drawn, axis=1, keepdims=True)).astype(np.float16)


def prepare(directory: Path, rows: int, dim: int) -> None:
    """The same rows as shards, as pickles and as plain bytes."""
    from revision.records import Record
    from revision.shards import ShardWriter, write_header

    for seed, (kind, field) in enumerate((("text", "caption"), ("image", "image_path"))):
        blocks, written = synthetic(rows, dim, seed), 0
        pickled: list[dict[str, Any]] = []
        num_shards = -(-rows // SHARD_ROWS)
        with open(directory / f"{kind}.bin", "wb") as file:
            for index in range(num_shards):
                with ShardWriter(directory / kind, index, dim, "float16") as writer:
                    for block in islice(blocks, SHARD_ROWS // BLOCK_ROWS):
                        ids = range(written, written + len(block))
                        records = [Record(id=str(i), text=f"{kind} number {i}") for i in ids]
                        writer.add_block(block, records)
                        file.write(block.tobytes())
                        for record, row in zip(records, block, strict=True):
                            pickled.append({"id": record.id, field: record.text, "embed": row})
                        written = ids.stop
        write_header(directory / kind, kind=kind, encoder={}, source={}, num_shards=num_shards)
        for number, start in enumerate(range(0, rows, RECORDS_PER_PICKLE)):
            with open(directory / f"{kind}_{number:04d}.pkl", "wb") as file:
                pickle.dump(pickled[start : start + RECORDS_PER_PICKLE], file)


# ---- the three that are timed


def peer(directory: Path) -> Numbers:
    """The public algorithm; returns the seconds after its imports."""
    import numpy as np

    begun = clock()
    files = {kind: sorted(directory.glob(f"{kind}_*.pkl")) for kind in ("text", "image")}
    out = directory / "peer"
    out.mkdir()

    def records(path: Path) -> list[dict[str, Any]]:
        with open(path, "rb") as file:
            return pickle.load(file)  # written by `prepare`

    def clean(rows: Any) -> Any:
        rows = np.nan_to_num(rows, nan=0.0, posinf=0.0, neginf=0.0)
        largest = np.abs(rows).max(axis=1, keepdims=True)
        rows = rows / np.where(largest > 0, largest, 1.0)
        norms = np.linalg.norm(rows, axis=1, keepdims=True)
        return rows / np.where(norms < 1e-10, 1.0, norms)

    def chunks(kind: str) -> Iterator[Any]:
        for path in files[kind]:
            rows = np.vstack([record["embed"] for record in records(path)]).astype(np.float64)
            for start in range(0, len(rows), CHUNK):
                yield clean(rows[start : start + CHUNK])

    def mean(parts: Iterator[Any]) -> Any:
        total, count = 0.0, 0
        for part in parts:
            total, count = total + part.sum(0), count + len(part)
        return total / count

    def place(rows: Any) -> Any:
        return clean((rows - mu["text"]) * scale + mu["image"])

    mu = {kind: mean(chunks(kind)).astype(np.float32).astype(np.float64) for kind in files}
    trace = {
        kind: float(mean(((part - mu[kind]) ** 2).sum(1) for part in chunks(kind)))
        for kind in files
    }
    scale = np.sqrt(trace["image"] / (trace["text"] + 1e-10))
    centroid = mean(place(part) for part in chunks("text"))
    for path in files["text"]:
        aligned, kept = [], records(path)
        rows = np.vstack([record["embed"] for record in kept]).astype(np.float64)
        for start in range(0, len(rows), CHUNK):
            moved = place(clean(rows[start : start + CHUNK])) - centroid + mu["image"]
            aligned.append(clean(moved).astype(np.float32))
        for record, row in zip(kept, np.vstack(aligned), strict=True):
            record["embed"] = row
        with open(out / path.name, "wb") as file:
            pickle.dump(kept, file)
    (out / "scale.json").write_text(json.dumps(float(scale)))
    return since(begun)


def ours(directory: Path) -> Numbers:
    """The command, as a user runs it; returns the seconds after its imports."""
    import align
    from revision.config import compose

    begun = clock()
    sides = [f"source={directory / 'text'}", f"target={directory / 'image'}"]
    method = ["alignment=realign", "alignment.mean_precision=float32", "report=null"]
    align.run(compose("align", [*method, *sides, f"output_dir={directory / 'ours'}"]))
    return since(begun)


def fit(directory: Path) -> Numbers:
    """The map alone, which training applies on the fly."""
    import align
    from revision.config import compose

    begun = clock()
    sides = [f"source={directory / 'text'}", f"target={directory / 'image'}", "apply=false"]
    method = ["alignment=realign", "alignment.mean_precision=float32", "report=null"]
    align.run(compose("align", [*method, *sides, f"output_dir={directory / 'fit'}"]))
    return since(begun)


def limit(directory: Path) -> Numbers:
    """Read both inputs, write float32 rows of the texts, flush."""
    begun, piece, size = clock(), bytearray(PIECE), 0
    for kind in ("text", "image"):
        with open(directory / f"{kind}.bin", "rb", buffering=0) as file:
            while count := file.readinto(piece):
                size += count  # in the end: float32 texts = float16 texts + float16 images
    with open(directory / "limit", "wb", buffering=0) as file:
        for start in range(0, size, PIECE):
            file.write(piece[: min(PIECE, size - start)])
        os.fsync(file.fileno())
    return since(begun)


def clock() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


def since(begun: tuple[float, float]) -> Numbers:
    wall, cpu = (now - then for now, then in zip(clock(), begun, strict=True))
    return {"inner_wall": wall, "inner_cpu": cpu}


# ---- equality


def compare(directory: Path) -> Numbers:
    """How far the two results are apart."""
    import numpy as np

    from revision.alignment import load_alignment
    from revision.shards import ShardReader

    found = ShardReader(directory / "ours" / "shards").iter_rows()
    equal, largest, count = 0, 0.0, 0
    for path in sorted((directory / "peer").glob("*.pkl")):
        with open(path, "rb") as file:
            expected = [record["embed"] for record in pickle.load(file)]  # written by `peer`
        for start in range(0, len(expected), BLOCK_ROWS):
            rows, block = np.stack(expected[start : start + BLOCK_ROWS]), next(found)
            equal += int((rows == block).sum())
            largest = max(largest, float(np.abs(rows - block).max()))
            count += rows.size
    scale = json.loads((directory / "peer" / "scale.json").read_text())
    ratio = load_alignment(directory / "ours" / "alignment").gain / scale
    return {"equal": equal / count, "largest_difference": largest, "scale": abs(ratio - 1)}


def check(numbers: Numbers) -> None:
    """Raise SystemExit unless both do the same."""
    print(
        f"equal float32 values {numbers['equal']:.4%}, largest difference "
        f"{numbers['largest_difference']:.1e}, scales {numbers['scale']:.1e} apart"
    )
    wrong = numbers["largest_difference"] > 1e-7 or numbers["scale"] > 1e-12
    if wrong or numbers["equal"] < 0.999:
        raise SystemExit("the two implementations disagree; nothing was timed")


# ---- measuring


def measured(work: str, directory: Path, *arguments: str) -> Numbers:
    """Run one function of this file in a fresh process."""
    shutil.rmtree(directory / work, ignore_errors=True)
    (directory / "limit").unlink(missing_ok=True)
    os.sync()  # what others left to write is not of this run
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, __file__, "--run", work, str(directory), *arguments]
    begun, before = time.perf_counter(), os.times()
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True)
    after = os.times()
    return {
        "wall": time.perf_counter() - begun,
        "cpu": after.children_user
        + after.children_system
        - before.children_user
        - before.children_system,
        **json.loads(done.stdout.splitlines()[-1]),
    }


def peak_mb() -> float:
    """Largest resident set of this process since it began."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def row_of(rounds: list[dict[str, Numbers]], rows: int, dim: int, equality: Numbers) -> Any:
    """Medians of each, medians and ranges of the ratios within a round."""

    def ratio(other: str, one: str, key: str) -> list[float]:
        ratios = [numbers[other][key] / numbers[one][key] for numbers in rounds]
        return [round(value, 2) for value in (median(ratios), min(ratios), max(ratios))]

    keys = ("wall", "cpu", "inner_wall", "inner_cpu", "peak_mb")
    return {
        "rows": rows,
        "dim": dim,
        "rounds": len(rounds),
        **{
            work: {key: round(median(r[work][key] for r in rounds), 3) for key in keys}
            for work in WORKS
        },
        "peer / ours": {key: ratio("peer", "ours", key) for key in keys},
        "peer / fit": {key: ratio("peer", "fit", key) for key in keys},
        "ours / limit": {key: ratio("ours", "limit", key) for key in ("wall", "inner_wall")},
        "equality": equality,
        "date": str(date.today()),
        "commit": commit(),
        "machine": machine(),
        "versions": {name: version(name) for name in ("torch", "numpy")},
        "load": round(os.getloadavg()[0], 1),
    }


def commit() -> str:
    command = ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def machine() -> str:
    info = Path("/proc/cpuinfo").read_text().splitlines()
    name = next((line.split(": ")[1] for line in info if line.startswith("model name")), "")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{os.cpu_count()} cores of {name.strip()}, {memory:.0f} GiB, {platform.system()}"


def markdown(row: Any) -> str:
    def shown(work: str) -> str:
        times = [f"{row[work][key]:.2f}" for key in ("wall", "cpu", "inner_wall", "inner_cpu")]
        return f"{times[0]} / {times[1]} ({times[2]} / {times[3]})"

    ratios = row["peer / ours"]
    cells = [
        f"{row['rows']} x {row['dim']}",
        *(shown(work) for work in WORKS),
        f"{ratios['wall'][0]:.1f} / {ratios['cpu'][0]:.1f}",
        f"{ratios['inner_wall'][0]:.1f} / {ratios['inner_cpu'][0]:.1f}",
        f"{row['peer / fit']['inner_wall'][0]:.1f} / {row['peer / fit']['inner_cpu'][0]:.1f}",
        f"{row['ours / limit']['inner_wall'][0]:.1f}",
        f"{row['peer']['peak_mb']:.0f} / {row['ours']['peak_mb']:.0f}",
    ]
    return f"| {' | '.join(cells)} |"


HEAD = (
    "| rows a side | peer: wall / CPU s (after imports) | ours | fit | limit | peer / ours, "
    "whole | after imports | peer / fit, after imports | ours / limit | memory, MB |\n"
    "|---|---|---|---|---|---|---|---|---|---|"
)


def keep(row: Any) -> None:
    """Put the row in the place of an older one of the same size."""
    rows = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
    others = [r for r in rows if (r["rows"], r["dim"]) != (row["rows"], row["dim"])]
    ordered = sorted([*others, row], key=lambda r: r["rows"])
    RESULTS.write_text(json.dumps(ordered, indent=1) + "\n")


WORKS = {"peer": peer, "ours": ours, "fit": fit, "limit": limit}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--dim", type=int, default=1280)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--directory", help="of the inputs, a temporary one in it")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.directory) as name:
        directory = Path(name)
        measured("prepare", directory, str(options.rows), str(options.dim))
        for work in WORKS:  # warms up, and writes what is compared
            measured(work, directory)
        equality = measured("compare", directory)
        check(equality)
        rounds = [{w: measured(w, directory) for w in WORKS} for _ in range(options.rounds)]
    equality = {key: equality[key] for key in ("equal", "largest_difference", "scale")}
    row = row_of(rounds, options.rows, options.dim, equality)
    keep(row)
    print(f"{HEAD}\n{markdown(row)}")


def run_one(work: str, directory: Path, *sizes: str) -> None:
    """The child process of `measured`."""
    if work == "prepare":
        prepare(directory, *map(int, sizes))
        numbers: Numbers = {}
    else:
        numbers = {**WORKS, "compare": compare}[work](directory)
    print(json.dumps(numbers | {"peak_mb": peak_mb()}))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--run"]:
        run_one(sys.argv[2], Path(sys.argv[3]), *sys.argv[4:])
    else:
        main()
