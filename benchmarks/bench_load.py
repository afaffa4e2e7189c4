"""Time and weigh how training reads 2 million feature rows, beside three peers and a limit.

    python benchmarks/bench_load.py --rows 2000000 --directory <scratch of 20 GB> [--rounds 3]

prints a table in Markdown and keeps it in `benchmarks/load.json`. `load_stores.py` says what is
read, `load_readers.py` how. What the readers give is compared before anything is timed: every id
once, every row the right one, captions or their tokens, and the same batches after a resumption in
the middle of an epoch. Then all run in turn, each in fresh processes: one rank alone, and two at
the same time (`world_size` 2, half the records each).

    first batch       seconds from the end of the imports to the first batch, which for the dict
                      is after all pickles are loaded; and from the start of the process
    samples / CPU s   of the batches behind the first one, user + system, one thread
    private           `Private_*` of smaps_rollup less what it was after the imports, the largest
                      of several looks; `dirty` leaves out pages that only mirror a file, which the
                      system takes back when it needs them

The token cache is built before (its seconds are printed), once for all runs on one data set. The
rate of `singles` does not depend on how many there are, so it has a part of the rows only
(`--singles`); its time to the first batch neither. The page cache is as warm as memory allows.
"""

import argparse
import json
import os
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

from bench_align import ROOT, commit, machine

RESULTS = ROOT / "benchmarks" / "load.json"
TOKENIZER = ROOT / "assets" / "smollm2_135m_instruct"
WORKS = ("ours", "online", "stored", "dict", "singles", "trained", "blocks", "limit")
UNIT = ("ours", "trained")  # compared with the rows divided by their norm
LOOKS = 8  # at the memory, while reading
QUOTA = {
    "ours": 500_000,
    "online": 20_000,
    "stored": 500_000,
    "dict": 300_000,
}  # samples that are timed
QUOTA |= {"singles": 10_000, "trained": 10_000, "blocks": 100_000, "limit": 500_000}
Numbers = dict[str, float]


# ---- in the process that reads


def read_one(work: str, ranks: int, rank: int, options: argparse.Namespace, started: float) -> None:
    """Read a part of an epoch and print what it cost; memory is looked at while all ranks read."""
    from load_readers import MAKERS

    if work == "dict":  # should memory run out, the system ends this process and no other
        Path("/proc/self/oom_score_adj").write_text("1000")
    job = job_of(options, rank=rank, world_size=ranks)
    read, before = MAKERS[work](job), private()
    imported, cpu_imported = time.time(), time.process_time()
    batches = read(job)
    next(batches)
    first, cpu_first = time.time(), time.process_time()
    count, cpu, looks = 0, 0.0, [private()]
    quota = min(QUOTA[work], options.rows // (2 * ranks))
    for part in range(LOOKS):
        begun = time.process_time()
        for batch in batches:
            count += len(batch.rows)
            if count * LOOKS >= quota * (part + 1):
                break
        cpu += time.process_time() - begun
        looks.append(private())
    print("read", flush=True)
    sys.stdin.readline()  # the other rank still holds its memory
    looks.append(private())
    numbers = {
        "first": first - imported,
        "first_cpu": cpu_first - cpu_imported,
        "start_to_first": first - started,
        "rate": count / cpu,
        "samples": count,
        "imports_mb": before["private"],
        **{f"{key}_mb": max(look[key] for look in looks) - before[key] for key in before},
    }
    print(json.dumps(numbers), flush=True)
    sys.stdin.readline()  # what it shares with this process would become its own


def private() -> Numbers:
    """MiB that this process shares with no other, and what of it mirrors no file."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    kib = {key: int(rest.split()[0]) for key, rest in (line.split(":", 1) for line in lines[1:])}
    return {
        "private": (kib["Private_Clean"] + kib["Private_Dirty"]) / 1024,
        "dirty": kib["Private_Dirty"] / 1024,
    }


def job_of(options: argparse.Namespace, **more: Any) -> Any:
    from load_readers import Job

    return Job(Path(options.directory), options.tokenizer, options.dim, options.batch_size, **more)


def build_cache(options: argparse.Namespace) -> float:
    """The first batch of `ours` needs the tokens of all records; the seconds that took."""
    from load_readers import MAKERS

    job, begun = job_of(options), time.perf_counter()
    next(MAKERS["ours"](job)(job))
    return time.perf_counter() - begun


# ---- equality


def compare(options: argparse.Namespace) -> dict[str, Any]:
    """Read whole epochs; raise SystemExit unless all give the same rows and texts."""
    found = {work: compare_one(work, options) for work in options.works if work != "online"}
    found["resumed"] = compare_resumed(options)
    return found


def compare_one(work: str, options: argparse.Namespace) -> str:
    """Both ranks of two together: every id once; in every `compare_every`-th batch rows, texts."""
    import numpy as np
    from load_readers import MAKERS, plain_rows
    from load_stores import captions

    job = job_of(options)
    truth, texts = plain_rows(job), captions()
    expected = Texts(texts, options.tokenizer)
    seen = np.zeros(len(truth), np.int64)
    for rank in range(2):
        job = job_of(options, rank=rank, world_size=2)
        for place, batch in enumerate(MAKERS[work](job)(job)):
            numbers = np.array(batch.ids, np.int64) if batch.ids else batch.texts
            seen[numbers] += 1
            if place % options.compare_every:
                continue
            if not same_rows(work, truth[numbers], batch.rows):
                raise SystemExit(f"{work}: rows of {batch.ids[:3]}... are not those written")
            if batch.ids and not expected.equal(numbers, batch.texts):
                raise SystemExit(f"{work}: texts of {batch.ids[:3]}... are not those written")
    total = options.singles if work in ("singles", "trained") else options.rows
    if not (seen[:total] == 1).all() or seen[total:].any():
        raise SystemExit(f"{work}: not every record came once")
    return f"{total} records, each once"


def same_rows(work: str, stored: Any, found: Any) -> bool:
    """Equal as stored; unit rows equal to the last bit or two of float32."""
    import numpy as np

    if work not in UNIT:
        return np.array_equal(stored, found)
    wide = stored.astype(np.float64)
    unit = wide / np.linalg.norm(wide, axis=1, keepdims=True)
    return bool(np.abs(found.double().numpy() - unit).max() < 1e-7)


class Texts:
    """The captions by number, and the targets that a tokenizer makes of them."""

    def __init__(self, texts: list[str], tokenizer: str) -> None:
        from transformers import AutoTokenizer

        self.texts = texts
        encoder = AutoTokenizer.from_pretrained(tokenizer)
        self.targets = [encoder(f"{t}\n", add_special_tokens=False)["input_ids"] for t in texts]

    def equal(self, numbers: Any, found: Any) -> bool:
        if isinstance(found, list):
            return found == [self.texts[n % len(self.texts)] for n in numbers]
        targets = [[i for i in row if i != -100] for row in found.tolist()]
        return targets == [self.targets[n % len(self.targets)] for n in numbers]


def compare_resumed(options: argparse.Namespace) -> str:
    """A loader that begins at a step in the middle gives the batches of one that came there."""
    from load_readers import MAKERS

    middle = options.rows // options.batch_size // 2
    read = MAKERS["ours"](job_of(options))
    went_on = islice(read(job_of(options)), middle, middle + 20)
    resumed = islice(read(job_of(options, first_step=middle)), 20)
    steps = 0
    for one, two in zip(went_on, resumed, strict=True):
        if one.ids != two.ids or not one.rows.equal(two.rows) or not one.texts.equal(two.texts):
            raise SystemExit(f"ours: batch {steps} after step {middle} differs when resumed there")
        steps += 1
    return f"{steps} batches after step {middle} identical"


# ---- measuring


def measured(work: str, ranks: int, options: argparse.Namespace) -> Numbers:
    """Read with `ranks` fresh processes at the same time; means over them, the largest memory."""
    arguments = [f"--{key.replace('_', '-')}={getattr(options, key)}" for key in PASSED]
    environment = os.environ | {
        "PYTHONPATH": f"{ROOT}:{ROOT / 'benchmarks'}",
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }

    def start(rank: int) -> subprocess.Popen[str]:
        own = ["--read", work, "--ranks", str(ranks), "--rank", str(rank)]
        return subprocess.Popen(
            [sys.executable, __file__, *arguments, *own, "--started", repr(time.time())],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    children = [start(rank) for rank in range(ranks)]
    try:
        return joined([finished(child) for child in waited(children)])
    finally:
        for child in children:
            child.kill()


def waited(children: list[subprocess.Popen[str]]) -> list[subprocess.Popen[str]]:
    """The children when each of them has read its part."""
    for child in children:
        assert child.stdout is not None
        while (line := child.stdout.readline()) != "read\n":
            if not line:
                raise SystemExit(f"a reader ended with status {child.wait()}: {child.args}")
    return children


def finished(child: subprocess.Popen[str]) -> Numbers:
    """Its numbers; it lives on until all have told theirs."""
    assert child.stdin is not None and child.stdout is not None
    child.stdin.write("\n")
    child.stdin.flush()
    return json.loads(child.stdout.readline())


def joined(found: list[Numbers]) -> Numbers:
    largest = {k: max(f[k] for f in found) for k in found[0] if k.endswith("_mb")}
    return {k: sum(f[k] for f in found) / len(found) for k in found[0]} | largest


def rounds_of(options: argparse.Namespace) -> list[dict[str, Numbers]]:
    """`options.rounds` rounds in which all run in turn, `<work> x<ranks>`."""
    rounds = []
    for number in range(options.rounds):
        numbers: dict[str, Numbers] = {}
        for work, ranks in ((work, ranks) for ranks in (1, 2) for work in options.works):
            numbers[f"{work} x{ranks}"] = measured(work, ranks, options)
            shown = {k: round(v, 3) for k, v in numbers[f"{work} x{ranks}"].items()}
            print(f"round {number + 1}, {work} x{ranks}: {shown}", flush=True)
        rounds.append(numbers)
    return rounds


# ---- the table


def table_of(rounds: list[dict[str, Numbers]]) -> dict[str, Any]:
    """Median, least and most of every number, and of the ratios to `ours` within a round."""

    def spread(values: list[float]) -> list[float]:
        return [float(f"{value:.4g}") for value in (median(values), min(values), max(values))]

    table: dict[str, Any] = {}
    for name in rounds[0]:
        row = {key: spread([r[name][key] for r in rounds]) for key in rounds[0][name]}
        one = f"ours x{name[-1]}"
        if one in rounds[0]:
            row["first / ours"] = spread([r[name]["first"] / r[one]["first"] for r in rounds])
            row["ours / rate"] = spread([r[one]["rate"] / r[name]["rate"] for r in rounds])
        table[name] = row
    return table


def markdown(table: dict[str, Any]) -> Iterator[str]:
    yield (
        "| reader, ranks | first batch, s (from process start) | beside ours | "
        "samples / CPU s | ours beside it | private, MB a rank (dirty) |"
    )
    yield "|---|---|---|---|---|---|"
    for name, row in table.items():
        ratios = [row.get(key, [float("nan")] * 3) for key in ("first / ours", "ours / rate")]
        later, sooner = (f"{r[0]:.3g} ({r[1]:.3g} to {r[2]:.3g})" for r in ratios)
        yield (
            f"| {name} | {row['first'][0]:.3g} ({row['start_to_first'][0]:.3g}) | {later} | "
            f"{row['rate'][0]:,.0f} | {sooner} | "
            f"{row['private_mb'][2]:.0f} ({row['dirty_mb'][2]:.0f}) |"
        )


def keep(result: dict[str, Any]) -> None:
    """Put the result in the place of an older one of the same size."""
    old = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
    others = [r for r in old if (r["rows"], r["dim"]) != (result["rows"], result["dim"])]
    ordered = sorted([*others, result], key=lambda r: r["rows"])
    RESULTS.write_text(json.dumps(ordered, indent=1) + "\n")


PASSED = ("rows", "singles", "dim", "batch_size", "directory", "tokenizer")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--singles", type=int, help="rows as single members; default: 100,000")
    parser.add_argument("--dim", type=int, default=1280)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--compare-every", type=int, default=1, help="batches; 1: every row")
    parser.add_argument("--works", nargs="+", choices=WORKS, default=WORKS)
    parser.add_argument("--directory", help="kept between runs; default: a temporary one")
    parser.add_argument("--tokenizer", default=str(TOKENIZER))
    parser.add_argument("--no-keep", action="store_true", help="leave load.json as it is")
    for own in ("--read", "--ranks", "--rank", "--started"):
        parser.add_argument(own, help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.singles = options.singles or min(options.rows, 100_000)
    return options


def main() -> None:
    options = parse()
    if options.read:
        ranks, rank = int(options.ranks), int(options.rank)
        return read_one(options.read, ranks, rank, options, float(options.started))
    from load_stores import prepare

    with tempfile.TemporaryDirectory() as temporary:
        options.directory = options.directory or temporary
        prepare(Path(options.directory), options.rows, options.dim, options.singles)
        print(f"tokens: {build_cache(options):.0f} s", flush=True)
        equality = compare(options)
        print(f"equal: {equality}", flush=True)
        table = table_of(rounds_of(options))
    if not options.no_keep:
        keep(
            {
                **{
                    key: getattr(options, key)
                    for key in ("rows", "singles", "dim", "batch_size", "compare_every")
                },
                "rounds": options.rounds,
                "median, least, most": table,
                "equality": equality,
                "date": str(date.today()),
                "commit": commit(),
                "machine": machine(),
                "versions": {
                    n: version(n) for n in ("torch", "numpy", "webdataset", "transformers")
                },
                "load": round(os.getloadavg()[0], 1),
            }
        )
    print("\n".join(markdown(table)))


if __name__ == "__main__":
    main()
