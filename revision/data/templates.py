"""Templates: a conversation -> rendered text in segments, each a target (to be learnt) or not.

    plain      <image>{caption}\\n                       stage 1; what the user says is dropped,
                                                         the newline is the end mark
    vicuna_v1  {system} USER: {q} ASSISTANT: {a}{eos}USER: {q2} ASSISTANT: {a2}{eos}
               (haotian-liu/LLaVA@c121f04 `vicuna_v1`; the end mark is the tokenizer's). The space
               before an answer is learnt: an open prompt ends at the colon
    llama      the same with `<|end_of_text|>` (the public ReVision code on Llama 3)
    llama3     <|begin_of_text|><|start_header_id|>{role}<|end_header_id|>\\n\\n{text}<|eot_id|>...
               (Llama 3 instruct, as its model card documents it; no system turn of its own)
    chatml     <|im_start|>{role}\\n{text}<|im_end|>\\n... (OpenAI's ChatML; no system turn either)
    chat       the chat template that comes with the tokenizer, see `revision.data.chat_template`

Departs from the public code: marks stay where they are (it moves all of a turn to the front and
merges them into one), and text that happens to spell a special token or a role marker is ordinary
text (it masks the whole sample, silently).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from revision.data.chat_template import Segment, render_chat
from revision.records import IMAGE_MARK, Turn

SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives "
    "helpful, detailed, and polite answers to the user's questions."
)
_LLAMA_END = "<|end_of_text|>"
_LLAMA3_TOKENS = ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
_CHATML_TOKENS = ("<|im_start|>", "<|im_end|>")


@dataclass(frozen=True)
class Template:
    """How turns are rendered, and the tokens that the tokenizer must have for it.

    One that `writes_bos` begins with the tokenizer's own first token where there is one; before
    the others it is put as the tokenizer puts it.
    """

    render: Callable[[Sequence[Turn], Any], list[Segment]]
    needs: tuple[str, ...] = ()
    writes_bos: bool = False


def check_template(name: str, tokenizer: Any) -> Template:
    """The template `name`, if this tokenizer has what it needs.

    Raises:
        ValueError: it lacks a token: the text of it would be learnt, letter by letter, in its
            place; or there is no such template.
    """
    if name not in TEMPLATES:
        raise ValueError(f"unknown template {name!r}; choose from {list(TEMPLATES)}")
    template = TEMPLATES[name]
    vocabulary = tokenizer.get_vocab() if template.needs else {}
    missing = [token for token in template.needs if token not in vocabulary]
    if missing:
        raise ValueError(
            f"template {name!r} needs {', '.join(missing)}, which this tokenizer does not have: "
            "they would be learnt letter by letter; use 'vicuna_v1' or 'chat'"
        )
    if name == "vicuna_v1" and tokenizer.eos_token is None:
        raise ValueError(
            "template 'vicuna_v1' ends an answer with the tokenizer's end-of-sequence token, and "
            "this tokenizer has none"
        )
    if name == "chat" and not tokenizer.chat_template:
        raise ValueError("this tokenizer has no chat template; use template 'vicuna_v1'")
    return template


def check_turns(turns: Sequence[Turn]) -> tuple[Turn, ...]:
    """System first, then user and assistant in turn; an answer before any question is dropped."""
    system = tuple(turn for turn in turns[:1] if turn.role == "system")
    rest = list(turns[len(system) :])
    while rest and rest[0].role == "assistant":
        rest.pop(0)
    wanted = ("user", "assistant")
    if not rest or any(turn.role != wanted[i % 2] for i, turn in enumerate(rest)):
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


def _vicuna_v1(turns: Sequence[Turn], tokenizer: Any) -> list[Segment]:
    return _vicuna(turns, tokenizer.eos_token)


def _llama(turns: Sequence[Turn], tokenizer: Any) -> list[Segment]:
    return _vicuna(turns, _LLAMA_END)


def _vicuna(turns: Sequence[Turn], end_mark: str) -> list[Segment]:
    has_system = turns[0].role == "system"
    system = turns[0].text if has_system else SYSTEM
    segments = [Segment(system, written=has_system), Segment(" ")]
    for turn in turns[has_system:]:
        if turn.role == "user":
            segments += [Segment("USER: "), Segment(turn.text, written=True)]
            segments += [Segment(" ASSISTANT:")]
        else:
            segments += [Segment(" ", target=True), Segment(turn.text, target=True, written=True)]
            segments += [Segment(end_mark, target=True)]
    return segments


def _llama3(turns: Sequence[Turn], tokenizer: Any) -> list[Segment]:
    begin, start, end, stop = _LLAMA3_TOKENS
    framed = _framed(turns, lambda role: f"{start}{role}{end}\n\n", stop, "")
    return [Segment(begin), *framed]


def _chatml(turns: Sequence[Turn], tokenizer: Any) -> list[Segment]:
    start, stop = _CHATML_TOKENS
    return _framed(turns, lambda role: f"{start}{role}\n", stop, "\n")


def _framed(
    turns: Sequence[Turn], head: Callable[[str], str], stop: str, tail: str
) -> list[Segment]:
    segments = []
    for turn in turns:
        answers = turn.role == "assistant"
        segments += [Segment(head(turn.role)), Segment(turn.text, answers, written=True)]
        segments += [Segment(stop, answers), Segment(tail)]
    if turns[-1].role == "user":
        segments.append(Segment(head("assistant")))
    return segments


TEMPLATES: dict[str, Template] = {
    "plain": Template(_plain),
    "vicuna_v1": Template(_vicuna_v1),
    "llama": Template(_llama, (_LLAMA_END,)),
    "llama3": Template(_llama3, _LLAMA3_TOKENS, writes_bos=True),
    "chatml": Template(_chatml, _CHATML_TOKENS),
    "chat": Template(render_chat, writes_bos=True),
}
