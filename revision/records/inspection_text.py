"""What `revision.records.inspection` found, as text for a terminal."""

from collections.abc import Iterator
from typing import Any


def as_text(found: dict[str, Any]) -> str:
    """Several short blocks: what there is, what it is like, what is broken, some samples."""
    blocks = (_counts, _lengths, _metadata, _marks, _pictures, _refused, _samples)
    chosen = "detected" if found["detected"] else "as asked"
    head = f"{found['input']}: {found['format']} ({chosen}), {_files(found['num_files'])}"
    if found["stopped"]:
        head += f"\nSTOPPED before its end, what follows is a part: {found['stopped']}"
    texts = ("\n".join(block(found)) for block in blocks)
    return _printable("\n\n".join([head, *filter(None, texts)]))


def _files(count: int) -> str:
    return f"{count} file" if count == 1 else f"{count} files"


def _printable(text: str) -> str:
    """What data may hold and a terminal would obey, or could not encode, as escapes."""
    shown = (c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in text)
    return "".join(shown)


def _counts(found: dict[str, Any]) -> Iterator[str]:
    counts = found["counts"]
    yield f"{counts['entries']} entries: {counts['records']} records, {counts['refused']} refused"
    yield f"  texts          {counts['texts']}"
    one, several = counts["records_with_one_image"], counts["records_with_several_images"]
    yield f"  images         {counts['images']} ({one} records with one, {several} with several)"
    turns = {role: counts[f"turns_{role}"] for role in ("system", "user", "assistant")}
    shares = ", ".join(f"{count} {role}" for role, count in turns.items() if count)
    shares = f" ({shares})" if shares else ""
    yield f"  conversations  {counts['conversations']}, {sum(turns.values())} turns{shares}"
    numbered = counts["numbered_ids"]
    kept = f" ({numbered} of them kept, as <id>#2, <id>#3 ...)" if numbered else ""
    yield f"  duplicate ids  {counts['duplicate_ids']}{kept}"


def _lengths(found: dict[str, Any]) -> Iterator[str]:
    words, characters = found["text_words"], found["text_characters"]
    if words:
        yield "texts, at the quantiles " + _row(words)
        yield "  words                 " + _row(words.values())
        yield "  characters            " + _row(characters.values())


def _metadata(found: dict[str, Any]) -> Iterator[str]:
    if found["metadata"]:
        yield f"metadata, share of the {found['counts']['records']} records that hold it"
    for name, count in found["metadata"].items():
        yield f"  {count / found['counts']['records']:7.1%}  {name}"


def _marks(found: dict[str, Any]) -> Iterator[str]:
    counts = found["counts"]
    if counts["texts_with_marks"]:
        yield f"{counts['texts_with_marks']} texts hold <image>, which is read as plain characters"
    if counts["conversations"] or counts["marks_unlike_images"]:
        yield f"<image> marks in conversations: {counts['marks']}"
        yield f"  {counts['marks_filled_by_texts']} conversations have a text for the image"
        yield f"  {counts['conversations_without_images']} have neither mark nor image"
        yield f"  {counts['marks_unlike_images']} refused: other numbers of marks and images"


def _pictures(found: dict[str, Any]) -> Iterator[str]:
    pictures, total = found["pictures"], found["counts"]["images"]
    if not pictures["num_sampled"]:
        return
    yield f"pictures: headers of {pictures['num_sampled']} of {total}, seed {found['seed']}"
    if pictures["width"]:
        yield "  at the quantiles      " + _row(pictures["width"])
        yield "  width                 " + _row(pictures["width"].values())
        yield "  height                " + _row(pictures["height"].values())
        yield f"  modes {_pairs(pictures['modes'])}; files {_pairs(pictures['encodings'])}"
    yield f"  {pictures['num_broken']} of them cannot be opened"
    for broken in pictures["broken"]:
        yield f"    {broken['problem']}"


def _refused(found: dict[str, Any]) -> Iterator[str]:
    if found["refused"]:
        yield "refused"
    for kind in found["refused"].values():
        yield f"  {kind['count']}  {kind['example']}"
        for first in kind["addresses"]:
            yield f"       {first['address']}" + (f"  (id {first['id']})" if first["id"] else "")


def _samples(found: dict[str, Any]) -> Iterator[str]:
    if found["samples"]:
        yield f"{len(found['samples'])} records, drawn with seed {found['seed']}"
    for sample in found["samples"]:
        for i, (name, value) in enumerate(sample.items()):
            yield f"  {'-' if i == 0 else ' '} {name}: {_inline(value)}"


def _inline(value: Any) -> str:
    return value.replace("\n", "\\n") if isinstance(value, str) else str(value)


def _row(values: Any) -> str:
    return " ".join(f"{value:>7}" for value in values)


def _pairs(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.items())
