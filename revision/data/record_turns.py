"""A record -> the turns that are learnt from it: its conversation, or a request for its caption."""

from revision.captions import cut_words
from revision.data.templates import check_turns
from revision.records import IMAGE_MARK, Record, Turn

CAPTION_PROMPT = "Describe the image."


def record_turns(
    record: Record,
    num_images: int,
    *,
    plain: bool,
    caption_prompt: str = CAPTION_PROMPT,
    max_caption_words: int | None = None,
) -> tuple[Turn, ...]:
    """The conversation of a record; where there is none, a request for its caption.

    With `plain` always the caption: the text, else the first answer. `max_caption_words` cuts a
    caption to its first words. Raises ValueError for a record with neither text nor conversation.
    """
    if record.conversations and not plain:
        return record.conversations
    answers = [turn.text for turn in record.conversations if turn.role == "assistant"]
    caption = record.text or next(iter(answers), None)
    if not caption:
        raise ValueError(f"record {record.id!r} has neither a text nor a conversation to learn")
    if max_caption_words is not None:
        caption = cut_words(caption, max_caption_words)
    request = f"{IMAGE_MARK}\n" * num_images + caption_prompt
    return (Turn("user", request), Turn("assistant", caption.strip()))


def check_record(record: Record) -> None:
    """Raise ValueError for a record that no template could turn into a sample with a target."""
    turns = check_turns(record_turns(record, len(record.images), plain=False))
    if not any(turn.role == "assistant" and turn.text for turn in turns):
        raise ValueError("the conversation has no answer to learn")
