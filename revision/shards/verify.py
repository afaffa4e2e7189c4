"""Verify a feature set: read every byte of it and say what is wrong."""

import hashlib
import tarfile
from pathlib import Path

from revision.shards.layout import ShardInfo, check_rows, tar_members
from revision.shards.reader import ShardReader, shard_info


def verify(directory: str | Path) -> list[str]:
    """Read a whole feature set and list what is wrong with it; empty when nothing is."""
    reader = ShardReader(directory)
    problems: list[str] = []
    for info in reader.header.shards:
        problems += _verify_shard(reader.directory / info.name, info)
    for block, ref in enumerate(reader.blocks):
        address = f"{reader.directory / ref.shard} block {ref.index}"
        try:
            problems += _verify_block(reader, block, address)
        except ValueError as error:
            problems.append(str(error))
    return problems


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


def _verify_block(reader: ShardReader, block: int, address: str) -> list[str]:
    bad = check_rows(reader.features(block), dim=reader.dim, address=address)
    counts = reader.row_counts(block)
    ref = reader.blocks[block]
    problems = []
    if bad.any():
        problems.append(f"{address}: {int(bad.sum())} of {len(bad)} rows are zero or not finite")
    if (len(counts), int(counts.sum())) != (ref.records, ref.rows):
        problems.append(
            f"{address}: {len(counts)} records claiming {int(counts.sum())} rows, "
            f"header {ref.records} records and {ref.rows} rows"
        )
    return problems
