"""Verify a feature set: read every byte of it and say what is wrong."""

import hashlib
import tarfile
from pathlib import Path

import numpy as np

from revision.progress import track
from revision.shards.layout import ShardInfo, tar_members
from revision.shards.reader import ShardReader, shard_info, shard_sums
from revision.sums import MomentSums, Scan, scan


def verify(directory: str | Path) -> list[str]:
    """Read a whole feature set and list what is wrong with it; empty when nothing is."""
    reader = ShardReader(directory)
    problems: list[str] = []
    for info in track(reader.header.shards, f"verify {reader.directory}"):
        path = reader.directory / info.name
        problems += _verify_shard(path, info)
        try:
            scans = _scans(reader, info)
            for block, found in scans.items():
                problems += _verify_block(reader, block, found.bad)
            problems += _verify_moments(path, info, scans)
        except ValueError as error:
            problems.append(str(error))
    return problems


def verify_moments(reader: ShardReader) -> list[str]:
    """Recompute the sums that shards carry from their rows, and list those that differ."""
    problems: list[str] = []
    for info in track(reader.header.shards, f"verify moments of {reader.directory}"):
        problems += _verify_moments(reader.directory / info.name, info, _scans(reader, info))
    return problems


def _scans(reader: ShardReader, info: ShardInfo) -> dict[int, Scan]:
    return {block: scan(reader.features(block)) for block in reader.blocks_of(info.name)}


def _verify_moments(path: Path, info: ShardInfo, scans: dict[int, Scan]) -> list[str]:
    if info.moments is None:
        return []
    found = sum((found.sums for found in scans.values()), MomentSums.zero(info.dim))
    stored = shard_sums(path)
    if stored.is_close(found):
        return []
    return [f"{path}: {info.moments} is {_shown(stored)}, its rows give {_shown(found)}"]


def _shown(sums: MomentSums) -> str:
    if sums.count == 0:
        return "of 0 rows"
    return f"of {sums.count} rows with a mean of norm {np.linalg.norm(sums.mean):.12g}"


def _verify_shard(path: Path, info: ShardInfo) -> list[str]:
    try:
        found = shard_info(path)
        end = tar_members(path)["shard.json"][0] - tarfile.BLOCKSIZE
    except ValueError as error:
        return [str(error)]
    digest = _digest(path, end)
    problems = [] if found == info else [f"{path}: its summary is not the one in header.json"]
    if digest != info.sha256:
        problems.append(f"{path}: sha256 {digest[:12]} of the content, header {info.sha256[:12]}")
    return problems


def _digest(path: Path, num_bytes: int) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while num_bytes > 0 and (piece := file.read(min(num_bytes, 2**20))):
            digest.update(piece)
            num_bytes -= len(piece)
    return digest.hexdigest()


def _verify_block(reader: ShardReader, block: int, bad: np.ndarray) -> list[str]:
    ref, counts = reader.blocks[block], reader.row_counts(block)
    address = f"{reader.directory / ref.shard} block {ref.index}"
    problems = []
    if bad.any():
        problems.append(f"{address}: {int(bad.sum())} of {len(bad)} rows are zero or not finite")
    if (len(counts), int(counts.sum())) != (ref.records, ref.rows):
        problems.append(
            f"{address}: {len(counts)} records claiming {int(counts.sum())} rows, "
            f"header {ref.records} records and {ref.rows} rows"
        )
    return problems
