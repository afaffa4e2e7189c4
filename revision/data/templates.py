"""Templates: a conversation -> token ids with one slot per picture, and labels.

A conversation is rendered as segments, each either a target (an answer and its end mark) or not.
The text between two `<image>` marks is tokenised once, as a whole, and a token is a target when
its last character lies in a target segment; so the space in front of an answer goes with the word
that it is fused to, and no substring is ever tokenised to get a length.

    plain      <image>{caption}\\n                       stage 1; what the user says is dropped,
                                                         the newline is the end mark
    llava_v1   {system} USER: {q} ASSISTANT: {a}{eos}USER: {q2} ASSISTANT: {a2}{eos}
               (haotian-liu/LLaVA@c121f04 `vicuna_v1`; the end mark is the tokenizer's)
    llama      the same with `<|end_of_text|>` (the public ReVision code on Llama 3)
    chat       the chat template that comes with the tokenizer

Departs from the public code: marks stay where they are (it moves all of a turn to the front and
merges them into one), and text that happens to spell a special token or a role marker is ordinary
text (it masks the whole sample, silently).
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from jinja2 import TemplateError
from torch import Tensor

from revision.data.samples import IGNORE, IMAGE_SLOT
from revision.records import IMAGE_MARK, Turn

SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives "
    "helpful, detailed, and polite answers to the user's questions."
)
_LLAMA_END = "<|end_of_text|>"


class Segment(NamedTuple):
    """A piece of rendered text. `written` text comes from the data: it has no special tokens."""

    text: str
    target: bool = False
    written: bool = False


class Encoded(NamedTuple):
    input_ids: Tensor
    labels: Tensor


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
    _special_ids: frozenset[int] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if self.template not in TEMPLATES:
            raise ValueError(f"unknown template {self.template!r}; choose from {list(TEMPLATES)}")
        if not self.tokenizer.is_fast:
            raise ValueError(
                f"{type(self.tokenizer).__name__} gives no character offsets, so targets cannot "
                "be told from prompts; load the fast tokenizer of the model"
            )
        special = {i for i, token in self.tokenizer.added_tokens_decoder.items() if token.special}
        object.__setattr__(self, "_special_ids", frozenset(special))
        TEMPLATES[self.template]((Turn("user", "q"), Turn("assistant", "a")), self.tokenizer)

    def __call__(self, turns: Sequence[Turn]) -> Encoded:
        """Encode a conversation; one that ends with the user's turn becomes an open prompt."""
        segments = TEMPLATES[self.template](check_turns(turns), self.tokenizer)
        ids, targets = self._tokenize(segments)
        if self.max_length is not None:
            keep = self._fitting(ids)
            _check_slots(ids, keep, self.max_length)
            ids, targets = ids[:keep], targets[:keep]
        if not ids:
            ids, targets = [self.filler_id], [False]
        input_ids = torch.tensor(ids)
        return Encoded(input_ids, input_ids.masked_fill(~torch.tensor(targets), IGNORE))

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
            marks.add(int(labels[labels != IGNORE][-1]))
        return sorted(marks)

    @property
    def filler_id(self) -> int:
        """A token id that is safe to feed where nothing is read."""
        candidates = (self.tokenizer.bos_token_id, self.tokenizer.eos_token_id, 0)
        return next(token for token in candidates if token is not None)

    def _tokenize(self, segments: Sequence[Segment]) -> tuple[list[int], list[bool]]:
        text = "".join(segment.text for segment in segments)
        owner = [segment for segment in segments for _ in segment.text]
        ids = self._front()
        targets = [False] * len(ids)
        start = 0
        for piece in re.split(f"({re.escape(IMAGE_MARK)})", text):
            if piece == IMAGE_MARK:
                ids.append(IMAGE_SLOT)
                targets.append(False)
            elif piece:
                self._append(piece, owner[start : start + len(piece)], ids, targets)
            start += len(piece)
        return ids, targets

    def _append(
        self, piece: str, owner: list[Segment], ids: list[int], targets: list[bool]
    ) -> None:
        """Tokenise `piece`, whose characters belong to the segments in `owner`."""
        encoding = self.tokenizer(piece, add_special_tokens=False, return_offsets_mapping=True)
        for token, (start, end) in zip(
            encoding["input_ids"], encoding["offset_mapping"], strict=True
        ):
            segment = owner[min(max(start, end - 1), len(piece) - 1)]  # that of its last character
            tokens = [token]
            if segment.written and self._spells_special(token, piece[start:end]):
                tokens = self._spelled_out(piece[start:end])
            ids.extend(tokens)
            targets.extend([segment.target] * len(tokens))

    def _spells_special(self, token: int, text: str) -> bool:
        """A special token may also stand for one byte of a character: then nothing spells it."""
        return token in self._special_ids and self.tokenizer.convert_ids_to_tokens(token) in text

    def _spelled_out(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)[
            "input_ids"
        ]
        return ids

    def _front(self) -> list[int]:
        """BOS where the tokenizer puts one; a chat template writes its own."""
        bos = self.tokenizer.bos_token_id
        if self.template == "chat" or bos is None:
            return []
        return [bos] if self.tokenizer("")["input_ids"][:1] == [bos] else []

    def _fitting(self, ids: list[int]) -> int:
        length = 0
        for keep, token in enumerate(ids):
            length += self.tokens_per_image if token == IMAGE_SLOT else 1
            if length > (self.max_length or 0):
                return keep
        return len(ids)


def _check_slots(ids: list[int], keep: int, max_length: int) -> None:
    kept, total = ids[:keep].count(IMAGE_SLOT), ids.count(IMAGE_SLOT)
    if kept < total:
        raise ValueError(
            f"stage.max_length={max_length} has room for {kept} of its {total} pictures; raise "
            "stage.max_length, or remove the record"
        )


def check_turns(turns: Sequence[Turn]) -> tuple[Turn, ...]:
    """System first, then user and assistant in turn; an answer before any question is dropped."""
    system = tuple(turn for turn in turns[:1] if turn.role == "system")
    rest = list(turns[len(system) :])
    while rest and rest[0].role == "assistant":
        rest.pop(0)
    roles = [turn.role for turn in rest]
    expected = ["user" if index % 2 == 0 else "assistant" for index in range(len(rest))]
    if not rest or roles != expected:
        raise ValueError(
            f"a conversation must alternate user, assistant, ...; got {[t.role for t in turns]}"
        )
    return system + tuple(Turn(turn.role, turn.text.strip()) for turn in rest)


def _plain(turns: Sequence[Turn], tokenizer: Any) -> list[Segment]:
    marks = sum(turn.text.count(IMAGE_MARK) for turn in turns if turn.role == "user")
    captions = [turn.text for turn in turns if turn.role == "assistant"]
    segments = [Segment(IMAGE_MARK * marks)]
    if captions:
        segments += [Segment(captions[0], target=True, written=True), Segment("\n", target=True)]
    return segments


def _vicuna(turns: Sequence[Turn], tokenizer: Any, end_mark: str) -> list[Segment]:
    has_system = turns[0].role == "system"
    system = turns[0].text if has_system else SYSTEM
    segments = [Segment(system, written=has_system), Segment(" ")]
    for turn in turns[has_system:]:
        if turn.role == "user":
            segments += [Segment("USER: "), Segment(turn.text, written=True)]
            segments += [Segment(" ASSISTANT:")]
        else:
            segments += [Segment(" "), Segment(turn.text, target=True, written=True)]
            segments += [Segment(end_mark, target=True)]
    return segments


def _llava_v1(turns: Sequence[Turn], tokenizer: Any) -> list[Segment]:
    if tokenizer.eos_token is None:
        raise ValueError(
            "template 'llava_v1' ends an answer with the tokenizer's end-of-sequence token, and "
            "this tokenizer has none"
        )
    return _vicuna(turns, tokenizer, tokenizer.eos_token)


def _llama(turns: Sequence[Turn], tokenizer: Any) -> list[Segment]:
    if _LLAMA_END not in tokenizer.get_vocab():
        raise ValueError(
            f"template 'llama' ends an answer with {_LLAMA_END}, which this tokenizer does not "
            "have; use 'llava_v1' or 'chat'"
        )
    return _vicuna(turns, tokenizer, _LLAMA_END)


def _chat(turns: Sequence[Turn], tokenizer: Any) -> list[Segment]:
    """Render with a stand-in for every text, to know which characters the template itself wrote.

    The end mark is what follows an answer up to the template's next special token; where there
    is none the tokenizer's end-of-sequence token is added.
    """
    if not tokenizer.chat_template:
        raise ValueError("this tokenizer has no chat template; use template 'llava_v1'")
    messages = [{"role": t.role, "content": f"\ue000{i}\ue001"} for i, t in enumerate(turns)]
    try:
        rendered = tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=turns[-1].role == "user"
        )
    except TemplateError as error:
        raise ValueError(f"the tokenizer's chat template refuses the turns: {error}") from error
    pieces = re.split("\ue000(\\d+)\ue001", rendered)
    if pieces[1::2] != [str(index) for index in range(len(turns))]:
        raise ValueError("the tokenizer's chat template drops or repeats turns; use 'llava_v1'")
    specials = [t.content for t in tokenizer.added_tokens_decoder.values() if t.special]
    segments = [Segment(pieces[0])]
    for turn, markup in zip(turns, pieces[2::2], strict=True):
        answers = turn.role == "assistant"
        segments.append(Segment(turn.text, target=answers, written=True))
        end = _end_mark(markup, specials, tokenizer.eos_token) if answers else ""
        segments += [Segment(end, target=True), Segment(markup.removeprefix(end))]
    return segments


def _end_mark(markup: str, specials: list[str], eos: str) -> str:
    ends = [markup.find(token) + len(token) for token in specials if token in markup]
    return markup[: min(ends)] if ends else eos


TEMPLATES: dict[str, Callable[[Sequence[Turn], Any], list[Segment]]] = {
    "plain": _plain,
    "llava_v1": _llava_v1,
    "llama": _llama,
    "chat": _chat,
}
