"""The inspection counts what is there, names what is broken, and does not grow with the input."""

import importlib.util
import io
import json
import random
import re
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from revision.config import compose
from revision.records import inspection
from revision.records.inspection import Reservoir, inspect_records, quantiles, reason_kind
from revision.records.inspection_text import as_text
from revision.remote import Retry, stream
from tests.web_server import serving

_BUFFER = io.BytesIO()
Image.new("L", (6, 4)).save(_BUFFER, "png")
PNG = _BUFFER.getvalue()
SCRIPT = Path(__file__).resolve().parents[1] / "scripts" / "inspect_data.py"


def chat(id, *, marks=1, images=1, **fields):
    turns = [{"from": "human", "value": "<image>" * marks}, {"from": "gpt", "value": "Yes."}]
    names = [f"{i}.png" for i in range(images)]
    return {"id": id, "image": names, "conversations": turns} | fields


@pytest.fixture
def chats(tmp_path) -> Path:
    Image.new("L", (6, 4)).save(tmp_path / "0.png")
    (tmp_path / "1.png").write_bytes(b"no picture")
    entries = [
        chat("a", caption="A red cat.", source="x", empty=""),
        chat("b", marks=2, images=2, source="y"),
        chat("c", marks=0, images=0),
        chat("d", images=0, caption="one <image>"),  # text-only: the caption fills the mark
        chat("e", marks=2),
        chat("f", marks=3),
        chat("a"),
        {"text": "no id"},
    ]
    path = tmp_path / "chat.json"
    path.write_text(json.dumps(entries))
    return path


def test_everything_is_counted_once(chats):
    found = inspect_records(chats, image_root=chats.parent)
    counts = found["counts"]
    expected = {"entries": 8, "records": 5, "refused": 3, "duplicate_ids": 1, "images": 4}
    expected |= {"numbered_ids": 1}
    expected |= {"texts": 2, "conversations": 5, "turns_user": 5, "turns_assistant": 5}
    expected |= {"marks": 5, "marks_filled_by_texts": 1, "marks_unlike_images": 2}
    expected |= {"records_with_one_image": 2, "records_with_several_images": 1}
    expected |= {"conversations_without_images": 1, "texts_with_marks": 1}
    assert {name: counts[name] for name in expected} == expected
    assert found["metadata"] == {"source": 2}  # a field that is empty is not there
    assert (found["format"], found["detected"], found["stopped"]) == ("conversations", True, "")


def test_refusals_of_one_kind_stand_together_with_their_first_addresses(chats):
    refused = inspect_records(chats)["refused"]
    first, *others = refused.items()
    assert first[0] == "N <image> marks in the conversation but N images"
    assert first[1]["count"] == 2
    assert [a["address"] for a in first[1]["addresses"]] == [
        "chat.json:entry 4",
        "chat.json:entry 5",
    ]
    assert [kind["count"] for _, kind in others] == [1]
    assert reason_kind("a turn comes from 'bob' 12") == "a turn comes from '...' N"


def test_pictures_that_cannot_be_opened_are_named(chats):
    pictures = inspect_records(chats, image_root=chats.parent)["pictures"]
    assert (pictures["num_sampled"], pictures["num_broken"]) == (4, 1)
    assert pictures["modes"] == {"L": 3}
    assert pictures["width"]["0.5"] == 6
    assert pictures["broken"][0]["problem"].startswith("1.png: unreadable image")


def test_words_are_those_of_the_caption_controls(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"id": "a", "caption": "红色汽车，停着。"}) + "\n")
    assert set(inspect_records(path)["text_words"].values()) == {6}


def test_pictures_with_too_many_pixels_are_broken_as_for_embedding(chats, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20)
    pictures = inspect_records(chats, image_root=chats.parent)["pictures"]
    assert "DecompressionBomb: 6 x 4" in str(pictures["broken"])
    assert not pictures["modes"]


def test_lengths_are_exact_quantiles():
    lengths = np.random.default_rng(0).integers(0, 50, 301)
    found = quantiles(Counter(lengths.tolist()))
    expected = np.quantile(lengths, inspection.QUANTILES, method="inverted_cdf")
    assert list(found.values()) == expected.tolist()
    assert quantiles(Counter()) == {}


def test_every_item_has_the_same_chance():
    drawn = Counter()
    for seed in range(2000):
        reservoir = Reservoir(3, random.Random(seed))
        for item in range(10):
            place = reservoir.place()
            if place is not None:
                reservoir.put(place, item)
        assert len(set(reservoir.items)) == 3
        drawn.update(reservoir.items)
    # 2000 draws at 0.3: the deviation is 20.5, four of them cover ten items
    assert all(abs(count - 600) < 82 for count in drawn.values())


def test_names_and_samples_are_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(inspection, "MAX_NAMES", 4)
    lines = [{"id": i, "text": "x" * 5000, f"field {i}": [i]} for i in range(30)]
    lines += [{"id": 0, chr(97 + i): 0} for i in range(3)]
    path = tmp_path / "x.jsonl"
    path.write_text("\n".join(json.dumps(line) for line in lines))
    found = inspect_records(path, num_samples=2)
    assert len(found["metadata"]) == 5
    assert found["metadata"][inspection.OTHERS] == 26
    assert max(len(str(sample)) for sample in found["samples"]) < 500
    assert found["samples"] == inspect_records(path, num_samples=2)["samples"]
    assert found["samples"] != inspect_records(path, num_samples=2, seed=1)["samples"]


def load_script():
    spec = importlib.util.spec_from_file_location("inspect_data_script", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_script_prints_and_writes_what_was_found(chats, tmp_path, capsys):
    out = tmp_path / "out"
    overrides = [f"input={chats}", f"image_root={tmp_path}", f"output_dir={out}"]
    found = load_script().run(compose("inspect_data", overrides))
    assert json.loads((out / "inspect.json").read_text()) == found
    text = capsys.readouterr().out
    for part in (
        "conversations (detected), 1 file",
        "8 entries: 5 records, 3 refused",
        "40.0%  source",
    ):
        assert part in text
    assert "2 refused: other numbers of marks and images" in text


def test_a_truncated_input_is_described_as_far_as_it_goes_and_fails(tmp_path, capsys):
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w") as tar:
        for i in range(3):
            info = tarfile.TarInfo(f"{i}.txt")
            info.size = 600
            tar.addfile(info, io.BytesIO(b"a" * 600))
    path.write_bytes(path.read_bytes()[: 2 * 1536])
    with pytest.raises(ValueError, match="not read to its end"):
        load_script().run(compose("inspect_data", [f"input={path}"]))
    text = capsys.readouterr().out
    assert "STOPPED" in text
    assert re.search(r"entries: [12] records, 0 refused", text)


def test_what_a_terminal_would_obey_is_escaped(tmp_path):
    path = tmp_path / "x.json"
    path.write_text(json.dumps([{"id": "i", "text": "a\x1b[2Jb\nc"}]))
    found = inspect_records(path)
    assert "a\\x1b[2Jb\\nc" in as_text(found)
    as_text(found | {"input": "caf\udce9"}).encode()


def test_negative_counts_are_refused(chats):
    with pytest.raises(ValueError, match="at least 0, got -1 and 3"):
        inspect_records(chats, num_images=-1)


def test_several_remote_files_are_described_together(chats, capsys):
    with serving({"a.json": chats.read_bytes(), "images/0.png": PNG}) as server:
        server.cuts = [200]
        overrides = [
            f"input=[{server.url}/a.json,{chats}]",
            f"image_root={server.url}/images",
            "num_images=9",
        ]
        found = load_script().run(compose("inspect_data", overrides))
    assert (found["num_files"], found["counts"]["entries"]) == (2, 16)
    assert found["counts"]["numbered_ids"] == 6  # every id of the second file
    assert found["pictures"]["modes"] == {"L": found["counts"]["images"] - 2}
    assert "missing image" in found["pictures"]["broken"][0]["problem"]
    assert "conversations (detected), 2 files" in capsys.readouterr().out


def test_a_remote_input_that_fails_is_described_as_far_as_it_goes(monkeypatch, capsys):
    monkeypatch.setattr(stream, "RETRY", Retry(attempts=2, first_delay_s=0.001))
    lines = b"".join(b'{"id": %d, "text": "a"}\n' % i for i in range(200_000))
    with serving({"a.jsonl": lines}) as server:
        server.after_request = [lambda: server.statuses.extend([503] * 9)]
        server.cuts = [2 * 2**20]
        overrides = [f"input={server.url}/a.jsonl", "format=conversations"]
        with pytest.raises(ValueError, match=r"not read to its end: .*a\.jsonl.*after 2 attempts"):
            load_script().run(compose("inspect_data", overrides))
    assert re.search(r"STOPPED.*\n\n[1-9]\d+ entries", capsys.readouterr().out)
