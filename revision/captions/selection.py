"""A selection: which entries of an input are kept, what was removed and why, and the cut.

Place in the pipeline: records -> **selection** -> batches -> encoder -> feature shards.

`select` reads the entries once. A record without a caption is touched by `num_samples` alone, and
what the reader refuses passes through to the quarantine. The result stands beside the shards:

    selection.json    the options, counts, bounds; also `source.selection` of the header
    selection.npy     two rows of bits, one per entry: it passes; it was refused by the reader
    removed.jsonl     id, control and reason of what the content of a caption removed

What `caption_length` and `num_samples` leave out is counted and not listed: there it would be most
of the input, and the bounds in selection.json say the same of every record.
"""

import json
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

import numpy as np
from jaxtyping import Bool, UInt8

from revision.captions.choice import Choice
from revision.captions.columns import BARE, CUT, REFUSED, REMOVED, WHOLE, Columns, id_key
from revision.captions.controls import Controls
from revision.captions.judge import Judge, has_caption
from revision.captions.sentences import cut_caption
from revision.files import replacing, write_bytes
from revision.records import Record, Rejection, json_line

SELECTION_NAME = "selection.json"
_BITS_NAME = "selection.npy"
_REMOVED_NAME = "removed.jsonl"
_CLASSES = ("short", "medium", "long")

Entry = Record | Rejection


@dataclass(frozen=True)
class Selection:
    """Which entries of a stream pass, by their place in it, and what of them is cut.

    `about` is what the header records. Two bits an entry.
    """

    controls: Controls
    about: dict[str, Any]
    bits: UInt8[np.ndarray, "2 bytes"]
    removed: IO[bytes] | None = None  # where it was made, not where it was read

    def __len__(self) -> int:
        return self.about["num_entries"]

    @property
    def kept(self) -> Bool[np.ndarray, " entries"]:
        """True for each entry that passes: the records that are kept and what was refused."""
        return np.unpackbits(self.bits[0], count=len(self)).astype(bool)

    @property
    def num_passing(self) -> int:
        return self.about["num_kept"] + self.about["num_refused"]

    def apply(self, entries: Iterable[Entry]) -> Iterator[Entry]:
        """The entries that pass, cut; `entries` are those of the same input.

        Raises:
            ValueError: a record was refused where the selection was made, so nothing judged it.
        """
        for place, entry in enumerate(entries):
            if not self._bit(0, place):
                continue
            if isinstance(entry, Record):
                if self._bit(1, place):
                    raise ValueError(_unjudged(entry))
                entry = self.edit(entry)
            yield entry

    def edit(self, record: Record) -> Record:
        """The record with its caption cut."""
        return edited(record, self.controls)

    def _bit(self, row: int, place: int) -> int:
        return int(self.bits[row, place >> 3]) >> (7 - (place & 7)) & 1

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"removed": None}  # a worker reads, it does not write

    def write(self, directory: Path) -> None:
        """Store it, `selection.json` last."""
        if self.removed is None:
            return
        with replacing(directory / _REMOVED_NAME) as file:
            self.removed.seek(0)
            shutil.copyfileobj(self.removed, file)
        with replacing(directory / _BITS_NAME) as file:
            np.save(file, self.bits)
        write_bytes(directory / SELECTION_NAME, json.dumps(self.about, indent=1).encode())

    @staticmethod
    def read(directory: Path) -> "Selection":
        """What `write` stored."""
        about = json.loads((directory / SELECTION_NAME).read_bytes())
        bits = np.asarray(np.load(directory / _BITS_NAME, mmap_mode="r", allow_pickle=False))
        return Selection(Controls(**about["controls"]), about, bits)

    def summary(self) -> str:
        """What was done, in a line."""
        removed = ", ".join(f"{count} by {name}" for name, count in self.about["removed"].items())
        is_cut = self.controls.max_caption_words or self.controls.max_caption_sentences
        num_records = len(self) - self.about["num_refused"]
        return (
            f"{self.about['num_kept']} of {num_records} records kept "
            f"({self.about['num_captions']} have a caption); removed: {removed or 'none'}"
            + (f"; {self.about['num_cut']} captions cut" if is_cut else "")
        )


def edited(record: Record, controls: Controls) -> Record:
    """The record with its caption cut as `controls` say, also where it is a turn of a conversation.

    Other turns stay whole: what is not the caption has its own length.
    """
    words, sentences = controls.max_caption_words, controls.max_caption_sentences
    if not record.text or (words is None and sentences is None):
        return record
    cut = cut_caption(record.text, max_words=words, max_sentences=sentences)
    turns = (replace(t, text=cut) if t.text == record.text else t for t in record.conversations)
    return replace(record, text=cut, conversations=tuple(turns))


def select(entries: Iterable[Entry], controls: Controls) -> Selection:
    """Judge the records of a stream by `controls`.

    Raises:
        ValueError: nothing is left, fewer than `num_samples` are, or a package is missing.
    """
    judge, columns = Judge(controls), Columns()
    counts: Counter[str] = Counter()
    removed = tempfile.TemporaryFile()  # noqa: SIM115 -- lives as long as the selection
    for entry in entries:
        if isinstance(entry, Rejection):
            columns.append(0, 0, REFUSED)
            continue
        verdict = judge(entry)
        if verdict.control:
            counts[verdict.control] += 1
            reason = {"id": entry.id, "control": verdict.control, "reason": verdict.reason}
            removed.write(json_line(reason))
        columns.append(id_key(entry.id), verdict.words, _state(entry, controls, verdict.control))
    chosen = Choice.make(columns, controls)
    return _selection(columns, judge, counts, chosen, removed)


def _state(record: Record, controls: Controls, control: str) -> int:
    if control:
        return REMOVED
    if not has_caption(record):
        return BARE
    return WHOLE if edited(record, controls).text == record.text else CUT


def _selection(
    columns: Columns,
    judge: Judge,
    removed_by: Counter[str],
    choice: Choice,
    removed: IO[bytes],
) -> Selection:
    found: Counter[str] = Counter()
    parts: list[np.ndarray] = []
    for rows in columns.chunks():
        of_length, kept = choice.of_length(rows), choice.kept(rows)
        refused, captioned = rows["state"] == REFUSED, rows["state"] >= WHOLE
        found["refused"] += int(refused.sum())
        found["captions"] += int((captioned | (rows["state"] == REMOVED)).sum())
        found["kept"] += int(kept.sum())
        found["cut"] += int((kept & (rows["state"] == CUT)).sum())
        found["caption_length"] += int((captioned & ~of_length).sum())
        found["num_samples"] += int((of_length & ~kept).sum())
        parts.append(np.packbits(np.stack([kept | refused, refused]), axis=1))
    for control in ("caption_length", "num_samples"):
        if found[control]:
            removed_by[control] = found[control]
    about = {
        "controls": judge.controls.active(),
        "packages": judge.packages,
        "num_entries": len(columns),
        "num_refused": found["refused"],
        "num_captions": found["captions"],
        "removed": dict(removed_by),
        "num_kept": found["kept"],
        "num_cut": found["cut"],
        "terciles": choice.terciles,
        "largest_key": choice.largest_key,
    }
    if found["kept"] == 0 and len(columns) > found["refused"]:
        raise ValueError(_nothing_left(about))
    bits = np.concatenate([np.zeros((2, 0), np.uint8), *parts], axis=1)
    return Selection(judge.controls, about, bits, removed)


def _nothing_left(about: dict[str, Any]) -> str:
    bounds = f"; the terciles of words are {about['terciles']}" if about["terciles"] else ""
    return (
        f"the caption controls {about['controls']} leave none of "
        f"{about['num_entries'] - about['num_refused']} records; removed by {about['removed']}"
        f"{bounds}. Loosen them"
    )


def _unjudged(record: Record) -> str:
    return (
        f"record {record.id!r}: an earlier entry of the input has the same id, so the caption "
        "controls have not judged this one; put a picture and its text into one entry, or into the "
        'lists of {"images": [...], "texts": [...]}'
    )
