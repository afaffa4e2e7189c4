"""Time conversations -> ids and labels: the public algorithm, ours online, ours cached, the limit.

    PYTHONPATH=. python benchmarks/bench_tokenize.py [--records 2000] [--rounds 5]

prints one row of Markdown and keeps it in `benchmarks/tokenize.json`. Ids and labels are compared
before anything is timed. The text is real: captions, authors, keywords and paths of the pictures
in `data/openclipart`, as conversations of five rounds, with the tokenizer in
`assets/smollm2_135m_instruct` and template `vicuna_v1`. The four run in turn on one thread, so that
a busy machine slows all of them; the first round warms up and is not counted.

    peer     per sample: deep copy, render, tokenise around <image>, split at the end mark, tokenise
             each round and each of its questions again for their lengths (Yu-xm/ReVision@2d26f3a
             bunny/util/data_utils.py, as a description; our own code). Lists of ids and labels
    online   `TurnEncoder.encode_all`, 32 conversations at a time
    cached   `TokenCache.batch`, 256 random records at a time, with ids and padding
    limit    copying as many bytes as the tensors of such a batch have
"""

import argparse
import copy
import json
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import date
from importlib.metadata import version
from itertools import cycle, islice
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from bench_align import ROOT, commit, machine
from transformers import AutoTokenizer

from revision.data.samples import IGNORE, IMAGE_SLOT
from revision.data.templates import SYSTEM
from revision.data.tokens import TokenCache, build_tokens
from revision.data.turn_encoder import Encoded, TurnEncoder
from revision.records import IMAGE_MARK, Record, Turn, read_records

RESULTS = ROOT / "benchmarks" / "tokenize.json"
SPLITS = ("pretrain", "tune", "contrastive")
Talk = tuple[Turn, ...]
Tokens = tuple[list[int], list[int]]


def talks(count: int) -> list[Talk]:
    """Conversations of five rounds about real pictures, repeated where there are too few."""
    made = []
    for split in SPLITS:
        path = ROOT / "data" / "openclipart" / f"{split}-000.tar"
        for record in read_records(path, side="image", image_root=None):
            assert isinstance(record, Record)
            made.append(_talk(record))
    return list(islice(cycle(made), count))


def _talk(record: Record) -> Talk:
    about = record.metadata
    rounds = [
        ("What is in this picture?", str(record.text)),
        ("What did its artist call it?", f"The artist called it {about['title']}."),
        ("Which keywords does it have?", ", ".join(about["keywords"]) or "None at all."),
        ("Who drew it?", f"It was drawn by {about['author'] or 'someone unknown'}."),
        ("Where does it come from?", f"From {about['source']}, which is {about['license']}."),
    ]
    turns = [turn for q, a in rounds for turn in (Turn("user", q), Turn("assistant", a))]
    return Turn("user", f"{IMAGE_MARK}\n{turns[0].text}"), *turns[1:]


def peer(talk: Talk, tokenizer: Any) -> Tokens:
    """Ids and labels as the public code finds them: lengths by tokenising the pieces again."""
    talk = copy.deepcopy(talk)
    marker, end = " ASSISTANT: ", tokenizer.eos_token
    prompt = SYSTEM + " "
    for turn in talk:
        if turn.role == "user":
            text = turn.text.replace(IMAGE_MARK, "").strip()
            marked = f"{IMAGE_MARK}\n{text}" if IMAGE_MARK in turn.text else text
            prompt += f"USER: {marked} "
        else:
            prompt += f"ASSISTANT: {turn.text}{end}"

    def ids_of(text: str) -> list[int]:
        chunks = [tokenizer(chunk).input_ids for chunk in text.split(IMAGE_MARK)]
        return [i for k, chunk in enumerate(chunks) for i in ([IMAGE_SLOT] * (k > 0) + chunk)]

    ids = ids_of(prompt)
    labels, position = list(ids), 0
    for piece in prompt.split(end):
        if not piece:
            break
        parts = piece.split(marker)
        if len(parts) != 2:
            break
        asked = len(ids_of(parts[0] + marker)) - 1  # the last space is learnt
        labels[position : position + asked] = [IGNORE] * asked
        position += len(ids_of(piece)) + 1
    if position != len(ids):
        labels = [IGNORE] * len(ids)
    return ids, labels


class Talks:
    """The conversations as the token cache wants them."""

    def __init__(self, conversations: Sequence[Talk], turns: TurnEncoder) -> None:
        self.conversations, self.turns = conversations, turns

    def __len__(self) -> int:
        return len(self.conversations)

    def identity(self) -> dict[str, Any]:
        return self.turns.identity()

    def encode(self, numbers: Sequence[int]) -> list[tuple[str, Encoded | ValueError]]:
        encoded = self.turns.encode_all(self.conversations[n] for n in numbers)
        return [(f"record {n}", one) for n, one in zip(numbers, encoded, strict=True)]


def check(conversations: list[Talk], tokenizer: Any, turns: TurnEncoder, cache: TokenCache) -> int:
    """Raise SystemExit unless all three agree; the number of tokens."""
    total = 0
    for start in range(0, len(conversations), 32):
        chunk = conversations[start : start + 32]
        batch = cache.batch(np.arange(start, start + len(chunk)))
        for row, (talk, own) in enumerate(zip(chunk, turns.encode_all(chunk), strict=True)):
            assert not isinstance(own, ValueError)
            expected, found = peer(talk, tokenizer), (own.input_ids.tolist(), own.labels.tolist())
            length = int(batch.lengths[row])
            stored = (batch.input_ids[row, :length], batch.labels[row, :length])
            if expected != found or found != tuple(part.tolist() for part in stored):
                raise SystemExit(f"record {start + row}: the three disagree; nothing was timed")
            total += length
    return total


def works(
    conversations: list[Talk], tokenizer: Any, turns: TurnEncoder, cache: TokenCache
) -> dict[str, tuple[int, Callable[[], object]]]:
    """What is timed, and for how many samples. The cached ones are repeated to be measurable."""
    orders = np.random.default_rng(0).integers(0, len(cache), (200, 256))
    batch = cache.batch(orders[0])
    tensors = [batch.input_ids, batch.labels]
    copies = [torch.empty_like(tensor) for tensor in tensors]

    def copying() -> None:
        for _ in orders:
            for target, tensor in zip(copies, tensors, strict=True):
                target.copy_(tensor)

    few = conversations[: len(conversations) // 4]
    return {
        "peer": (len(few), lambda: [peer(talk, tokenizer) for talk in few]),
        "online": (
            len(conversations),
            lambda: [
                turns.encode_all(conversations[start : start + 32])
                for start in range(0, len(conversations), 32)
            ],
        ),
        "cached": (orders.size, lambda: [cache.batch(order) for order in orders]),
        "limit": (orders.size, copying),
    }


def rate(count: int, work: Callable[[], object]) -> float:
    """Samples per CPU-second."""
    begun = time.process_time()
    work()
    return count / (time.process_time() - begun)


def row_of(rounds: list[dict[str, float]], records: int, tokens: int) -> dict[str, Any]:
    def ratio(one: str, other: str) -> list[float]:
        ratios = [rates[one] / rates[other] for rates in rounds]
        return [round(value, 2) for value in (median(ratios), min(ratios), max(ratios))]

    return {
        "records": records,
        "tokens_per_record": round(tokens / records, 1),
        "rounds": len(rounds),
        "samples_per_cpu_s": {name: round(median(r[name] for r in rounds)) for name in rounds[0]},
        "online / peer": ratio("online", "peer"),
        "cached / peer": ratio("cached", "peer"),
        "cached / limit": ratio("cached", "limit"),
        "equality": {"records": records, "tokens": tokens, "different": 0},
        "date": str(date.today()),
        "commit": commit(),
        "machine": machine(),
        "versions": {n: version(n) for n in ("torch", "numpy", "transformers", "tokenizers")},
        "load": round(os.getloadavg()[0], 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--records", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "assets" / "smollm2_135m_instruct")
    turns, conversations = TurnEncoder(tokenizer, "vicuna_v1"), talks(options.records)
    with tempfile.TemporaryDirectory() as directory:
        cache = build_tokens(Talks(conversations, turns), Path(directory), num_workers=0)
        tokens = check(conversations, tokenizer, turns, cache)
        timed = works(conversations, tokenizer, turns, cache)
        rounds = [
            {name: rate(*work) for name, work in timed.items()} for _ in range(options.rounds + 1)
        ]
    row = row_of(rounds[1:], options.records, tokens)
    RESULTS.write_text(json.dumps(row, indent=1) + "\n")
    rates = row["samples_per_cpu_s"]
    print("| tokens | peer | online | cached | limit | online / peer | cached / peer |")
    print("|---|---|---|---|---|---|---|")
    cells = [row["tokens_per_record"], *(f"{rate:,}" for rate in rates.values())]
    cells += [row[key][0] for key in ("online / peer", "cached / peer")]
    print(f"| {' | '.join(map(str, cells))} |")


if __name__ == "__main__":
    main()
