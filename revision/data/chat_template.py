"""The tokenizer's own chat template, rendered so that every character is known to be markup,
something that was said, or something to be learnt.

The template is rendered once for each sequence of roles with a stand-in for every text, and the
texts are put in the places of the stand-ins afterwards. What is a target:

    with {% generation %} marks   what the template puts between them (transformers' assistant mask)
    without                       an answer and its end mark: what follows it up to the template's
                                  next special token; where there is none, the end-of-sequence
                                  token is added

A template may trim its texts (ours are stripped before) and may move the system turn. One that
drops or repeats a turn, changes the order of the others, or refuses a role is refused by name.
Departs from rendering each conversation: a template that looks into the texts (Qwen 3 cuts what
stands before `</think>` in an answer) sees stand-ins, so that texts stay as they are.
"""

import re
from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Any, NamedTuple, cast

from jinja2 import TemplateError
from transformers.utils.chat_template_utils import render_jinja_template

from revision.records import Turn

_STAND_IN = re.compile("\ue000(\\d+)\ue001")
_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
_Spans = list[tuple[int, int]]
_Render = Callable[..., tuple[list[str], list[_Spans]]]  # its annotation says str
_DATE = "26 Jul 2024"  # what Llama 3.2's template would take from the clock, and so change by night


class Segment(NamedTuple):
    """A piece of rendered text. `written` text comes from the data: it has no special tokens."""

    text: str
    target: bool = False
    written: bool = False


class _Place(NamedTuple):
    """Where the text of turn `turn` goes."""

    turn: int
    target: bool


def render_chat(turns: Sequence[Turn], tokenizer: Any) -> list[Segment]:
    """The segments of a conversation; one that ends with the user's turn becomes an open prompt.

    Raises:
        ValueError: the template refuses the roles, or drops, repeats or reorders turns.
    """
    roles = tuple(turn.role for turn in turns)
    return [
        part if isinstance(part, Segment) else Segment(turns[part.turn].text, part.target, True)
        for part in _frame(tokenizer, tokenizer.chat_template, roles)
    ]


@lru_cache(maxsize=256)
def _frame(
    tokenizer: Any, chat_template: str, roles: tuple[str, ...]
) -> tuple[Segment | _Place, ...]:
    rendered, spans = _rendered(tokenizer, chat_template, roles)
    found = [int(match[1]) for match in _STAND_IN.finditer(rendered)]
    _check_found(found, roles)
    if spans is None:
        return tuple(_by_end_marks(rendered, tokenizer, roles))
    return tuple(_by_spans(rendered, spans))


def _rendered(
    tokenizer: Any, chat_template: str, roles: tuple[str, ...]
) -> tuple[str, _Spans | None]:
    """The text with stand-ins, and the spans between {% generation %} marks if it has them."""
    marked = bool(_GENERATION.search(chat_template))
    messages = [{"role": role, "content": f"\ue000{i}\ue001"} for i, role in enumerate(roles)]
    try:
        [rendered], spans = cast(_Render, render_jinja_template)(
            conversations=[messages],
            chat_template=chat_template,
            return_assistant_tokens_mask=marked,
            add_generation_prompt=roles[-1] == "user",
            **tokenizer.special_tokens_map | {"date_string": _DATE},
        )
    except TemplateError as error:
        raise ValueError(
            f"the tokenizer's chat template refuses the roles {list(roles)}: {error}; use another "
            "template, or remove these turns"
        ) from error
    return rendered, spans[0] if marked else None


def _check_found(found: list[int], roles: tuple[str, ...]) -> None:
    dropped = sorted({roles[i] for i in set(range(len(roles))) - set(found)})
    said = [index for index in found if roles[index] != "system"]
    if dropped:
        wrong = f"drops the text of {' and '.join(dropped)} turns"
    elif len(found) > len(roles):
        wrong = "repeats turns"
    elif said != sorted(said):
        wrong = "changes the order of turns"
    else:
        return
    raise ValueError(
        f"the tokenizer's chat template {wrong} of {list(roles)}; use template 'vicuna_v1', or "
        "remove these turns"
    )


def _by_spans(rendered: str, spans: _Spans) -> list[Segment | _Place]:
    places = {match.start(): int(match[1]) for match in _STAND_IN.finditer(rendered)}
    edges = {edge for match in _STAND_IN.finditer(rendered) for edge in match.span()}
    edges |= {edge for span in spans for edge in span} | {0, len(rendered)}
    parts: list[Segment | _Place] = []
    for start, end in pairwise(sorted(edges)):
        target = any(first <= start < last for first, last in spans)
        turn = places.get(start)
        text = rendered[start:end]
        parts.append(Segment(text, target) if turn is None else _Place(turn, target))
    return parts


def _by_end_marks(rendered: str, tokenizer: Any, roles: tuple[str, ...]) -> list[Segment | _Place]:
    specials = [t.content for t in tokenizer.added_tokens_decoder.values() if t.special]
    pieces = _STAND_IN.split(rendered)
    parts: list[Segment | _Place] = [Segment(pieces[0])]
    for turn, markup in zip(map(int, pieces[1::2]), pieces[2::2], strict=True):
        answers = roles[turn] == "assistant"
        parts.append(_Place(turn, answers))
        end = _end_mark(markup, specials, tokenizer.eos_token) if answers else ""
        parts += [Segment(end, answers), Segment(markup.removeprefix(end))]
    return parts


def _end_mark(markup: str, specials: list[str], eos: str | None) -> str:
    ends = [markup.find(token) + len(token) for token in specials if token in markup]
    if not ends and eos is None:
        raise ValueError(
            "the tokenizer's chat template ends answers with no special token, and the tokenizer "
            "has no end-of-sequence token: answers would never end; use template 'plain'"
        )
    return markup[: min(ends)] if ends else str(eos)
