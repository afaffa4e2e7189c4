"""DataModules of the contrastive stages: pairs of stored rows, or pictures with their captions."""

from pathlib import Path

from revision.data.datamodule import PlannedDataModule, tell_index
from revision.data.image_text import ImageTextPairs, check_pair
from revision.data.index import build_index
from revision.data.pairs import PairedRows
from revision.data.schedule import Schedule
from revision.encoders.base import DualEncoder


class PairedRowsDataModule(PlannedDataModule):
    """Pairs of rows for `stage=contrastive`; yields batches with "image" and "text"."""

    def __init__(
        self,
        *,
        images: str | Path,
        texts: str | Path,
        val_images: str | Path | None = None,
        val_texts: str | Path | None = None,
        schedule: Schedule,
        num_samples: int | None = None,
        shuffle_blocks: int = 8,
        num_workers: int = 0,
        val_batch_size: int | None = None,
    ) -> None:
        super().__init__(
            schedule=schedule,
            num_samples=num_samples,
            shuffle_blocks=shuffle_blocks,
            num_workers=num_workers,
            val_batch_size=val_batch_size,
        )
        self.train_pair = Path(images), Path(texts)
        self.val_pair = val_images, val_texts
        if (val_images is None) != (val_texts is None):
            raise ValueError("held-out pairs need both val_images and val_texts")

    def make_sources(self) -> tuple[PairedRows, PairedRows | None]:
        image, text = self.val_pair
        held_out = None
        if image is not None and text is not None:
            held_out = PairedRows(Path(image), Path(text))
        return PairedRows(*self.train_pair), held_out


class ImageTextDataModule(PlannedDataModule):
    """Pictures with captions for training whole towers; yields batches with "image" and "text".

    `keep_pictures` decoded pictures stay in memory, per process that loads data.
    """

    def __init__(
        self,
        *,
        input: str | Path,
        val_input: str | Path | None = None,
        image_root: str | Path | None = None,
        encoder: DualEncoder,
        keep_pictures: int = 0,
        index_root: str | Path = "runs/.index",
        schedule: Schedule,
        num_samples: int | None = None,
        shuffle_blocks: int = 8,
        num_workers: int = 0,
        val_batch_size: int | None = None,
    ) -> None:
        super().__init__(
            schedule=schedule,
            num_samples=num_samples,
            shuffle_blocks=shuffle_blocks,
            num_workers=num_workers,
            val_batch_size=val_batch_size,
        )
        self.input, self.val_input = input, val_input
        self.image_root = None if image_root is None else Path(image_root)
        self.encoder, self.keep_pictures = encoder, keep_pictures
        self.index_root = Path(index_root) / "pairs"  # other records may be used than for turns

    def make_sources(self) -> tuple[ImageTextPairs, ImageTextPairs | None]:
        held_out = None if self.val_input is None else self._source(self.val_input)
        return self._source(self.input), held_out

    def _source(self, input: str | Path) -> ImageTextPairs:
        index = build_index(input, self.index_root, image_root=self.image_root, check=check_pair)
        tell_index(input, index)
        return ImageTextPairs(
            index,
            image_root=self.image_root,
            encoder=self.encoder,
            keep_pictures=self.keep_pictures,
        )
