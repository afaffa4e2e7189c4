"""The benchmark of loading runs, tiny, and refuses to time what is not equal."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tiny_models import bpe_tokenizer

ROOT = Path(__file__).resolve().parents[1]
SIZES = ["--rows=9000", "--singles=700", "--dim=8", "--batch-size=64", "--rounds=1", "--no-keep"]


def bench(directory: Path, *arguments: str) -> subprocess.CompletedProcess:
    tokenizer = directory / "tokenizer"
    bpe_tokenizer().save_pretrained(tokenizer)
    places = [f"--directory={directory / 'stores'}", f"--tokenizer={tokenizer}"]
    return subprocess.run(
        [sys.executable, "benchmarks/bench_load.py", *SIZES, *places, *arguments],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
def test_all_readers_give_the_same_records_and_are_timed(tmp_path):
    pytest.importorskip("webdataset")
    done = bench(tmp_path)
    assert done.returncode == 0, done.stderr
    assert "'ours': '9000 records, each once'" in done.stdout
    assert "'singles': '700 records, each once'" in done.stdout
    assert "after step 70 identical" in done.stdout
    rows = [line for line in done.stdout.splitlines() if line.startswith("| ")]
    assert len(rows) == 1 + 8 * 2
    shards = tmp_path / "stores" / "plain" / "rows.f16"
    with shards.open("r+b") as file:  # what all are compared with
        file.seek(2 * 8 * 4321)
        file.write(b"\x12")
    done = bench(tmp_path, "--works", "ours")
    assert done.returncode == 1
    assert "are not those written" in done.stderr
