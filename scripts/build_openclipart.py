"""Make the shipped picture-caption data in `data/openclipart/` (for maintainers; users have it).

Input: the Debian packages `openclipart-png` and `openclipart-svg` (1:0.18+dfsg-19), unpacked with
`dpkg -x`, and an English word list such as the one of the package `wamerican`:

    python scripts/build_openclipart.py --source DIR/usr/share/openclipart --words american-english

Output: one webdataset tar per split (`.webp` + `.json`), and a README with the counts.

What enters: entries whose metadata says public domain, whose picture is not a copy of another one
and not blank, and that have an English caption (`openclipart_captions.py`). Series are capped.
Splits: pictures are joined into groups when they share artist, folder and title, or the caption,
or look alike (16 x 16 average hash and shared ink); a group lies in one split.
"""

import argparse
import hashlib
import html
import io
import json
import os
import re
import sys
import tarfile
import warnings
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
from openclipart_captions import EXTRA_WORDS, collection_of, describe, plain_words
from PIL import Image, ImageChops, ImageOps

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from revision.progress import track

SIZE = 160
MARGIN = 6
MAX_ASPECT = 6
MIN_CONTRAST = 6
QUALITY = 80
GRID = 16
SAME_CAPTION_LIMIT = 8
NEAR_HASH_BITS, NEAR_INK_SHARE = 10, 0.15
COPY_HASH_BITS, COPY_INK_SHARE = 2, 0.03
SPLIT_SHARES = {"contrastive": 0.35, "pretrain": 0.38, "tune": 0.175, "val": 0.025, "test": 0.07}
LARGE_GROUP = 12
USES = {
    "contrastive": "trains the heads of the demo encoder, nothing else",
    "pretrain": "stage 1: its texts; its pictures only for the paired upper bound",
    "tune": "stage 2: conversations; its pictures are the unpaired image side of the alignment",
    "val": "validation loss",
    "test": "every reported number",
}
README = """# Open Clip Art, with captions

Small pictures with captions made from what their artists wrote, for the demo and the tests.

- Source: the Open Clip Art Library 0.18, as packaged by Debian (`openclipart-png`,
  `openclipart-svg`, 1:0.18+dfsg-19).
- Licence: **public domain** (Creative Commons Public Domain Dedication). Only entries that say so
  in their own metadata are here; each keeps its `author` and its `source` path.
- Made by `scripts/build_openclipart.py` (its first lines tell how to run it again).

| split | pictures | groups | distinct captions | used for |
|---|---|---|---|---|
{rows}

Each tar is a webdataset: `<id>.webp` ({size} x {size}, on white, quality {quality}) and
`<id>.json` with `id, text, title, keywords, category, author, license, source, group, split`.

Captions join the title, up to three keywords and what the folder holds, in lower case:
"seagull, a bird, an animal". Titles that only name a collection give way to the cleaned file name;
a foreign title gives way to the folder's noun. No caption was written for this project, and none
was made by looking at the picture, so some are dull ("text block, a computer icon") or odd.

Left out: entries that are not public domain, links and copies of other pictures (also under
scaling and small changes), blanks, thin strips, a decompression bomb, what has no English name,
and most of the large series (1,375 stars, icon themes, card decks).

Splits are by group: pictures by the same artist with the same name, with the same caption, or
that look alike (16 x 16 average hash and shared ink) lie in the same split. An artist's style,
and the words of the folder, are shared by all splits, so scores on `test` are in-domain scores.
"""
UNWELCOME = re.compile(r"nazi|swastika|hitler|pantyhose|collant", re.IGNORECASE)
RDF = {
    "cc": "http://web.resource.org/cc/",
    "dc": "http://purl.org/dc/elements/1.1/",
    "rdf": "http://www.w3.org/1999/02/22-rdf-syntax-ns#",
}


@dataclass
class Entry:
    """One picture with the metadata that its SVG source carries."""

    path: str
    title: str
    keywords: list[str]
    author: str
    license: str
    name: str = ""
    caption: str = ""
    webp: bytes = b""
    grid: np.ndarray = field(default_factory=lambda: np.zeros(0))
    group: str = ""
    id: str = ""

    def __post_init__(self) -> None:
        name = self.path.removesuffix(".png").lower()
        self.id = re.sub(r"[^a-z0-9]+", "-", name).strip("-")

    @property
    def category(self) -> str:
        return self.path.split("/")[0]


def read_entries(source: Path) -> list[Entry]:
    """Public-domain entries in path order; links stand for the picture they point to."""
    entries = []
    for png in sorted((source / "png").rglob("*.png")):
        path = png.relative_to(source / "png").as_posix()
        svg = (source / "svg" / path).with_suffix(".svg")
        if png.is_symlink() or not svg.is_file() or UNWELCOME.search(path):
            continue
        entry = read_metadata(path, ElementTree.parse(svg).getroot())
        if "publicdomain" in entry.license.lower():
            entries.append(entry)
    return entries


def read_metadata(path: str, svg: ElementTree.Element) -> Entry:
    def text(xpath: str) -> str:
        node = svg.find(xpath, RDF)
        return html.unescape((node.text or "").strip()) if node is not None else ""

    license_node = svg.find(".//cc:Work/cc:license", RDF)
    resource = f"{{{RDF['rdf']}}}resource"
    return Entry(
        path=path,
        title=text(".//cc:Work/dc:title"),
        keywords=[
            html.unescape(node.text.strip())
            for node in svg.iterfind(".//cc:Work/dc:subject//rdf:li", RDF)
            if node.text
        ],
        author=text(".//cc:Work/dc:creator/cc:Agent/dc:title"),
        license=license_node.get(resource, "") if license_node is not None else "",
    )


def caption_entries(entries: list[Entry], words: set[str]) -> list[Entry]:
    """Entries with an English caption, each series and each caption capped, in hash order."""
    kept, per_series, per_caption = [], Counter[str](), Counter[str]()
    for entry in sorted(entries, key=lambda entry: digest(entry.id)):
        described = describe(entry.path, entry.title, entry.keywords, entry.author, words)
        if described is None:
            continue
        entry.name, entry.keywords, entry.caption = described
        series = collection_of(entry.path, entry.title)
        if series is not None and per_series[series.name] >= series.limit:
            continue
        if per_caption[entry.caption] >= SAME_CAPTION_LIMIT:
            continue
        per_series.update([series.name] if series else [])
        per_caption[entry.caption] += 1
        kept.append(entry)
    return kept


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def render(path: Path) -> Image.Image | None:
    """The drawing on white, cropped and padded to a square; None for a blank, strip or bomb."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            drawing = Image.open(path).convert("RGBA")
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        return None
    picture = Image.new("RGBA", drawing.size, "white")
    picture.alpha_composite(drawing)
    box = ImageChops.invert(picture.convert("RGB")).point(lambda ink: 255 * (ink > 8)).getbbox()
    if box is None:
        return None
    picture = picture.convert("RGB").crop(box)
    if max(picture.size) > MAX_ASPECT * min(picture.size):
        return None
    inner = (SIZE - 2 * MARGIN, SIZE - 2 * MARGIN)
    picture = ImageOps.contain(picture, inner, Image.Resampling.LANCZOS)
    square = Image.new("RGB", (SIZE, SIZE), "white")
    square.paste(picture, ((SIZE - picture.width) // 2, (SIZE - picture.height) // 2))
    return square if np.asarray(square).std() > MIN_CONTRAST else None


def add_pictures(entries: list[Entry], source: Path) -> list[Entry]:
    kept = []
    for entry in track(entries, "pictures"):
        picture = render(source / "png" / entry.path)
        if picture is None:
            continue
        buffer = io.BytesIO()
        picture.save(buffer, "WEBP", quality=QUALITY, method=6)
        entry.webp = buffer.getvalue()
        entry.grid = np.asarray(picture.resize((GRID, GRID), Image.Resampling.BOX), np.float32)
        kept.append(entry)
    return kept


def look_alikes(entries: list[Entry], hash_bits: int, ink_share: float) -> list[tuple[int, int]]:
    """Pairs (i < j) whose average hashes and whose ink differ little.

    Ink is 255 - value on the 16 x 16 grid; two pictures differ by the ink that only one has, as a
    share of the ink that either has. (Most clip art is mostly white: a plain mean difference
    calls all thin drawings alike.)
    """
    ink = 255.0 - np.stack([entry.grid for entry in entries]).reshape(len(entries), -1)
    gray = ink.reshape(len(entries), -1, 3).mean(axis=2)
    signs = np.where(gray > gray.mean(axis=1, keepdims=True), 1.0, -1.0).astype(np.float32)
    pairs = []
    for i in range(len(entries)):
        num_differing = (signs.shape[1] - signs[i + 1 :] @ signs[i]) / 2
        near = i + 1 + np.flatnonzero(num_differing <= hash_bits)
        only_one = np.abs(ink[near] - ink[i]).sum(axis=1)
        either = np.maximum(ink[near], ink[i]).sum(axis=1)
        pairs += [(i, int(j)) for j in near[only_one <= ink_share * either]]
    return pairs


def drop_copies(entries: list[Entry]) -> list[Entry]:
    copies = {j for _, j in look_alikes(entries, COPY_HASH_BITS, COPY_INK_SHARE)}
    return [entry for i, entry in enumerate(entries) if i not in copies]


def join_groups(entries: list[Entry]) -> None:
    """Set `entry.group`: the connected components of "must not be separated"."""
    parent = list(range(len(entries)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    first_with: dict[tuple[str, ...], int] = {}
    links = look_alikes(entries, NEAR_HASH_BITS, NEAR_INK_SHARE)
    for i, entry in enumerate(entries):
        folder = entry.path.rpartition("/")[0]
        stem = " ".join(word for word in plain_words(entry.name) if not word.isdigit())
        for key in ((entry.author, folder, stem), (entry.author, entry.name), (entry.caption,)):
            links.append((first_with.setdefault(key, i), i))
    for i, j in links:
        parent[root(j)] = root(i)
    for i, entry in enumerate(entries):
        entry.group = entries[root(i)].id


def split_groups(entries: list[Entry]) -> dict[str, list[Entry]]:
    """Whole groups to splits, each category in the same proportions; large ones only to train."""
    groups: dict[tuple[str, str], list[Entry]] = defaultdict(list)
    for entry in entries:
        groups["", entry.group].append(entry)
    splits: dict[str, list[Entry]] = {name: [] for name in SPLIT_SHARES}
    placed: dict[str, Counter[str]] = defaultdict(Counter)
    order = sorted(
        groups.values(), key=lambda group: (-(len(group) > LARGE_GROUP), digest(group[0].group))
    )
    for group in order:
        category = Counter(entry.category for entry in group).most_common(1)[0][0]
        names = list(SPLIT_SHARES)[:2] if len(group) > LARGE_GROUP else list(SPLIT_SHARES)
        total = sum(placed[category].values()) + len(group)
        name = max(names, key=lambda n: SPLIT_SHARES[n] * total - placed[category][n])
        splits[name] += group
        placed[category][name] += len(group)
    return {name: sorted(found, key=lambda e: digest(e.id)) for name, found in splits.items()}


def make_ids_unique(entries: list[Entry]) -> None:
    """ "wine_.png" and "wine.png" would share an id; the later one gets a number."""
    taken = Counter[str]()
    for entry in sorted(entries, key=lambda entry: entry.path):
        taken[entry.id] += 1
        if taken[entry.id] > 1:
            entry.id += f"-{taken[entry.id]}"


def write_tar(path: Path, split: str, entries: list[Entry]) -> None:
    temporary = path.with_suffix(".tmp")
    with tarfile.open(temporary, "w", format=tarfile.USTAR_FORMAT) as tar:
        for entry in entries:
            note = {
                "id": entry.id,
                "text": entry.caption,
                "title": entry.name,
                "keywords": entry.keywords,
                "category": entry.category,
                "author": entry.author,
                "license": "public domain",
                "source": f"openclipart 0.18 {entry.path}",
                "group": entry.group,
                "split": split,
            }
            text = json.dumps(note, ensure_ascii=False).encode()
            for suffix, content in (("json", text), ("webp", entry.webp)):
                member = tarfile.TarInfo(f"{entry.id}.{suffix}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    os.replace(temporary, path)


def print_statistics(splits: dict[str, list[Entry]]) -> None:
    entries = [entry for found in splits.values() for entry in found]
    lengths = Counter(len(entry.caption.split()) for entry in entries)
    vocabulary = Counter(word for e in entries for word in e.caption.replace(",", "").split())
    print("captions per length in words:", dict(sorted(lengths.items())))
    print("distinct words:", len(vocabulary), " most common:", vocabulary.most_common(40))
    captions = Counter(entry.caption for entry in entries)
    print("distinct captions:", len(captions), " most common:", captions.most_common(15))
    for name, found in splits.items():
        size = sum(len(entry.webp) for entry in found)
        categories = Counter(entry.category for entry in found)
        print(f"{name}: {len(found)} pictures, {len({e.group for e in found})} groups,")
        print(f"    {size / 1e6:.1f} MB, {dict(categories.most_common(8))}")


def write_readme(path: Path, splits: dict[str, list[Entry]]) -> None:
    rows = [
        f"| {name} | {len(found)} | {len({e.group for e in found})} "
        f"| {len({e.caption for e in found})} | {USES[name]} |"
        for name, found in splits.items()
    ]
    temporary = path.with_suffix(".tmp")
    temporary.write_text(README.format(rows="\n".join(rows), size=SIZE, quality=QUALITY))
    os.replace(temporary, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--source", type=Path, required=True, help="usr/share/openclipart")
    parser.add_argument("--words", type=Path, required=True, help="English words, one a line")
    parser.add_argument("--output-dir", type=Path, default=Path("data/openclipart"))
    arguments = parser.parse_args()
    words = {word.lower() for word in arguments.words.read_text().split() if "'" not in word}
    words |= EXTRA_WORDS
    entries = read_entries(arguments.source)
    print(f"{len(entries)} public-domain pictures")
    entries = caption_entries(entries, words)
    print(f"{len(entries)} with a caption, series capped")
    entries = drop_copies(add_pictures(entries, arguments.source))
    print(f"{len(entries)} without copies and blanks")
    join_groups(entries)
    splits = split_groups(entries)
    make_ids_unique(entries)
    arguments.output_dir.mkdir(parents=True, exist_ok=True)
    for name, found in splits.items():
        write_tar(arguments.output_dir / f"{name}-000.tar", name, found)
    write_readme(arguments.output_dir / "README.md", splits)
    print_statistics(splits)


if __name__ == "__main__":
    main()
