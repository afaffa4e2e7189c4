"""Which source the config names: `data.shards`, `data.input`, each entry of `data.mixture`."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from revision.alignment.base import AlignmentMap
from revision.captions import Controls
from revision.data.image_source import ImageSource
from revision.data.index import RecordIndex, build_index
from revision.data.record_turns import WHOLE, check_record
from revision.data.shard_source import RowMap, ShardSource
from revision.data.sources import SampleSource
from revision.data.turn_encoder import TurnEncoder
from revision.encoders.base import DualEncoder
from revision.shards import read_header

TOKENS = ("online", "cached")


@dataclass(frozen=True, kw_only=True)
class Part:
    """One source: `shards` (a feature set), or `input` with `image_root` (pictures on the fly).

    In a mixture, `weight` is the number of passes over it in an epoch, and `num_samples` takes a
    nested random subset of it. Raises ValueError unless exactly one of the two is given.
    """

    key: str
    shards: str | Path | None = None
    input: str | Path | None = None
    image_root: str | Path | None = None
    weight: float = 1.0
    num_samples: int | None = None

    def __post_init__(self) -> None:
        if (self.shards is None) == (self.input is None):
            raise ValueError(
                f"exactly one of {self.key}shards (features) and {self.key}input (pictures) must "
                f"be given; got shards={self.shards!r}, input={self.input!r}"
            )

    @classmethod
    def of(cls, key: str, entry: Mapping[str, Any]) -> "Part":
        """An entry of a mixture. Raises ValueError for a key that no entry has."""
        known = {field.name for field in fields(cls)} - {"key"}
        unknown = sorted(set(entry) - known)
        if unknown:
            raise ValueError(f"{key.rstrip('.')} has no {unknown}; its keys are {sorted(known)}")
        return cls(key=key, **entry)

    @property
    def name(self) -> str:
        """The key of the config that names it."""
        return self.key + ("input" if self.shards is None else "shards")

    @property
    def is_text(self) -> bool:
        """Whether these are features of texts, which is what an alignment maps."""
        return self.shards is not None and read_header(Path(self.shards)).kind == "text"


def parts_of(
    shards: str | Path | None,
    input: str | Path | None,
    image_root: str | Path | None,
    mixture: Sequence[Mapping[str, Any]] | None,
) -> list[Part]:
    """The sources of the training data: one, or those of a mixture."""
    if mixture is None:
        return [Part(key="data.", shards=shards, input=input, image_root=image_root)]
    if shards is not None or input is not None:
        raise ValueError(
            f"data.mixture names the training data, but so does data.shards={shards} or "
            f"data.input={input}; put that into the mixture"
        )
    if not mixture:
        raise ValueError("data.mixture is empty; give at least one source, or null")
    return [Part.of(f"data.mixture[{index}].", entry) for index, entry in enumerate(mixture)]


def token_directory(tokens: str, token_root: str | Path) -> Path | None:
    """Where token caches lie, None where texts are tokenised online."""
    if tokens not in TOKENS:
        raise ValueError(f"unknown tokens={tokens!r}; choose from {TOKENS}")
    return Path(token_root) if tokens == "cached" else None


@dataclass(frozen=True, kw_only=True)
class SourceMaker:
    """What all sources of a run share. With a `token_root` their texts are tokenised once, into
    it; `on_index` is told of every index of pictures."""

    turns: TurnEncoder
    encoder: DualEncoder | None
    image_map: AlignmentMap | None
    visual: str
    caption_prompt: str
    index_root: Path
    token_root: Path | None
    cache_blocks: int
    on_index: Callable[[str | Path, RecordIndex], None]

    def training(self, part: Part, alignment: RowMap | None, captions: Controls) -> SampleSource:
        options: dict[str, Any] = {
            "visual": self.visual,
            "caption_prompt": self.caption_prompt,
            "captions": captions,
            "token_root": self.token_root,
        }
        if part.shards is not None:
            return ShardSource(
                Path(part.shards),
                self.turns,
                alignment=alignment,
                image_map=self.image_map,
                cache_blocks=self.cache_blocks,
                **options,
            )
        assert part.input is not None
        return self._pictures(part.input, part.image_root, options)

    def held_out(self, part: Part) -> SampleSource:
        """Neither mapped nor cut."""
        return self.training(part, None, WHOLE)

    def _pictures(
        self, input: str | Path, image_root: str | Path | None, options: dict[str, Any]
    ) -> ImageSource:
        if self.encoder is None:
            raise ValueError(
                f"{input} holds pictures and this model has no encoder; embed them with embed.py "
                "and give the feature set as data.shards"
            )
        root = None if image_root is None else Path(image_root)
        index = build_index(input, self.index_root, image_root=root, check=check_record)
        self.on_index(input, index)
        return ImageSource(index, self.turns, image_root=root, encoder=self.encoder, **options)
