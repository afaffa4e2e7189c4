"""The commands of README and docs compose: every key and every choice that they name exists.

So does every file that they link to, and every page that a config points to.
"""

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


LINKS = [
    (page, link.split("#")[0])
    for page in PAGES
    for link in re.findall(r"\]\(([^)\s]+)\)|<img[^>]* src=\"([^\"]+)\"", page.read_text())
    for link in filter(None, link)
    if not re.match(r"[a-z]+:|#", link)
]


def test_links_are_found() -> None:
    assert len(LINKS) >= 8


@pytest.mark.parametrize(("page", "link"), LINKS, ids=lambda part: getattr(part, "name", part))
def test_a_link_leads_to_a_file(page: Path, link: str) -> None:
    assert (page.parent / link).exists(), f"{page.name} links to {link}"


def test_the_pages_that_configs_point_to_exist() -> None:
    texts = {path: path.read_text() for path in (ROOT / "conf").rglob("*.yaml")}
    named = {(path, page) for path, t in texts.items() for page in re.findall(r"docs/\w+\.\w+", t)}
    assert named
    for path, page in named:
        assert (ROOT / page).is_file(), f"{path} names {page}"
