"""The plan of an embedding run: the input, what one feature set will hold, and its fingerprint.

Place in the pipeline: records -> **plan** -> batches -> encoder -> feature shards. `plan.json`
beside the shards says with what they were begun, so that a run which is started again either
continues the same set or refuses to mix two.

Caption controls (`revision/captions/`) say which entries of the input the set will hold. Where one
entry may carry a picture and its text, both sets are made by one selection, so pairs stay pairs;
the lists of the ReVision format are judged each for itself, and equal ids fall alike.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from revision.captions import Controls, Selection, select
from revision.encoders.base import Side
from revision.files import write_bytes
from revision.progress import track
from revision.records import Record, Rejection, read_records
from revision.records.formats import chosen_format
from revision.records.inputs import digests_of, input_files, shown_input
from revision.records.read import Side as RecordSide
from revision.shards import DTYPES, Header, shard_name, write_header

PLAN_NAME = "plan.json"

Entry = Record | Rejection


@dataclass(frozen=True)
class Source:
    """The input of one feature set, as all processes and workers read it.

    `selection` says which entries there are, and cuts their captions.
    """

    path: str
    side: Side
    image_root: Path | None = None
    format: str = "auto"
    selection: Selection | None = None

    def entries(self) -> Iterator[Entry]:
        entries = self.read(self.side)
        return entries if self.selection is None else self.selection.apply(entries)

    def read(self, side: RecordSide) -> Iterator[Entry]:
        """All entries of one side of the input. Every worker of every process reads them all, so
        remote files are read through the cache of the machine."""
        root = self.image_root
        return read_records(
            self.path, side=side, image_root=root, format=self.format, is_shared=True
        )

    def digest(self) -> str:
        """SHA-256 of the input's files, or of what identifies their version where they are remote;
        not of the pictures that a JSON file points to."""
        files = input_files(self.path, self.format)
        digests = digests_of(files)
        if chosen_format(self.path, self.format) == "folder":  # there names are the ids
            digests += [Path(file.address).relative_to(self.path).as_posix() for file in files]
        return hashlib.sha256("\n".join(digests).encode()).hexdigest()


class Selector:
    """The selections of one input by the same controls; one for both sides where they agree."""

    def __init__(self, controls: Controls) -> None:
        self.controls = controls
        self._made: dict[str, Selection] = {}

    def __call__(self, source: Source) -> Selection:
        in_lists = chosen_format(source.path, source.format) == "revision"
        side: RecordSide = source.side if in_lists else "both"
        if side not in self._made:
            what = "entries" if side == "both" else f"{side} records"
            self._made[side] = select(track(source.read(side), f"select {what}"), self.controls)
        return self._made[side]


@dataclass(frozen=True)
class Plan:
    """What one feature set will hold; `plan.json` beside the shards records it."""

    source: Source
    directory: Path
    rows_per_shard: int
    num_entries: int
    fingerprint: dict[str, Any]

    @property
    def dtype(self) -> str:
        return self.fingerprint["dtype"]

    @staticmethod
    def make(
        source: Source,
        directory: Path,
        *,
        encoder: dict[str, Any],
        dtype: str,
        rows_per_shard: int,
        selector: Selector | None = None,
    ) -> "Plan":
        """Plan the set, or take up the plan that is there; `selector` narrows the source.

        Raises:
            ValueError: the directory was begun with another plan, the input has no entry, or a
            setting cannot be used.
        """
        if rows_per_shard < 1:
            raise ValueError(f"rows_per_shard must be at least 1, got {rows_per_shard}")
        if dtype not in DTYPES:
            raise ValueError(f"features are stored as one of {', '.join(DTYPES)}, got {dtype!r}")
        fingerprint: dict[str, Any] = {
            "encoder": encoder,
            "input_sha256": source.digest(),
            "side": source.side,
            "dtype": dtype,
            "rows_per_shard": rows_per_shard,
        }
        controls = selector.controls.active() if selector else {}
        if controls:
            fingerprint["selection"] = controls
        if (directory / PLAN_NAME).exists():
            source, num_entries = _taken_up(source, directory, fingerprint)
        else:
            source, num_entries = _counted(source, selector if controls else None)
        if num_entries == 0:
            raise ValueError(f"{source.path}: no {source.side} entry to embed")
        return Plan(source, directory, rows_per_shard, num_entries, fingerprint)

    def record(self) -> None:
        """Write the selection and `plan.json` where there is none; one process does it."""
        path = self.directory / PLAN_NAME
        if not path.exists():
            if self.source.selection is not None:
                self.source.selection.write(self.directory)
            content = {"fingerprint": self.fingerprint, "num_entries": self.num_entries}
            write_bytes(path, json.dumps(content, indent=1).encode())

    @property
    def num_shards(self) -> int:
        return -(-self.num_entries // self.rows_per_shard)

    def shard_path(self, index: int) -> Path:
        return self.directory / shard_name(index)

    def missing(self) -> list[int]:
        return [k for k in range(self.num_shards) if not self.shard_path(k).exists()]

    def num_entries_in(self, shard: int) -> int:
        return min(self.rows_per_shard, self.num_entries - shard * self.rows_per_shard)

    def write_header(self) -> Header:
        """Declare the set complete; every shard must be there."""
        root, selection = self.source.image_root, self.source.selection
        return write_header(
            self.directory,
            kind=self.source.side,
            encoder=self.fingerprint["encoder"],
            source={
                "input": shown_input(self.source.path),
                "input_sha256": self.fingerprint["input_sha256"],
                "image_root": None if root is None else str(root),
            }
            | ({} if selection is None else {"selection": selection.about}),
            num_shards=self.num_shards,
        )


def _taken_up(source: Source, directory: Path, fingerprint: dict[str, Any]) -> tuple[Source, int]:
    """The source and its number of entries, as the plan that is there has them."""
    recorded = json.loads((directory / PLAN_NAME).read_bytes())
    _check_same(recorded["fingerprint"], fingerprint, directory)
    if "selection" in fingerprint:
        source = replace(source, selection=Selection.read(directory))
    return source, recorded["num_entries"]


def _counted(source: Source, selector: Selector | None) -> tuple[Source, int]:
    """The source with its selection, and how many entries that leaves."""
    if selector is not None:
        selection = selector(source)
        return replace(source, selection=selection), selection.num_passing
    return source, sum(1 for _ in track(source.entries(), f"count {source.side} records"))


def _check_same(recorded: dict[str, Any], wanted: dict[str, Any], directory: Path) -> None:
    differing = [
        f"{key} was {recorded.get(key)!r} and is now {wanted.get(key)!r}"
        for key in sorted(recorded.keys() | wanted.keys())
        if recorded.get(key) != wanted.get(key)
    ]
    if differing:
        raise ValueError(
            f"{directory} was begun with other settings: {'; '.join(differing)}. Its shards would "
            "be mixed with different ones: choose another output_dir, or delete this one"
        )
