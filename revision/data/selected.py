"""Which records of a source a run trains on, by the caption controls: judged once, kept on disk.

Place in the pipeline: source -> **selection** -> plan -> batches. `select_records` streams the
records through `revision.captions.select`, the rule of `embed.py`, and leaves

    <root>/selection-<fingerprint>/    what `revision.captions.selection` describes

The fingerprint covers the records and the filters. The cut of captions and `num_samples` are no
part of it, so a sweep over these reads the records once; nor are they part of what is judged here:
the cut is made when a caption is read, the subset by the plan.

Departs from `embed.py` in the subset: there it goes by the hash of the ids, here by that of the
positions (`revision.data.plan`), as it does without any filter.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from revision.captions import Controls, Selection, select
from revision.captions.selection import SELECTION_NAME
from revision.files import locked
from revision.progress import track
from revision.records import Record

_VERSION = 1


class Records(Protocol):
    """A source as it is judged; `data_identity` tells its records from others."""

    def __len__(self) -> int: ...

    def records(self) -> Iterator[Record]: ...

    def data_identity(self) -> dict[str, Any]: ...


def select_records(source: Records, controls: Controls, root: Path) -> Selection | None:
    """What `controls` keep of the records of `source`, made now unless it lies in `root`.

    None where no filter is set: then nothing is read. Processes that ask at once wait for the
    first of them.

    Raises:
        ValueError: nothing is left, or a package is missing.
    """
    filters = replace(
        controls, num_samples=None, max_caption_sentences=None, max_caption_words=None
    )
    if not filters.active():
        return None
    identity = {"records": source.data_identity(), "filters": filters.active(), "rule": _VERSION}
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    directory = root / f"selection-{digest[:24]}"
    if not (directory / SELECTION_NAME).exists():
        directory.mkdir(parents=True, exist_ok=True)
        with locked(directory, wait=True):
            if not (directory / SELECTION_NAME).exists():
                records = track(source.records(), "judge captions", total=len(source))
                select(records, filters).write(directory)
    return Selection.read(directory)
