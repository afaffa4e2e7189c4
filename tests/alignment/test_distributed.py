"""Two processes give the bytes of one."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.feature_sets import cloud, damage, write_set

ROOT = Path(__file__).parents[2]
WORK = """
import sys
from pathlib import Path
from revision import parallel
from revision.alignment import fit, apply_alignment
from revision.alignment.methods.realign import ReAlign
from revision.alignment.methods.wct import WhiteningColouring

fit.GRID_ROWS = 8  # 29 cells and 4 spans of text
root, out = map(Path, sys.argv[1:3])
for make in (ReAlign, WhiteningColouring):
    directory = out / make.name
    with parallel.joined():
        sets = fit.read_sets(root / "text", root / "image")
        fitted = fit.fit_alignment(make(), sets, directory / "map", fit.FitOptions(num_workers=2))
        apply_alignment(fitted, root / "text", directory / "shards", num_workers=2)
        print(make.name, parallel.rank(), parallel.world_size())
"""


def contents(directory: Path) -> dict[str, bytes]:
    files = (p for p in directory.rglob("*") if p.is_file())
    return {str(p.relative_to(directory)): p.read_bytes() for p in files}


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def start(rank: int, port: int, size: int, root: Path, out: Path) -> subprocess.Popen:
    environment = os.environ | {
        "RANK": str(rank),
        "WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-W", "ignore", "-c", WORK, str(root), str(out)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


@pytest.mark.slow
@pytest.mark.parametrize("streamed", [False, True])
def test_two_processes_give_the_bytes_of_one(tmp_path, streamed):
    write_set(tmp_path / "text", cloud(1, 230), "text")
    write_set(tmp_path / "image", cloud(2, 170, mean=0.35), "image", shard_rows=90)
    if streamed:  # sets without stored sums, with bad rows in different processes
        damage(tmp_path / "text", 3, 0.0)
        damage(tmp_path / "text", 100, 0.0)
    for size in (1, 2):
        port = free_port()
        out = tmp_path / f"out{size}"
        processes = [start(rank, port, size, tmp_path, out) for rank in range(size)]
        said = [process.communicate(timeout=120)[0] for process in processes]
        assert [process.returncode for process in processes] == [0] * size
        assert all(f"realign {rank} {size}" in text for rank, text in enumerate(said))
    one, two = contents(tmp_path / "out1"), contents(tmp_path / "out2")
    assert len(one) == 2 * (2 + 5 + 3)
    assert one.keys() == two.keys()
    assert [name for name in one if one[name] != two[name]] == []
