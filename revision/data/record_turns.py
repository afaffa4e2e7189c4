"""A record -> the turns that are learnt from it: its conversation, or a request for its caption."""

from revision.captions import Controls, cut_caption, edited
from revision.data.templates import check_turns
from revision.records import IMAGE_MARK, Record, Turn

CAPTION_PROMPT = "Describe the image."
WHOLE = Controls()
"""Captions as they are."""


def record_turns(
    record: Record,
    num_images: int,
    *,
    plain: bool,
    caption_prompt: str = CAPTION_PROMPT,
    captions: Controls = WHOLE,
) -> tuple[Turn, ...]:
    """The conversation of a record; where there is none, a request for its caption.

    With `plain` always the caption: the text, else the first answer. `captions` cuts it, also where
    it is a turn of the conversation, as `embed.py` does. Raises ValueError for a record that has
    neither text nor conversation.
    """
    if record.conversations and not plain:
        return edited(record, captions).conversations
    answers = [turn.text for turn in record.conversations if turn.role == "assistant"]
    caption = record.text or next(iter(answers), None)
    if not caption:
        raise ValueError(f"record {record.id!r} has neither a text nor a conversation to learn")
    caption = cut_caption(
        caption,
        max_words=captions.max_caption_words,
        max_sentences=captions.max_caption_sentences,
    )
    request = f"{IMAGE_MARK}\n" * num_images + caption_prompt
    return (Turn("user", request), Turn("assistant", caption.strip()))


def check_record(record: Record) -> None:
    """Raise ValueError for a record that no template could turn into a sample with a target."""
    turns = check_turns(record_turns(record, len(record.images), plain=False))
    if not any(turn.role == "assistant" and turn.text for turn in turns):
        raise ValueError("the conversation has no answer to learn")
