"""The worked example of docs/adding_a_method.md: its code, in a copy of the project, is run."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "adding_a_method.md"


def blocks() -> dict[str, str]:
    """The file that the text before each block names, and the block."""
    pieces = re.split(r"```(?:python|yaml)\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    return {
        re.findall(r"`([\w/]+\.(?:py|yaml))`", text)[-1]: code
        for text, code in zip(pieces[0::2], pieces[1::2], strict=False)
    }


def test_the_page_names_a_file_for_each_block() -> None:
    assert list(blocks()) == [
        "revision/alignment/methods/mirror.py",
        "conf/alignment/mirror.yaml",
        "tests/alignment/methods/test_mirror.py",
    ]
    assert not any((ROOT / name).exists() for name in blocks())


@pytest.mark.slow
def test_the_example_obeys_every_law_without_another_edit(tmp_path: Path) -> None:
    ignored = shutil.ignore_patterns("__pycache__", "data", "runs")
    for name in ("revision", "conf"):
        shutil.copytree(ROOT / name, tmp_path / name)
    shutil.copytree(ROOT / "tests", tmp_path / "tests", ignore=ignored)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for name, code in blocks().items():
        (tmp_path / name).write_text(code)
    files = ["tests/alignment/test_laws.py", "tests/alignment/methods/test_mirror.py"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-k", "mirror", "-p", "no:cacheprovider", *files],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    assert int(re.findall(r"(\d+) passed", done.stdout)[0]) > 30
