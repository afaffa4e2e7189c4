"""The demo's records: shipped pictures with captions -> conversations, one file per split.

Every answer comes from what the artists wrote. Before their caption, every second picture of `tune`
and all of `val` and `test` are asked

    yes or no   "Is this a bird?" (how captions end) or "Could "seagull" be its title?" (how they
                begin); as many yes as no, and a no asks for what is true of another picture, drawn
                as often as it occurs, so that the question alone does not give the answer away
    a choice    for every second one: the right one of four categories

The caption comes last, because it would answer the other questions without the picture. Pictures
of `pretrain` have their caption alone.
"""

import json
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from revision.files import write_bytes
from revision.progress import track

ASK_EVERY = {"pretrain": None, "tune": 2, "val": 1, "test": 1}
CAPTION_QUESTION = "What is in this picture?"
ARTICLES = ("a", "an", "some")
CATEGORIES = {  # folders of the collection that say what a picture is about, as a word
    "animals": "animals",
    "buildings": "buildings",
    "computer": "computers",
    "electronics": "electronics",
    "food": "food",
    "geography": "maps",
    "people": "people",
    "plants": "plants",
    "recreation": "leisure",
    "shapes": "shapes",
    "signs_and_symbols": "signs",
    "tools": "tools",
    "transportation": "transport",
}
QuestionAnswer = tuple[str, str]
NUM_CHOICES = 4
SEED = 0


@dataclass(frozen=True)
class Picture:
    """One shipped picture: its bytes and what its metadata says."""

    id: str
    text: str
    category: str
    suffix: str
    content: bytes

    @property
    def title(self) -> str:
        """How the caption begins."""
        return self.text.split(", ", 1)[0]

    @property
    def phrase(self) -> str | None:
        """What the picture is, with its article; None where the caption does not say."""
        _, comma, last = self.text.rpartition(", ")
        return last if comma and last.split(" ", 1)[0] in ARTICLES else None


def prepare(data_dir: Path, output_dir: Path) -> None:
    """Write `<split>.json` (LLaVA conversations), `unpaired.json` (ReVision) and `images/`.

    `unpaired.json` names the pictures of `tune` and the texts of `pretrain`: no picture and text
    in it describe the same thing.

    Raises:
        ValueError: a split is missing.
    """
    pictures = {}
    for split in ASK_EVERY:
        pictures[split] = list(read_split(data_dir / f"{split}-000.tar"))
        folder = output_dir / "images" / split
        folder.mkdir(parents=True, exist_ok=True)
        for picture in track(pictures[split], f"unpack {split}"):
            (folder / f"{picture.id}.{picture.suffix}").write_bytes(picture.content)
    for split, members in pictures.items():
        _write(output_dir / f"{split}.json", [*conversations(split, members)])
    unpaired = {
        "images": [{"id": p.id, "image": _address("tune", p)} for p in pictures["tune"]],
        "texts": [{"id": p.id, "text": p.text} for p in pictures["pretrain"]],
    }
    _write(output_dir / "unpaired.json", unpaired)


def read_split(path: Path) -> Iterator[Picture]:
    """The pictures of a shipped webdataset tar, in its order."""
    if not path.is_file():
        raise ValueError(f"{path} is missing; data.dir must name the folder of the shipped splits")
    with tarfile.open(path) as tar:
        metadata: dict[str, dict[str, Any]] = {}
        for member in tar:
            stem, _, suffix = member.name.rpartition(".")
            file = tar.extractfile(member)
            assert file is not None
            if suffix == "json":
                metadata[stem] = json.load(file)
            else:
                entry = metadata[stem]  # a sample's JSON comes first
                yield Picture(entry["id"], entry["text"], entry["category"], suffix, file.read())


def conversations(split: str, pictures: Sequence[Picture]) -> Iterator[dict[str, Any]]:
    """One LLaVA conversation per picture, in order; the same ones in every run."""
    questions = ask(pictures, every=ASK_EVERY[split])
    for picture, asked in zip(pictures, questions, strict=True):
        turns = [*asked, (CAPTION_QUESTION, picture.text)]
        turns[0] = (f"<image>\n{turns[0][0]}", turns[0][1])
        yield {
            "id": picture.id,
            "image": _address(split, picture),
            "caption": picture.text,
            "conversations": [
                {"from": who, "value": value}
                for turn in turns
                for who, value in zip(("human", "gpt"), turn, strict=True)
            ],
        }


def ask(pictures: Sequence[Picture], *, every: int | None) -> list[list[QuestionAnswer]]:
    """Questions with short answers for every k-th picture, yes and no in equal number."""
    generator = np.random.default_rng(SEED)
    questions: list[list[QuestionAnswer]] = [[] for _ in pictures]
    order = generator.permutation(len(pictures)).tolist()
    answer = "yes"
    for place, index in enumerate(order[::every] if every else []):
        picture = pictures[index]
        about_title = place % 4 < 2 or picture.phrase is None
        other = picture if answer == "yes" else stranger(picture, pictures, about_title, generator)
        if other is not None:
            text = (
                f'Could "{other.title}" be its title?'
                if about_title
                else f"Is this {other.phrase}?"
            )
            questions[index].append((f"{text} Answer yes or no.", answer))
            answer = "no" if answer == "yes" else "yes"
        if place % 2 and picture.category in CATEGORIES:
            questions[index].append(choose(CATEGORIES[picture.category], generator))
    return questions


def stranger(
    picture: Picture, pictures: Sequence[Picture], about_title: bool, generator: np.random.Generator
) -> Picture | None:
    """Another picture of which something can be said that is wrong of this one; None: not found.

    Title and phrase must share no word with this picture's caption, and a phrase must come from
    another category: "an animal" is not wrong of a bird.
    """
    said = content_words(picture.text)
    for index in generator.permutation(len(pictures)).tolist():
        other = pictures[index]
        claim = other.title if about_title else other.phrase
        is_apart = about_title or other.category != picture.category
        if claim is not None and is_apart and not said & content_words(claim):
            return other
    return None


def content_words(text: str) -> set[str]:
    return {word for word in text.replace(",", "").split() if word not in ARTICLES}


def choose(right: str, generator: np.random.Generator) -> QuestionAnswer:
    """A question with four categories, the right one at a random place."""
    wrong = [word for word in CATEGORIES.values() if word != right]
    offered = [right, *generator.choice(wrong, NUM_CHOICES - 1, replace=False).tolist()]
    offered = [offered[i] for i in generator.permutation(NUM_CHOICES)]
    return f"Which word fits it best: {', '.join(offered[:-1])} or {offered[-1]}?", right


def _address(split: str, picture: Picture) -> str:
    return f"{split}/{picture.id}.{picture.suffix}"


def _write(path: Path, content: Any) -> None:
    write_bytes(path, json.dumps(content, indent=1).encode())
