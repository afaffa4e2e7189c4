"""The commands of README and docs compose: every key and every choice that they name exists."""

import re
import shlex
from pathlib import Path

import pytest

from revision.config import compose

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def commands(page: Path) -> list[tuple[str, list[str]]]:
    """(script, arguments) of each `python <script>` in the page's bash blocks."""
    found = []
    for block in re.findall(r"```bash\n(.*?)```", page.read_text(), re.S):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words[:1] == ["python"]:
                found.append((words[1], words[2:]))
    return found


CASES = [(page.name, *command) for page in PAGES for command in commands(page)]


def test_commands_are_found() -> None:
    assert len(CASES) >= 20


@pytest.mark.parametrize(("page", "script", "arguments"), CASES)
def test_a_command_composes(page: str, script: str, arguments: list[str]) -> None:
    assert (ROOT / script).is_file(), f"{page} names {script}"
    chosen = [a for a in arguments if a not in ("...", "-m") and not a.startswith("<")]
    concrete = [re.sub(r"<[^>]*>?.*", "x", a) for a in chosen if "=" in a]
    single = [a.split(",")[0] if "-m" in arguments else a for a in concrete]
    if script == "train.py" and not any(a.startswith("name=") for a in single):
        single.append("name=x")
    assert compose(Path(script).stem, single)
