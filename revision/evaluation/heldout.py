"""Held-out records with their pictures, from a feature set or from images on the fly.

Both kinds give the same view: records in order, pictures numbered through all records, and the
visual rows of any picture on demand. Records (their texts) are held in memory, pictures are not.
Where the model's alignment moves images too, rows of pictures come out moved (`image_map`).
"""

import hashlib
import json
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from revision.alignment.base import AlignmentMap
from revision.encoders.base import DualEncoder, check_same_encoder, rows_per_image
from revision.records import Record, Rejection, read_records
from revision.records.inputs import InputFile, digests_of, input_files
from revision.remote import url_text
from revision.shards import ShardReader, is_feature_set

Visual = Literal["real", "zero", "shuffled"]


@dataclass(frozen=True, kw_only=True)
class HeldOutSet(ABC):
    """`pictures[i]` are the numbers of the pictures of `records[i]`."""

    records: Sequence[Record]
    pictures: Sequence[Sequence[int]]
    rejected: Sequence[Rejection]
    image_map: AlignmentMap | None = None

    @abstractmethod
    def rows(self, picture: int) -> Float[Tensor, "R D"]:
        """The visual rows of one picture."""

    def _placed(self, rows: Float[Tensor, "R D"]) -> Float[Tensor, "R D"]:
        """Rows of a picture where the model's alignment puts them."""
        if self.image_map is None:
            return rows
        device = self.image_map.target_mean.device
        return self.image_map.forward_images(rows.to(device)).cpu()


@dataclass(frozen=True, kw_only=True)
class FeatureSet(HeldOutSet):
    """A feature set written by `embed.py` (or aligned text: what stage 1 was trained on).

    `starts` holds the number of the first row of each block.
    """

    reader: ShardReader
    starts: Sequence[int]

    def rows(self, picture: int) -> Float[Tensor, "R D"]:
        """The feature rows; pooled, R is 1."""
        count = rows_per_image(self.reader.header.encoder)
        block = bisect_right(self.starts, picture * count) - 1
        first = picture * count - self.starts[block]
        stored = self.reader.features(block)[first : first + count]
        rows = torch.from_numpy(stored.astype(np.float32))
        return self._placed(rows) if self.reader.header.kind == "image" else rows


@dataclass(frozen=True, kw_only=True)
class ImageSet(HeldOutSet):
    """Records with images, encoded when asked for. `owners` names each picture's record and its
    place there."""

    encoder: DualEncoder
    owners: Sequence[tuple[Record, int]]
    image_root: Path | None

    def rows(self, picture: int) -> Float[Tensor, "R D"]:
        """Decode and encode one picture.

        Raises ValueError with the record's id when the image cannot be read: leaving it out would
        change the number of questions behind a score.
        """
        record, place = self.owners[picture]
        try:
            picture_inputs = self.encoder.read_inputs(
                record.images[place], image_root=self.image_root
            )
        except ValueError as error:
            raise ValueError(f"record {record.id!r}: {error}") from error
        device = next(self.encoder.parameters()).device
        with torch.no_grad():
            rows = self.encoder.visual(picture_inputs[None].to(device))[0].cpu()
        return self._placed(rows)


def open_heldout(
    path: Path,
    *,
    encoder: DualEncoder | None = None,
    image_root: Path | None = None,
    image_map: AlignmentMap | None = None,
) -> HeldOutSet:
    """The feature set in `path`, or the records of `path` with images encoded by `encoder`.

    `image_map` is the model's; rows of texts do not go through it.

    Raises ValueError when images have to be encoded and the model holds no encoder, or when the
    rows of the feature set come from another encoder than `encoder`.
    """
    path = Path(path)
    if is_feature_set(path):
        reader = ShardReader(path)
        if encoder is not None:
            check_same_encoder(path, reader.header.encoder, encoder)
        return _feature_set(reader, image_map)
    if encoder is None:
        raise ValueError(
            f"{path} holds images and the model directory holds no encoder; "
            "give a feature set (embed.py), or save the model with its encoder"
        )
    entries = list(read_records(path, side="image", image_root=image_root))
    records = [entry for entry in entries if isinstance(entry, Record)]
    rejected = [entry for entry in entries if isinstance(entry, Rejection)]
    pictures = _numbered([len(record.images) for record in records])
    owners = [(record, place) for record in records for place in range(len(record.images))]
    return ImageSet(
        records=records,
        pictures=pictures,
        rejected=rejected,
        encoder=encoder,
        owners=owners,
        image_root=image_root,
        image_map=image_map,
    )


def _feature_set(reader: ShardReader, image_map: AlignmentMap | None) -> FeatureSet:
    blocks = range(len(reader.blocks))
    records = [record for block in blocks for record in reader.records(block)]
    per_image = rows_per_image(reader.header.encoder)
    counts = [int(count) // per_image for block in blocks for count in reader.row_counts(block)]
    starts = np.cumsum([0, *(ref.rows for ref in reader.blocks)])[:-1].tolist()
    lines = reader.quarantine().splitlines()
    rejected = [Rejection(**json.loads(line)) for line in lines]
    return FeatureSet(
        records=records,
        pictures=_numbered(counts),
        rejected=rejected,
        reader=reader,
        starts=starts,
        image_map=image_map,
    )


def _numbered(counts: Sequence[int]) -> list[range]:
    ends = np.cumsum([0, *counts]).tolist()
    return [range(start, end) for start, end in pairwise(ends)]


def input_digest(path: Path) -> str:
    """What identifies the held-out data: the header of a feature set (it holds the digest of
    every shard), or the bytes of the input's files.

    Raises ValueError when there is nothing at `path`.
    """
    if is_feature_set(path):
        digests = [InputFile(f"{url_text(path)}/header.json").digest()]
    else:
        digests = digests_of(input_files(path))
    return hashlib.sha256(" ".join(digests).encode()).hexdigest()


def quarantine_lines(rejected: Sequence[Rejection]) -> bytes:
    """The entries that were refused, one JSON object per line."""
    return "".join(json.dumps(asdict(entry)) + "\n" for entry in rejected).encode()


def partners(num_pictures: int, *, seed: int) -> list[int]:
    """For each picture another one: one random cycle through all, so none keeps its own.

    Raises ValueError below two pictures, where "another picture" does not exist.
    """
    if num_pictures < 2:
        raise ValueError(
            f"visual=shuffled needs at least 2 pictures, the set has {num_pictures}; "
            "leave it out or take more records"
        )
    order = np.random.default_rng(seed).permutation(num_pictures)
    other = np.empty(num_pictures, dtype=np.int64)
    other[order] = np.roll(order, -1)
    return [int(picture) for picture in other]


def visual_rows(
    heldout: HeldOutSet, pictures: Sequence[int], visual: str, other: Sequence[int]
) -> Float[Tensor, "pictures R D"] | None:
    """What the model sees of these pictures: their rows, zeros, or another picture's rows."""
    if not pictures:
        return None
    chosen = [other[picture] if visual == "shuffled" else picture for picture in pictures]
    rows = torch.stack([heldout.rows(picture) for picture in chosen])
    return torch.zeros_like(rows) if visual == "zero" else rows
