"""Time what `embed.py` does to pictures and texts beside the loop of the public code.

    python benchmarks/bench_embed.py [--pictures 24] [--texts 1024] [--rounds 3]

prints rows of Markdown and keeps them in `benchmarks/embed.json`. Rows and pixels are compared
before anything is timed; then all take turns, so that a busy machine slows all of them. The first
round warms up and is not counted. Everything runs on one thread, workers aside.

    loop     one process, one after the other: Image.open, convert, the processor of `transformers`
             (installed version), the model; texts in batches of 32 in the order they come
             (Yu-xm/ReVision@2d26f3a embed.py). Our own code, written from that description
    loader   the same processor in the workers of a torch DataLoader, float32 to the device, as
             rom1504/clip-retrieval does
    exact    ours: bytes from the worker, numbers on the device
    fast     ours with decode=fast
    limit    pictures: `Image.open(...).load()`; texts: the GEMM rate of this run and the FLOP of
             the tokens that are there

Pictures are JPEGs of 640 x 480 and 1920 x 1080 pixels, collages of our clip art with noise, which
no photograph beats in edges. The tower of the end-to-end rows is CLIP ViT-B/32 with random weights,
whose work is that of the published ones; texts and features are those of the real MiniLM and
EfficientNet-Lite0 of the demo.
"""

import argparse
import json
import os
import resource
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import date
from functools import partial
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from bench_align import commit, machine  # noqa: E402

from revision.encoders.base import unit_rows  # noqa: E402
from revision.encoders.composed import load_towers  # noqa: E402
from revision.encoders.embedding import embed_records  # noqa: E402
from revision.encoders.hf import HuggingFaceEncoder  # noqa: E402
from revision.encoders.text_batches import padding_share, token_batches  # noqa: E402
from revision.records import Record, load_image, read_records  # noqa: E402
from revision.shards import ShardReader  # noqa: E402

RESULTS = ROOT / "benchmarks" / "embed.json"
ART = ROOT / "data" / "openclipart"
SIZES = {"640 x 480": (640, 480), "1920 x 1080": (1920, 1080)}
END_TO_END = "640 x 480"
TEXT_BATCH, TEXT_GROUP = 32, 2048
Work = Callable[[], Any]


# ---- inputs


def collages(directory: Path, count: int, size: tuple[int, int]) -> list[Path]:
    """JPEGs of quality 88 of this size: tiles of clip art, noise of two pixels' width on them."""
    random, (width, height) = np.random.default_rng(0), size
    with tarfile.open(ART / "test-000.tar") as tar:
        members = [m for m in tar if m.name.endswith(".webp")][:60]
        art = [load_image(tar.extractfile(m).read()) for m in members]  # type: ignore[union-attr]
    tiles = 4 if width < 1000 else 6
    tile = width // tiles, height // tiles
    paths = []
    for number in range(count):
        sheet = Image.new("RGB", size, "white")
        for place in range(tiles * tiles):
            picture = art[(7 * number + place) % len(art)].resize(tile, Image.Resampling.LANCZOS)
            sheet.paste(picture, (place % tiles * tile[0], place // tiles * tile[1]))
        noise = random.normal(0, 6, (height // 2, width // 2, 3)).repeat(2, 0).repeat(2, 1)
        pixels = (np.asarray(sheet) + noise).clip(0, 255).astype(np.uint8)
        paths.append(directory / f"{width}_{number}.jpg")
        Image.fromarray(pixels).save(paths[-1], "JPEG", quality=88)
    return paths


def captions(count: int) -> list[str]:
    """Captions of the clip art and, one in four, the record that they stand in: 3 to 128 tokens."""
    records = [
        record
        for name in ("contrastive", "pretrain")
        for record in read_records(ART / f"{name}-000.tar", side="text")
        if isinstance(record, Record)
    ]
    texts = [
        f"{r.text} {json.dumps(r.to_json())}" if i % 4 == 0 else str(r.text)
        for i, r in enumerate(records)
    ]
    return (texts * (count // len(texts) + 1))[:count]


def random_clip(decode: str = "exact") -> HuggingFaceEncoder:
    """ViT-B/32 and the text tower of CLIP, random weights; the published sizes."""
    from transformers import AutoTokenizer, CLIPConfig, CLIPImageProcessorPil, CLIPModel

    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "assets" / "minilm_l6")
    return HuggingFaceEncoder(
        CLIPModel(CLIPConfig()),
        tokenizer,
        CLIPImageProcessorPil(),
        name="clip of random weights",
        revision="0",
        decode=decode,  # type: ignore[arg-type]
    )


# ---- what is timed


def timed(works: dict[str, Work], rounds: int) -> dict[str, dict[str, list[float]]]:
    """Wall and CPU seconds of each, workers included, taken in turn; the first round warms up."""
    found: dict[str, dict[str, list[float]]] = {w: {"wall": [], "cpu": []} for w in works}
    for number in range(rounds + 1):
        for name, work in works.items():
            begun, before = time.perf_counter(), cpu_seconds()
            work()
            if number:
                found[name]["wall"].append(time.perf_counter() - begun)
                found[name]["cpu"].append(cpu_seconds() - before)
    return found


def cpu_seconds() -> float:
    """Of this process and of its workers that ended; `os.times` counts in hundredths."""
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def per_second(seconds: list[float], count: int) -> float:
    return round(count / median(seconds), 1)


def ratios(slow: list[float], quick: list[float]) -> list[float]:
    """Median, smallest and largest of the ratios within a round."""
    each = [a / b for a, b in zip(slow, quick, strict=True)]
    return [round(value, 2) for value in (median(each), min(each), max(each))]


def processed(clip: HuggingFaceEncoder, path: Path) -> Tensor:
    """The pixels of one picture as the public loop makes them."""
    with Image.open(path) as image:
        inputs = clip.image_processor(images=image.convert("RGB"), return_tensors="pt")
    return inputs["pixel_values"][0]


def opened(path: Path) -> Image.Image:
    with Image.open(path) as image:
        image.load()
    return image


def prepared(clip: HuggingFaceEncoder, paths: list[Path]) -> Tensor:
    """The pixels that the tower reads, by our path."""
    return clip.pixel_values(torch.stack([clip.read_inputs(str(path)) for path in paths]))


def preparing(clips: dict[str, HuggingFaceEncoder], paths: list[Path], rounds: int) -> Any:
    """From files to the numbers that a tower reads, one core."""
    exact = prepared(clips["exact"], paths)
    reference = torch.stack([processed(clips["exact"], path) for path in paths])
    difference = float((exact - reference).abs().max())
    if difference > 1e-6:
        raise SystemExit(f"pixels differ from the processor's by {difference}; nothing was timed")
    values = [torch.stack([c.read_inputs(str(p)) for p in paths]).float() for c in clips.values()]
    deviation = (values[1] - values[0]).abs()
    times = timed(
        {
            "loop": lambda: [processed(clips["exact"], path) for path in paths],
            "exact": lambda: prepared(clips["exact"], paths),
            "fast": lambda: prepared(clips["fast"], paths),
            "limit": lambda: [opened(path) for path in paths],
        },
        rounds,
    )
    cpu = {name: found["cpu"] for name, found in times.items()}
    return {
        "pictures / CPU s": {name: per_second(spent, len(paths)) for name, spent in cpu.items()},
        "loop / exact": ratios(cpu["loop"], cpu["exact"]),
        "loop / fast": ratios(cpu["loop"], cpu["fast"]),
        "exact / limit": ratios(cpu["exact"], cpu["limit"]),
        "exact, largest difference of pixels": difference,
        "fast, bytes": {
            "mean": round(float(deviation.mean()), 3),
            "max": float(deviation.max()),
        },
    }


def cosines(paths: list[Path]) -> dict[str, float]:
    """Between the features of EfficientNet-Lite0 of exactly and quickly decoded pictures."""
    towers = partial(
        load_towers,
        vision_dir=ROOT / "assets" / "efficientnet_lite0",
        text_dir=ROOT / "assets" / "minilm_l6",
    )
    rows = []
    for encoder in (towers(decode="exact"), towers(decode="fast")):
        pixels = torch.stack([encoder.read_inputs(str(path)) for path in paths])
        rows.append(encoder.encode_images(pixels))
    each = (rows[0] * rows[1]).sum(1)
    others = rows[0] @ rows[0].T - torch.eye(len(paths))
    return {
        "mean": round(float(each.mean()), 5),
        "least": round(float(each.min()), 5),
        "nearest other picture, mean": round(float(others.max(1).values.mean()), 5),
    }


# ---- end to end


@torch.no_grad()
def encoded(clip: HuggingFaceEncoder, pixels: Tensor) -> Tensor:
    """Unit rows of what the processor gave."""
    return unit_rows(clip.model.get_image_features(pixel_values=pixels).pooler_output)


def loop(clip: HuggingFaceEncoder, paths: list[Path]) -> Tensor:
    rows = []
    for start in range(0, len(paths), 16):
        pixels = [processed(clip, path) for path in paths[start : start + 16]]
        rows.append(encoded(clip, torch.stack(pixels)))
    return torch.cat(rows)


class Processed(torch.utils.data.Dataset):
    def __init__(self, clip: HuggingFaceEncoder, paths: list[Path]) -> None:
        self.clip, self.paths = clip, paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor:
        return processed(self.clip, self.paths[index])


def loader(clip: HuggingFaceEncoder, paths: list[Path]) -> Tensor:
    batches = DataLoader(Processed(clip, paths), batch_size=16, num_workers=2)
    return torch.cat([encoded(clip, pixels) for pixels in batches])


def ours(clip: HuggingFaceEncoder, directory: Path, paths: list[Path]) -> np.ndarray:
    """embed_records as a whole: shards are written."""
    with tempfile.TemporaryDirectory(dir=directory) as out:
        sets = embed_records(
            clip,
            input=_records(directory, paths),
            output_dir=out,
            modality="image",
            batch_size=16,
            dtype="float32",
            accelerator="cpu",
            devices=1,
        )
        reader = ShardReader(sets["image"])
        return np.concatenate([reader.features(b) for b in range(len(reader.blocks))])


def _records(directory: Path, paths: list[Path]) -> Path:
    file = directory / "records.json"
    images = [{"id": path.stem, "image": str(path)} for path in paths]
    file.write_text(json.dumps({"images": images, "texts": []}))
    return file


def end_to_end(
    clips: dict[str, HuggingFaceEncoder], directory: Path, paths: list[Path], rounds: int
) -> Any:
    rows = torch.from_numpy(ours(clips["exact"], directory, paths))
    difference = float((rows - loop(clips["exact"], paths)).abs().max())
    if difference > 1e-5:
        raise SystemExit(f"rows differ from the loop's by {difference}; nothing was timed")
    times = timed(
        {
            "loop": lambda: loop(clips["exact"], paths),
            "loader": lambda: loader(clips["exact"], paths),
            "exact": lambda: ours(clips["exact"], directory, paths),
            "fast": lambda: ours(clips["fast"], directory, paths),
        },
        rounds,
    )
    flop = 2 * _vit_macs(clips["exact"]) * len(paths)
    return {
        "pictures / s": {n: per_second(found["wall"], len(paths)) for n, found in times.items()},
        "pictures / CPU s": {n: per_second(found["cpu"], len(paths)) for n, found in times.items()},
        "limit, pictures / s": round(len(paths) / (flop / gemm_rate()), 1),
        "loop / exact, wall": ratios(times["loop"]["wall"], times["exact"]["wall"]),
        "loop / fast, wall": ratios(times["loop"]["wall"], times["fast"]["wall"]),
        "largest difference of rows": difference,
    }


def _vit_macs(clip: HuggingFaceEncoder) -> int:
    """Multiplications of the matrices and of the attention for one picture."""
    config = clip.model.config.vision_config
    width, tokens = config.hidden_size, (config.image_size // config.patch_size) ** 2 + 1
    layer = tokens * (4 * width**2 + 2 * width * config.intermediate_size) + 2 * tokens**2 * width
    return config.num_hidden_layers * layer + (tokens - 1) * 3 * config.patch_size**2 * width


def gemm_rate(width: int = 1024, repeats: int = 10) -> float:
    """FLOP per second of one float32 product of this machine, its threads as in the rest."""
    one, two = torch.randn(2, width, width)
    one @ two
    begun = time.perf_counter()
    for _ in range(repeats):
        one @ two
    return repeats * 2 * width**3 / (time.perf_counter() - begun)


# ---- texts


def in_order(texts: list[str]) -> Iterator[list[str]]:
    for start in range(0, len(texts), TEXT_BATCH):
        yield texts[start : start + TEXT_BATCH]


def embedding_texts(texts: list[str], rounds: int) -> Any:
    """MiniLM: batches of 32 in order beside groups that are sorted and cut by a budget."""
    assets = ROOT / "assets"
    towers = load_towers(
        vision_dir=assets / "efficientnet_lite0", text_dir=assets / "minilm_l6", image_size=64
    )

    def plain() -> Tensor:
        return torch.cat([towers.encode_texts(towers.text_inputs(b)) for b in in_order(texts)])

    def budget(tokens: int) -> Tensor:
        rows = torch.empty(len(texts), towers.feature_dim("text"))
        for start in range(0, len(texts), TEXT_GROUP):
            group = towers.tokenize(texts[start : start + TEXT_GROUP])
            for chosen, inputs in token_batches(group.inputs, tokens):
                rows[chosen + start] = towers.encode_texts(inputs)
        return rows

    difference = float((plain() - budget(16_384)).abs().max())
    if difference > 1e-5:
        raise SystemExit(f"rows differ from the loop's by {difference}; nothing was timed")
    budgets = (1024, 4096, 16_384)
    works: dict[str, Work] = {"loop": plain} | {str(n): partial(budget, n) for n in budgets}
    times = {name: found["cpu"] for name, found in timed(works, rounds).items()}
    tokens = [inputs for _, inputs in token_batches(towers.tokenize(texts).inputs, 16_384)]
    lengths = [int(i["attention_mask"].sum()) for i in tokens]
    return {
        "texts": len(texts),
        "tokens": sum(lengths),
        "texts / CPU s": {name: per_second(spent, len(texts)) for name, spent in times.items()},
        "loop / budget of 16384": ratios(times["loop"], times["16384"]),
        "padding, loop": round(padding_share([towers.text_inputs(b) for b in in_order(texts)]), 4),
        "padding, budget of 16384": round(padding_share(tokens), 4),
        "largest difference of rows": difference,
    }


def markdown(result: Any) -> str:
    lines = [
        "| from a file to a tower's numbers | loop | exact | fast | decoding alone | loop / exact |"
        " loop / fast |",
        "|---|---|---|---|---|---|---|",
    ]
    for size, found in result["preparing"].items():
        rates = found["pictures / CPU s"].values()
        cells = [*rates, found["loop / exact"][0], found["loop / fast"][0]]
        lines.append(f"| {size}, pictures / CPU s | {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=int, default=24)
    parser.add_argument("--texts", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    clips = {decode: random_clip(decode) for decode in ("exact", "fast")}
    result: dict[str, Any] = {"preparing": {}, "end to end": {}}
    with tempfile.TemporaryDirectory() as name:
        for title, size in SIZES.items():
            paths = collages(Path(name), options.pictures, size)
            result["preparing"][title] = preparing(clips, paths, options.rounds)
            result["preparing"][title]["fast, cosine of features"] = cosines(paths)
            if title == END_TO_END:
                found = end_to_end(clips, Path(name), paths, options.rounds)
                result["end to end"][title] = found
    result["texts"] = embedding_texts(captions(options.texts), options.rounds)
    facts = {"rounds": options.rounds, "pictures": options.pictures, "date": str(date.today())}
    facts |= {"commit": commit(), "machine": machine(), "load": round(os.getloadavg()[0], 1)}
    facts["versions"] = {n: version(n) for n in ("torch", "transformers", "pillow")}
    RESULTS.write_text(json.dumps(result | facts, indent=1) + "\n")
    print(json.dumps(result, indent=1))
    print(markdown(result))


if __name__ == "__main__":
    main()
