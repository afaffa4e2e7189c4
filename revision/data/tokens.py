"""The token cache: ids, targets and lengths of every record on disk, made once, read by mapping.

`build_tokens` encodes the records of a source in parts of 65,536 and leaves

    <token_root>/<fingerprint>/tokens.i32    2 id + target for each token of each record
                               starts.i64    per record, and one behind the last: where its tokens,
                                             the bytes of its id and its pictures start
                               lengths.i32   LLM positions of each record once its slots are filled
                               ids.bin       the ids of the records, one behind the other
                               tokens.json   counts and what it was made from: written last

A slot counts `tokens_per_image` positions; -200 and all ids keep their place in 31 bits. The
fingerprint covers the records, the tokenizer, the template, the limit and the caption options, so
that no change of these finds old tokens. Parts appear whole, so a killed build goes on with the
first missing one; two builds of one cache wait for each other (on a file system without locks the
slower one may end with an error; run it again). Needs twice its size while the parts are joined.

A record that cannot be encoded ends the build with the first few of them named, all of them in
`rejected.jsonl`: the numbers of records are those of the source, so none can be left out here.
"""

import hashlib
import json
import mmap
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from revision.data.samples import IGNORE, IMAGE_SLOT, Batch
from revision.data.turn_encoder import Encoded
from revision.files import explained, locked, replacing, write_bytes
from revision.parallel import end_with_parent
from revision.progress import track

PART_RECORDS = 65_536
REJECTED = "rejected.jsonl"
_VERSION = 1
_COUNTS = ("num_tokens", "num_id_bytes", "num_pictures")
_FILES = ("tokens.i32", "starts.i64", "ids.bin", "lengths.i32")
_CHUNK = 512
_KEPT_BATCHES = 64
_SHOWN = 5


class TokenSource(Protocol):
    """Records that can be encoded. `identity` holds all that decides what `encode` gives, and the
    `tokens_per_image`."""

    def __len__(self) -> int: ...

    def identity(self) -> dict[str, Any]: ...

    def encode(self, numbers: Sequence[int]) -> list[tuple[str, Encoded | ValueError]]: ...


class TokenCache:
    """The tokens of a complete cache, by record number. May be pickled to workers.

    Pages of the files that were looked at are let go every few batches: resident memory does not
    grow with the data.

    Raises ValueError for a file of another size than was written: one that was copied in part.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        _check_sizes(directory)
        self.lengths = np.memmap(directory / "lengths.i32", np.int32, mode="r")
        self._maps = [_mapped(directory / f"{name}") for name in _FILES[:3]]
        self._tokens = np.frombuffer(self._maps[0], np.int32)
        self._starts = np.frombuffer(self._maps[1], np.int64).reshape(-1, 3)
        self._ids = self._maps[2]
        self._num_batches = 0

    def __len__(self) -> int:
        return len(self.lengths)

    def __getstate__(self) -> Path:
        return self.directory

    def __setstate__(self, directory: Path) -> None:
        TokenCache.__init__(self, directory)

    @property
    def num_pictures(self) -> int:
        return int(self._starts[-1, 2])

    def picture_starts(self, numbers: np.ndarray) -> np.ndarray:
        """How many pictures the records before each of these have."""
        return self._starts[numbers, 2]

    def num_images(self, numbers: np.ndarray) -> np.ndarray:
        return self._starts[numbers + 1, 2] - self._starts[numbers, 2]

    def ids(self, numbers: np.ndarray) -> list[str]:
        firsts, lasts = self._starts[numbers, 1].tolist(), self._starts[numbers + 1, 1].tolist()
        stored = self._ids
        return [
            stored[a:b].decode("utf-8", "surrogatepass") for a, b in zip(firsts, lasts, strict=True)
        ]

    def batch(self, numbers: np.ndarray) -> Batch:
        """The padded texts of these records, without pictures."""
        self._num_batches += 1
        if self._num_batches % _KEPT_BATCHES == 0:
            for mapped in self._maps:
                mapped.madvise(mmap.MADV_DONTNEED)
        firsts = self._starts[numbers, 0]
        lengths = self._starts[numbers + 1, 0] - firsts
        ends = lengths.cumsum()
        places = np.arange(ends[-1]) + np.repeat(firsts - ends + lengths, lengths)
        stored = self._tokens[places]
        inside = np.arange(lengths.max()) < lengths[:, None]
        input_ids = np.zeros(inside.shape, np.int64)
        input_ids[inside] = stored >> 1
        labels = np.full(inside.shape, IGNORE, np.int64)
        labels[inside] = np.where(stored & 1, stored >> 1, IGNORE)
        batch = Batch(
            ids=self.ids(numbers),
            input_ids=torch.from_numpy(input_ids),
            labels=torch.from_numpy(labels),
            lengths=torch.from_numpy(lengths),
        )
        batch.window_targets = batch.num_targets
        return batch


def _check_sizes(directory: Path) -> None:
    about = json.loads((directory / "tokens.json").read_bytes())
    count = about["num_records"]
    sizes = 4 * about["num_tokens"], 24 * (count + 1), about["num_id_bytes"] + 1, 4 * count
    for name, size in zip(_FILES, sizes, strict=True):
        path = directory / name
        found = path.stat().st_size if path.is_file() else 0
        if found != size:
            raise ValueError(
                f"{path}: {found} bytes, {size} were written; delete {directory}, and the same "
                "command makes it again"
            )


def _mapped(path: Path) -> mmap.mmap:
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def build_tokens(
    source: TokenSource, token_root: Path, *, num_workers: int | None = None
) -> TokenCache:
    """The token cache of `source`, built now unless it exists, by `num_workers` processes.

    None takes one process per core. The number changes no byte of the result.

    Raises:
        ValueError: records cannot be encoded.
    """
    identity = source.identity() | {"version": _VERSION, "part_records": PART_RECORDS}
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    directory = token_root / digest[:24]
    if not (directory / "tokens.json").exists():
        directory.mkdir(parents=True, exist_ok=True)
        with locked(directory, wait=True):
            if not (directory / "tokens.json").exists():
                _write_parts(source, directory, num_workers)
                _join(directory, len(source), identity)
    return TokenCache(directory)


@dataclass(frozen=True)
class _Parts(Dataset[int]):
    """Asking for a part writes it, in whatever process is asked."""

    source: TokenSource
    directory: Path

    def __getitem__(self, part: int) -> int:
        first = part * PART_RECORDS
        last = min(first + PART_RECORDS, len(self.source))
        arrays = _encoded(self.source, range(first, last))
        path = _part_path(self.directory, part)
        with replacing(path) as file, explained(path):
            np.savez(file, **arrays)  # type: ignore[arg-type]
        return part


def _part_path(directory: Path, part: int) -> Path:
    return directory / "parts" / f"{part:07d}.npz"


def _num_parts(num_records: int) -> int:
    return -(-num_records // PART_RECORDS)


def _write_parts(source: TokenSource, directory: Path, num_workers: int | None) -> None:
    parts = range(_num_parts(len(source)))
    missing = [part for part in parts if not _part_path(directory, part).exists()]
    workers = min(os.cpu_count() or 1 if num_workers is None else num_workers, len(missing))
    loader: DataLoader[int] = DataLoader(
        _Parts(source, directory),
        batch_size=None,
        sampler=missing,
        num_workers=workers if workers > 1 else 0,
        worker_init_fn=end_with_parent,
        generator=torch.Generator(),  # the default one belongs to the training step
    )
    written = iter(loader)  # a bar over the loader itself would begin it twice
    for _ in track(written, f"tokenise {len(source)} records", total=len(missing)):
        pass


def _encoded(source: TokenSource, numbers: range) -> dict[str, np.ndarray]:
    """The arrays of a part; sizes are those of each record."""
    tokens, sizes, ids, rejected = [], [], [], []
    for start in range(numbers.start, numbers.stop, _CHUNK):
        chunk = range(start, min(start + _CHUNK, numbers.stop))
        for number, (id, encoded) in zip(chunk, source.encode(chunk), strict=True):
            name = id.encode("utf-8", "surrogatepass")
            if isinstance(encoded, ValueError):
                rejected.append({"number": number, "id": id, "reason": str(encoded)})
                continue
            own = encoded.input_ids.numpy()
            tokens.append((own << 1 | (encoded.labels.numpy() != IGNORE)).astype(np.int32))
            sizes.append((len(own), len(name), int((own == IMAGE_SLOT).sum())))
            ids.append(name)
    return {
        "tokens": np.concatenate([np.zeros(0, np.int32), *tokens]),
        "sizes": np.array(sizes, np.int64).reshape(-1, 3),
        "ids": np.frombuffer(b"".join(ids), np.uint8),
        "rejected": np.frombuffer(b"".join(_line(entry) for entry in rejected), np.uint8),
    }


def _line(entry: dict[str, Any]) -> bytes:
    return json.dumps(entry).encode() + b"\n"


def _join(directory: Path, num_records: int, identity: dict[str, Any]) -> None:
    """Write the files of the cache from its parts, and remove these.

    Raises:
        ValueError: some records were rejected.
    """
    parts = [_part_path(directory, part) for part in range(_num_parts(num_records))]
    _check_rejected(directory, parts, num_records)
    base = np.zeros((1, 3), np.int64)
    with ExitStack() as stack:
        tokens, starts, ids, lengths = (
            stack.enter_context(replacing(directory / name)) for name in _FILES
        )
        stack.enter_context(explained(directory))
        starts.write(base.tobytes())
        for path in parts:
            with np.load(path, allow_pickle=False) as part:
                sizes, own = part["sizes"], part["tokens"]
                tokens.write(own.tobytes())
                ids.write(part["ids"].tobytes())
            ends = base + sizes.cumsum(0)
            starts.write(ends.tobytes())
            positions = sizes[:, 0] + sizes[:, 2] * (identity["tokens_per_image"] - 1)
            lengths.write(positions.astype(np.int32).tobytes())
            base = ends[-1:]
        ids.write(b"\0")  # an empty file cannot be mapped
    counts = dict(zip(_COUNTS, base[0].tolist(), strict=True))
    about = {"num_records": num_records, **counts, "identity": identity}
    write_bytes(directory / "tokens.json", json.dumps(about, indent=1).encode())
    shutil.rmtree(directory / "parts", ignore_errors=True)


def _check_rejected(directory: Path, parts: list[Path], num_records: int) -> None:
    lines = [line for path in parts for line in _rejected(path)]
    if not lines:
        return
    write_bytes(directory / REJECTED, b"\n".join(lines) + b"\n")
    first = [json.loads(line) for line in lines[:_SHOWN]]
    named = "; ".join(f"record {entry['id']!r}: {entry['reason']}" for entry in first)
    raise ValueError(
        f"{len(lines)} of {num_records} records cannot be encoded, all of them listed in "
        f"{directory / REJECTED}: {named}{'; ...' if len(lines) > _SHOWN else ''}"
    )


def _rejected(path: Path) -> Iterator[bytes]:
    with np.load(path, allow_pickle=False) as part:
        yield from part["rejected"].tobytes().splitlines()
