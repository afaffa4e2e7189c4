"""Repair a feature set: set aside what is broken, have it made again, and compare with before.

Place in the pipeline: `revision/shards/verify.py` -> **repair** -> a set that is whole again.

Only the shards that are broken or missing are made again, by whoever made the set; they are
renamed to `<shard>.broken` first, and come back under their name when that fails. The header stays
where the new shards have the digests of the old ones. On another machine, or with another number
of threads, the last bits of a row may differ: the header is then written anew and the difference
is told.

Killed at any moment, the next repair finds the shards missing and goes on.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

from revision.files import PLAN_NAME, fsync
from revision.shards.layout import Header, ShardInfo
from revision.shards.reader import read_header, shard_info
from revision.shards.verify import TOTALS, Damage, quarantine_fits, shard_problems
from revision.shards.writer import write_header

Maker = Literal["embed.py", "align.py", "scripts/convert.py"]


def made_by(directory: Path) -> tuple[Maker, dict[str, Any]]:
    """Which command wrote the set, and its plan.

    Raises:
        ValueError: nothing says it.
    """
    for path in (directory / PLAN_NAME, directory.parent / PLAN_NAME):
        if path.is_file():
            plan = json.loads(path.read_bytes())
            if "fingerprint" in plan:
                return "embed.py", plan
            if "files" in plan:
                return "scripts/convert.py", plan
            if "alignment" in plan:
                return "align.py", plan
    raise ValueError(
        f"{directory}: no {PLAN_NAME} says how its shards were made, so none can be made again; "
        "copy the broken ones from where the set came from"
    )


def convert_command(directory: Path, header: Header, plan: dict[str, Any]) -> str:
    """The command that makes the missing shards of a converted set again."""
    format = header.encoder["format"]
    in_parent = not (directory / PLAN_NAME).exists() or (directory.parent / "alignment").is_dir()
    words = [
        f"python scripts/convert.py format={format} input={header.source['input']}",
        f"output_dir={directory.parent if in_parent else directory}",
        f"encoder_name={header.encoder['name']} rows_per_shard={plan['rows_per_shard']}",
    ]
    return " ".join([*words, f"kind={plan['kind']}"] if "kind" in plan else words)


def repair(directory: Path, damage: Damage, make_missing: Callable[[], None]) -> list[str]:
    """Make the broken shards again by `make_missing`, which writes those that are not there.

    Returns:
        What was done, a line for each shard.

    Raises:
        ValueError: what `make_missing` raises; or a shard that came back is broken as well.
    """
    header, broken = read_header(directory), list(damage.shards)
    aside = _set_aside(directory, broken)
    try:
        if broken:
            make_missing()
    except BaseException:
        for name, path in aside.items():
            if not (directory / name).exists():
                path.rename(directory / name)
        raise
    after = declare_again(directory)
    before = {info.name: info for info in header.shards}
    again = {info.name: info for info in after}
    for name in broken:
        if problems := shard_problems(directory / name, again[name]):
            raise ValueError(f"{problems[0]}; it was made again a moment ago: check the disk")
    return [_told(directory, before[name], again[name], aside.get(name)) for name in broken]


def _set_aside(directory: Path, names: list[str]) -> dict[str, Path]:
    """Rename the shards that are there, never over one that was set aside before."""
    aside = {}
    for name in names:
        if (directory / name).exists():
            aside[name] = next(path for path in _places(directory, name) if not path.exists())
            (directory / name).rename(aside[name])
    fsync(directory)
    return aside


def _places(directory: Path, name: str) -> Iterator[Path]:
    yield directory / f"{name}.broken"
    number = 2
    while True:
        yield directory / f"{name}.broken{number}"
        number += 1


def declare_again(directory: Path) -> tuple[ShardInfo, ...]:
    """Write header and quarantine anew, unless they are those of the shards that are there now."""
    header = read_header(directory)
    shards = tuple(shard_info(directory / info.name) for info in header.shards)
    totals = all(
        getattr(header, key) == sum(getattr(info, key) for info in shards) for key in TOTALS
    )
    if header.shards == shards and totals and quarantine_fits(directory, header):
        return shards
    write_header(
        directory,
        kind=header.kind,
        encoder=header.encoder,
        source=header.source,
        alignment=header.alignment,
        num_shards=len(shards),
    )
    return shards


def _told(directory: Path, before: ShardInfo, after: ShardInfo, aside: Path | None) -> str:
    where = "was missing" if aside is None else f"set aside as {aside.name}"
    if before.sha256 == after.sha256:
        return f"{directory / after.name}: {where}, made again with the same bytes"
    return (
        f"{directory / after.name}: {where}, made again with other bytes (sha256 "
        f"{after.sha256[:12]}, before {before.sha256[:12]}); other hardware, threads or batches "
        "round the last bits differently"
    )
