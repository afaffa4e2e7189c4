"""Turns -> token ids with one slot per picture, and labels: for one tokenizer and one template.

The text between two `<image>` marks is tokenised once, as a whole, and a token is a target when
one of its characters lies in a target segment; so the space in front of an answer goes with the
word that it is fused to, and no substring is ever tokenised to get a length. Conversations are
tokenised many at a time, which gives the ids that each of them has alone.
"""

import hashlib
import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from revision.data.samples import IGNORE, IMAGE_SLOT
from revision.data.templates import Segment, Template, check_template, check_turns
from revision.records import IMAGE_MARK, Turn

_PROBE = (
    Turn("user", f"{IMAGE_MARK}\nWhat is it?"),
    Turn("assistant", "A cat."),
    Turn("user", "Is it?"),
    Turn("assistant", "Yes, 3 of them."),
)


class Encoded(NamedTuple):
    input_ids: Tensor
    labels: Tensor


class _Piece(NamedTuple):
    """The tokens of a text without marks, and the range of characters of each, in order."""

    ids: list[int]
    offsets: list[tuple[int, int]]

    def tokens(self, start: int, end: int) -> range:
        """The tokens that have a character in `start`..`end`; an empty one counts as one."""
        first = bisect_right(self.offsets, start, key=lambda span: max(span[1], span[0] + 1))
        return range(first, max(first, bisect_left(self.offsets, end, key=lambda span: span[0])))


@dataclass(frozen=True)
class TurnEncoder:
    """Turns conversations into ids and labels for one tokenizer and one template.

    With `max_length`, a sequence is cut so that it has at most that many positions after
    splicing, a slot counting `tokens_per_image`; what remains keeps its targets. A cut may take
    text but no slot: ValueError, because the picture would be lost in silence.

    Raises ValueError for an unknown template, a tokenizer without character offsets (a slow one),
    or one that lacks what the template needs.
    """

    tokenizer: Any
    template: str
    max_length: int | None = None
    tokens_per_image: int = 1
    _template: Template = field(init=False, repr=False)
    _front: tuple[int, ...] = field(init=False, repr=False)
    _special_ids: frozenset[int] = field(init=False, repr=False)
    _specials: re.Pattern[str] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if not self.tokenizer.is_fast:
            raise ValueError(
                f"{type(self.tokenizer).__name__} gives no character offsets, so targets cannot "
                "be told from prompts; load the fast tokenizer of the model"
            )
        added = self.tokenizer.added_tokens_decoder.items()
        special = {token.content: i for i, token in added if token.special}
        spelled = "|".join(map(re.escape, special)) or "(?!)"
        object.__setattr__(self, "_special_ids", frozenset(special.values()))
        object.__setattr__(self, "_specials", re.compile(spelled))
        template = check_template(self.template, self.tokenizer)
        object.__setattr__(self, "_template", template)
        object.__setattr__(self, "_front", self._first_ids(template))
        template.render((Turn("user", "q"), Turn("assistant", "a")), self.tokenizer)

    def __call__(self, turns: Sequence[Turn]) -> Encoded:
        """Encode a conversation; one that ends with the user's turn becomes an open prompt."""
        [encoded] = self.encode_all([turns])
        if isinstance(encoded, ValueError):
            raise encoded
        return encoded

    def encode_all(self, conversations: Iterable[Sequence[Turn]]) -> list[Encoded | ValueError]:
        """What `__call__` gives for each conversation, or the error that it raises."""
        rendered = [self._rendered(turns) for turns in conversations]
        good = [segments for segments in rendered if not isinstance(segments, ValueError)]
        parts = ["".join([s.text for s in segments]).split(IMAGE_MARK) for segments in good]
        pieces = self._tokenized({part: None for texts in parts for part in texts if part})
        own = (self._joined(*of_one, pieces) for of_one in zip(good, parts, strict=True))
        return [
            segments if isinstance(segments, ValueError) else self._cut(*next(own))
            for segments in rendered
        ]

    @property
    def ends_at_newline(self) -> bool:
        """Whether a newline, not the end-of-sequence token, ends an answer."""
        return self.template == "plain"

    @property
    def end_ids(self) -> list[int]:
        """The tokens that end an answer: the template's mark, and the end of sequence."""
        marks = {self.tokenizer.eos_token_id} - {None}
        if not self.ends_at_newline:
            labels = self((Turn("user", "q"), Turn("assistant", "a"))).labels
            learnt = labels[labels != IGNORE].tolist()
            special = [token for token in learnt if token in self._special_ids]
            marks.add((special or learnt)[-1])
        return sorted(marks)

    @property
    def filler_id(self) -> int:
        """A token id that is safe to feed where nothing is read."""
        candidates = (self.tokenizer.bos_token_id, self.tokenizer.eos_token_id, 0)
        return next(token for token in candidates if token is not None)

    def identity(self) -> dict[str, Any]:
        """What decides the ids and labels of a conversation; a few of them stand for the code."""
        # padding and truncation stand in front and do not matter; to parse all takes 0.3 s
        vocabulary = self.tokenizer.backend_tokenizer.to_str().partition('"added_tokens"')[2]
        assert vocabulary, "a fast tokenizer lists its added tokens"
        encoded = self.encode_all([_PROBE, _PROBE[:1], [Turn("system", "Be brief."), *_PROBE]])
        return {
            "tokenizer": hashlib.sha256(vocabulary.encode()).hexdigest(),
            "template": self.template,
            "chat_template": self.tokenizer.chat_template if self.template == "chat" else None,
            "max_length": self.max_length,
            "tokens_per_image": self.tokens_per_image,
            "probe": [
                str(e) if isinstance(e, ValueError) else [e.input_ids.tolist(), e.labels.tolist()]
                for e in encoded
            ],
        }

    def _rendered(self, turns: Sequence[Turn]) -> list[Segment] | ValueError:
        try:
            return self._template.render(check_turns(turns), self.tokenizer)
        except ValueError as error:
            return error

    def _tokenized(self, texts: Mapping[str, None]) -> dict[str, _Piece]:
        """The tokens of each text; what several conversations share is tokenised once."""
        if not texts:
            return {}
        encoding = self.tokenizer(
            list(texts),
            add_special_tokens=False,
            return_offsets_mapping=True,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
        )
        pieces = map(_Piece, encoding["input_ids"], encoding["offset_mapping"])
        return dict(zip(texts, pieces, strict=True))

    def _joined(
        self, segments: list[Segment], parts: list[str], pieces: dict[str, _Piece]
    ) -> tuple[list[int], list[tuple[int, int]]]:
        """The ids of the texts `parts` with slots between them, and the ranges to be learnt."""
        learnt = _spans(segments, [segment.target for segment in segments])
        written = [segment.text for segment in segments if segment.written]
        spells = self._specials.search("\0".join(written)) is not None
        said = _spans(segments, [segment.written for segment in segments]) if spells else []
        ids, targets, start = list(self._front), [], 0
        for index, part in enumerate(parts):
            if index:
                ids.append(IMAGE_SLOT)
                start += len(IMAGE_MARK)
            if part:
                piece = pieces[part]
                for first, last in _within(said, start, len(part)):
                    piece = self._without_specials(piece, part, first, last)
                for first, last in _within(learnt, start, len(part)):
                    tokens = piece.tokens(first, last)
                    targets.append((len(ids) + tokens.start, len(ids) + tokens.stop))
                ids += piece.ids
            start += len(part)
        return ids, targets

    def _without_specials(self, piece: _Piece, text: str, first: int, last: int) -> _Piece:
        """With the special tokens in the characters `first`..`last` spelled out."""
        ids, offsets = list(piece.ids), list(piece.offsets)
        for token in reversed(piece.tokens(first, last)):
            start, end = offsets[token]
            if end <= last and self._spells_special(ids[token], text[start:end]):
                spelled = self._spelled_out(text[start:end])
                ids[token : token + 1] = spelled
                offsets[token : token + 1] = [(start, end)] * len(spelled)
        return _Piece(ids, offsets)

    def _spells_special(self, token: int, text: str) -> bool:
        """A special token may also stand for one byte of a character: then nothing spells it."""
        return token in self._special_ids and self.tokenizer.convert_ids_to_tokens(token) in text

    def _spelled_out(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)[
            "input_ids"
        ]
        return ids

    def _first_ids(self, template: Template) -> tuple[int, ...]:
        """BOS where the tokenizer puts one, and no template writes its own."""
        bos = self.tokenizer.bos_token_id
        if template.writes_bos or bos is None:
            return ()
        return (bos,) if self.tokenizer("")["input_ids"][:1] == [bos] else ()

    def _cut(self, ids: list[int], targets: list[tuple[int, int]]) -> Encoded | ValueError:
        num_slots = ids.count(IMAGE_SLOT)
        whole = len(ids) + num_slots * (self.tokens_per_image - 1)
        if self.max_length is not None and whole > self.max_length:
            ids = ids[: self._fitting(ids)]
            if ids.count(IMAGE_SLOT) < num_slots:
                return ValueError(
                    f"stage.max_length={self.max_length} has room for {ids.count(IMAGE_SLOT)} of "
                    f"its {num_slots} pictures; raise stage.max_length, or remove the record"
                )
        input_ids = np.array(ids or [self.filler_id], np.int64)
        labels = np.full_like(input_ids, IGNORE)
        for start, stop in targets:
            labels[start:stop] = input_ids[start:stop]
        return Encoded(torch.from_numpy(input_ids), torch.from_numpy(labels))

    def _fitting(self, ids: list[int]) -> int:
        """How many ids fill `max_length` positions."""
        length = 0
        for keep, token in enumerate(ids):
            length += self.tokens_per_image if token == IMAGE_SLOT else 1
            if length > (self.max_length or 0):
                return keep
        return len(ids)


def _spans(segments: list[Segment], chosen: list[bool]) -> list[tuple[int, int]]:
    """The characters of the chosen segments; neighbours are one span."""
    spans: list[tuple[int, int]] = []
    start = 0
    for segment, is_chosen in zip(segments, chosen, strict=True):
        end = start + len(segment.text)
        if is_chosen and spans and spans[-1][1] == start:
            spans[-1] = (spans[-1][0], end)
        elif is_chosen and end > start:
            spans.append((start, end))
        start = end
    return spans


def _within(spans: list[tuple[int, int]], start: int, length: int) -> Iterator[tuple[int, int]]:
    """The parts of the spans in the `length` characters from `start` on, counted from there."""
    for span in spans:
        first, last = max(span[0] - start, 0), min(span[1] - start, length)
        if first < last:
            yield first, last
