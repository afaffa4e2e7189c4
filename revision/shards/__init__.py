"""Feature shards: rows of features in webdataset tars, each block beside its records.

Written by `embed.py`, `align.py` and `scripts/convert.py`, read by `align.py` and `train.py`.

    header.json         written last: its presence says that the set is complete
    00000.tar ...       000000.features.npy (N x D), 000000.records.jsonl, 000001.features.npy, ...
                        rejected.jsonl, moments.npy, shard.json
    quarantine.jsonl    the rejections of all shards

A record line is `Record.to_json()` and, where it is not 1, `num_rows`: how many feature rows of
the block belong to it (0 for a text-only record, k for k images). Departs from "one line per row"
so that a record with several images is stored once. `moments.npy` holds exact sums over the unit
rows (`revision.sums`: n, sum of squares, sum), so that means and traces are known without reading a
row; sets written before it existed are read all the same. `shard.json` holds the counts and the
digest of everything before it, so that a resumed run asks a shard for its summary without reading
it.

A shard is written to a temporary name, fsynced and renamed: it exists whole or not at all.
"""

from revision.shards.layout import (
    DTYPES,
    GRID_ROWS,
    BlockRef,
    Header,
    Kind,
    ShardInfo,
    check_rows,
    shard_name,
)
from revision.shards.reader import (
    ShardReader,
    is_feature_set,
    read_header,
    shard_info,
    shard_sums,
)
from revision.shards.verify import verify, verify_moments
from revision.shards.writer import ShardWriter, write_header

__all__ = [
    "DTYPES",
    "GRID_ROWS",
    "BlockRef",
    "Header",
    "Kind",
    "ShardInfo",
    "ShardReader",
    "ShardWriter",
    "check_rows",
    "is_feature_set",
    "read_header",
    "shard_info",
    "shard_name",
    "shard_sums",
    "verify",
    "verify_moments",
    "write_header",
]
