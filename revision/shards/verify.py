"""Verify a feature set: read every byte of it and say what is wrong, shard by shard.

Place in the pipeline: feature shards -> **what is broken** -> `revision/shards/repair.py`.

A shard is broken when it is missing, cut, differs from its digest in a single byte, or holds rows,
counts or moments that do not fit together. The set around it has damage of its own: a header that
does not add up, a quarantine that is not that of its shards, an id that occurs twice.

Ids are remembered as 64-bit hashes, eight bytes a record; rows are read a block at a time.
"""

import hashlib
import io
import json
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from revision.progress import track
from revision.records import SeenIds, json_line
from revision.shards.layout import (
    MOMENTS_NAME,
    Header,
    ShardInfo,
    check_width,
    read_member,
    tar_members,
    truncated,
)
from revision.shards.reader import ShardReader, read_header, shard_info, shard_sums
from revision.sums import MomentSums, Scan, scan

SHOWN_IDS = 5
TOTALS = ("num_rows", "num_records", "num_rejected")


@dataclass
class Damage:
    """What is wrong: by shard; with the header and the files beside the shards; with the ids."""

    shards: dict[str, list[str]] = field(default_factory=dict)
    header: list[str] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        by_shard = [problem for problems in self.shards.values() for problem in problems]
        return [*by_shard, *self.header, *self.ids]


def verify(directory: str | Path) -> list[str]:
    """Read a whole feature set and list what is wrong with it; empty when nothing is."""
    return find_damage(directory).lines()


def find_damage(directory: str | Path) -> Damage:
    """`verify`, sorted by what it would take to repair it.

    Raises:
        ValueError: there is no header, or none that can be read.
    """
    directory = Path(directory)
    header, damage, twice = read_header(directory), Damage(), Repeated()
    for info in track(header.shards, f"verify {directory}"):
        problems = shard_problems(directory / info.name, info, twice.meet)
        if problems:
            damage.shards[info.name] = problems
    damage.header = _header_problems(directory, header, skipped=damage.shards)
    if twice.count:
        damage.ids = [f"{directory}: {twice.count} records have an id that another has: {twice}"]
    return damage


class Repeated:
    """The ids that were met more than once: how many, and the first few."""

    def __init__(self) -> None:
        self._seen = SeenIds()
        self.count, self._first = 0, list[str]()

    def meet(self, id: str) -> None:
        if not self._seen.add(id):
            self.count += 1
            self._first = [*self._first, id][:SHOWN_IDS]

    def __str__(self) -> str:
        return _few(self._first, self.count)


def _few(ids: Sequence[str | None], count: int) -> str:
    shown = [repr(id if id is None else id[:80]) for id in ids[:SHOWN_IDS]]
    return ", ".join(shown) + (", ..." if count > len(shown) else "")


def shard_problems(
    path: Path, info: ShardInfo, tell_id: Callable[[str], None] = lambda id: None
) -> list[str]:
    """What is wrong with one shard of which the header says `info`; calls `tell_id` per record."""
    try:
        members = tar_members(path)
        return [*_frame_problems(path, info, members), *_row_problems(path, info, members, tell_id)]
    except (ValueError, OSError) as error:
        return [str(error)]


def _frame_problems(path: Path, info: ShardInfo, members: dict[str, Any]) -> Iterator[str]:
    """The summary, the digest of all before it, and that behind it the tar ends as it should."""
    size = path.stat().st_size
    if size != info.num_bytes:
        yield truncated(path, f"{size} bytes, the header says {info.num_bytes}")
    if shard_info(path) != info:
        yield f"{path}: its summary is not the one in header.json"
    end = members["shard.json"][0] - tarfile.BLOCKSIZE
    with path.open("rb") as file:
        digest = hashlib.sha256()
        for start in range(0, end, 2**20):
            digest.update(file.read(min(2**20, end - start)))
        tail = file.read()
    if digest.hexdigest() != info.sha256:
        found, stated = digest.hexdigest()[:12], info.sha256[:12]
        yield f"{path}: sha256 {found} of the content, header {stated}"
    if tail != _tail(tail, members["shard.json"][1]):
        yield f"{path}: its last {len(tail)} bytes, behind those of the digest, were changed"


def _tail(tail: bytes, size: int) -> bytes:
    """What `ShardWriter` would have written in the place of `tail`."""
    member = tarfile.TarInfo("shard.json")
    member.size = size
    try:
        summary = json.loads(tail[tarfile.BLOCKSIZE :][:size])
    except ValueError:
        return b""
    written = member.tobuf(tarfile.USTAR_FORMAT) + json_line(summary)
    return written + bytes(len(tail) - len(written))


def _row_problems(
    path: Path, info: ShardInfo, members: dict[str, Any], tell_id: Callable[[str], None]
) -> Iterator[str]:
    sums = MomentSums.zero(info.dim)
    for index, (num_rows, num_records) in enumerate(info.blocks):
        address = f"{path} block {index}"
        try:
            found, records = _read_block(path, index, members, info.dim)
        except Exception as error:  # a damaged member makes NumPy and JSON raise anything
            yield f"{address}: cannot be read ({type(error).__name__}: {error})"
            continue
        for record in records:
            tell_id(str(record["id"]))
        if found.bad.any():
            num_bad = int(found.bad.sum())
            yield f"{address}: {num_bad} of {len(found.bad)} rows are zero or not finite"
        claimed = sum(record.get("num_rows", 1) for record in records)
        if (len(found.bad), claimed, len(records)) != (num_rows, num_rows, num_records):
            yield (
                f"{address}: {len(found.bad)} rows and {len(records)} records claiming {claimed}, "
                f"header {num_rows} rows and {num_records} records"
            )
        sums += found.sums
    if info.moments is not None and MOMENTS_NAME in members:
        yield from _compare_moments(path, info, sums)


def _read_block(
    path: Path, index: int, members: dict[str, Any], dim: int
) -> tuple[Scan, list[dict[str, Any]]]:
    content = read_member(path, *members[f"{index:06d}.features.npy"])
    rows = np.load(io.BytesIO(content), allow_pickle=False)
    check_width(rows, dim=dim, address=str(path))
    lines = read_member(path, *members[f"{index:06d}.records.jsonl"]).splitlines()
    return scan(rows), [json.loads(line) for line in lines]


def _header_problems(directory: Path, header: Header, skipped: dict[str, Any]) -> list[str]:
    """Totals that are not the sums over the shards, and files that are not those of the set."""
    problems = []
    for key in TOTALS:
        stated, total = getattr(header, key), sum(getattr(info, key) for info in header.shards)
        if stated != total:
            problems.append(f"{directory}/header.json: {key} {stated}, its shards give {total}")
    formats = {(info.dim, info.dtype) for info in header.shards}
    if formats != {(header.dim, header.dtype)}:
        stated = f"rows of {header.dim} {header.dtype}"
        problems.append(f"{directory}/header.json: {stated}, its shards hold {formats}")
    known = {info.name for info in header.shards}
    surplus = {path.name for path in directory.glob("[0-9]*.tar")} - known
    problems += [f"{directory / name}: not a shard of this set" for name in sorted(surplus)]
    if not skipped and not quarantine_fits(directory, header):
        problems.append(f"{directory}/quarantine.jsonl: not the rejections that the shards hold")
    return problems


def rejected_lines(directory: Path, header: Header) -> Iterator[bytes]:
    """The lines of the quarantine, as the shards hold them."""
    for info in header.shards:
        path = directory / info.name
        yield from read_member(path, *tar_members(path)["rejected.jsonl"]).splitlines(keepends=True)


def quarantine_fits(directory: Path, header: Header) -> bool:
    path = directory / "quarantine.jsonl"
    if not path.is_file():
        return False
    with path.open("rb") as file:
        lines = rejected_lines(directory, header)
        return all(file.read(len(line)) == line for line in lines) and not file.read(1)


def missing_ids(
    directory: Path, header: Header, entry_ids: Iterator[str | None], entries_per_shard: int
) -> list[str]:
    """What of an input is neither in the shard that it belongs to nor in its quarantine.

    `entry_ids` are those of the input in its order; shard k was made of the k-th
    `entries_per_shard` of them.
    """
    problems = []
    for info in track(header.shards, f"compare {directory} with its input"):
        wanted = Counter(id for _, id in zip(range(entries_per_shard), entry_ids, strict=False))
        found = Counter(shard_ids(directory / info.name, info))
        for excess, words in (
            (wanted - found, "are missing from"),
            (found - wanted, "are only in"),
        ):
            if excess:
                ids = list(excess.elements())
                few = _few(ids, len(ids))
                problems.append(f"{len(ids)} ids {words} {directory / info.name}: {few}")
    rest = sum(1 for _ in entry_ids)
    if rest:
        problems.append(f"{directory}: the input goes on with {rest} entries behind its last shard")
    return problems


def shard_ids(path: Path, info: ShardInfo) -> Iterator[str | None]:
    """The ids of a shard's records, and of those that it rejected."""
    members = tar_members(path)
    blocks = [f"{index:06d}.records.jsonl" for index in range(len(info.blocks))]
    for name in [*blocks, "rejected.jsonl"]:
        for line in read_member(path, *members[name]).splitlines():
            yield json.loads(line)["id"]


# ---- moments


def verify_moments(reader: ShardReader) -> list[str]:
    """Recompute the sums that shards carry from their rows, and list those that differ."""
    problems: list[str] = []
    for info in track(reader.header.shards, f"verify moments of {reader.directory}"):
        if info.moments is None:
            continue
        blocks = reader.blocks_of(info.name)
        sums = sum((scan(reader.features(b)).sums for b in blocks), MomentSums.zero(info.dim))
        problems += _compare_moments(reader.directory / info.name, info, sums)
    return problems


def _compare_moments(path: Path, info: ShardInfo, found: MomentSums) -> list[str]:
    stored = shard_sums(path)
    if stored.is_close(found):
        return []
    return [f"{path}: {info.moments} is {_shown(stored)}, its rows give {_shown(found)}"]


def _shown(sums: MomentSums) -> str:
    if sums.count == 0:
        return "of 0 rows"
    return f"of {sums.count} rows with a mean of norm {np.linalg.norm(sums.mean):.12g}"
