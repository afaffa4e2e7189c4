"""Public pickles to feature sets and back, in Python and by the command line."""

import importlib.util
import json
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from pyarrow import parquet

from revision.alignment.fit import read_sets
from revision.alignment.methods.realign import ReAlign
from revision.alignment.storage import load_alignment, save_alignment
from revision.conversion import export_pickles, import_pickles
from revision.shards import ShardReader, ShardWriter, verify, write_header

DIM = 5
REPOSITORY = Path(__file__).resolve().parents[1]


def row(seed: int, dtype="float16") -> np.ndarray:
    vector = np.random.default_rng(seed).normal(size=DIM)
    return (vector / np.linalg.norm(vector)).astype(dtype)


def text(i, **fields):
    return {"id": i, "caption": f"caption {i}", "embed": row(int(i))} | fields


def image(i, **fields):
    return {"id": i, "image_path": f"a/{i}.jpg", "embed": row(int(i))} | fields


def write(path: Path, content: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(content))
    return path


def read_all(directory: Path, pattern="*.pkl") -> list[dict]:
    parts = sorted(directory.glob(pattern), key=lambda p: int("".join(filter(str.isdigit, p.name))))
    return [record for part in parts for record in pickle.loads(part.read_bytes())]


def same(a: list[dict], b: list[dict]) -> None:
    for left, right in zip(a, b, strict=True):
        assert left.keys() == right.keys()
        for key in left:
            assert type(left[key]) is type(right[key])
            np.testing.assert_array_equal(left[key], right[key])
            if key == "embed":
                assert left[key].dtype == right[key].dtype


@pytest.mark.parametrize("make", [text, image])
def test_a_round_trip_gives_back_the_same_records_in_the_same_order(tmp_path, make):
    kind = make.__name__
    records = [make(i if i % 2 else f"{i}", extra=i) for i in range(23)]
    for part in range(12):  # part 10 comes after part 9, not after part 1
        write(tmp_path / "in" / f"{kind}_embeds_{part + 1}.pkl", records[2 * part : 2 * part + 2])
    header = import_pickles(tmp_path / "in", tmp_path / "set", rows_per_shard=10)
    assert (header.kind, header.num_rows, header.dtype, len(header.shards)) == (
        kind,
        23,
        "float16",
        3,
    )
    assert verify(tmp_path / "set") == []
    paths = export_pickles(tmp_path / "set", tmp_path / "out", records_per_file=9)
    assert [p.name for p in paths] == [f"{kind}_embeds_{k}.pkl" for k in (1, 2, 3)]
    same(read_all(tmp_path / "out"), records)


def test_records_keep_what_the_pickle_says(tmp_path):
    write(tmp_path / "in" / "x.pkl", [image(0), image("1", note=np.arange(2))])
    import_pickles(tmp_path / "in", tmp_path / "set", encoder="llm2clip")
    reader = ShardReader(tmp_path / "set")
    assert reader.header.encoder["name"] == "llm2clip"
    first, second = reader.records(0)
    assert (first.id, first.images, first.metadata) == ("0", ("a/0.jpg",), {"public_id": 0})
    assert (second.id, second.metadata) == ("1", {"note": [0, 1]})


def test_bad_records_go_to_quarantine_and_nothing_is_lost(tmp_path):
    bad = [
        (text(1), "duplicate id"),
        (text(2, id=None), "missing id"),
        (text(3, id=""), "missing id"),
        (text(4, caption=" "), "empty caption"),
        (text(5, embed=None), "no feature"),
        (text(6, embed=np.zeros(DIM, np.float16)), "zero or not finite"),
        (text(7, embed=np.full(DIM, np.nan, np.float16)), "zero or not finite"),
        (text(8, embed=np.ones(DIM + 1, np.float16)), "feature of 6 float16 numbers, the first"),
        (text(9, embed=np.ones(DIM, np.float32)), "5 float32 numbers, the first record has 5"),
        (text(10, embed=np.ones((2, DIM), np.float16)), "feature of shape"),
    ]
    write(tmp_path / "in" / "x.pkl", [text(0), text(1), *(record for record, _ in bad)])
    header = import_pickles(tmp_path / "in", tmp_path / "set")
    assert (header.num_records, header.num_rejected) == (2, len(bad))
    lines = (tmp_path / "set" / "quarantine.jsonl").read_text().splitlines()
    for i, (line, (_, reason)) in enumerate(zip(lines, bad, strict=True), start=2):
        assert reason in json.loads(line)["reason"]
        assert json.loads(line)["address"] == f"x.pkl:record {i}"


def test_an_import_resumes_at_the_first_missing_shard_with_the_same_bytes(tmp_path):
    write(tmp_path / "in" / "x.pkl", [text(i) for i in range(10)])
    for name in ("whole", "resumed"):
        import_pickles(tmp_path / "in", tmp_path / name, rows_per_shard=4)
    (tmp_path / "resumed" / "header.json").unlink()
    (tmp_path / "resumed" / "00001.tar").unlink()
    kept = (tmp_path / "resumed" / "00000.tar").stat().st_mtime_ns
    import_pickles(tmp_path / "in", tmp_path / "resumed", rows_per_shard=4)
    assert (tmp_path / "resumed" / "00000.tar").stat().st_mtime_ns == kept
    for name in ("00000.tar", "00001.tar", "00002.tar", "header.json"):
        assert (tmp_path / "whole" / name).read_bytes() == (
            tmp_path / "resumed" / name
        ).read_bytes()


def test_another_import_into_the_same_directory_is_refused(tmp_path):
    write(tmp_path / "in" / "x.pkl", [text(0)])
    import_pickles(tmp_path / "in", tmp_path / "set")
    write(tmp_path / "in" / "y.pkl", [text(1)])
    with pytest.raises(ValueError, match="begun with other files"):
        import_pickles(tmp_path / "in", tmp_path / "set")


def test_directories_that_are_not_record_pickles_are_refused(tmp_path):
    with pytest.raises(ValueError, match="not a directory"):
        import_pickles(tmp_path / "none", tmp_path / "set")
    (tmp_path / "in").mkdir()
    with pytest.raises(ValueError, match="no pickle of records"):
        import_pickles(tmp_path / "in", tmp_path / "set")
    write(tmp_path / "in" / "a.pkl", [text(0)])
    stray = write(tmp_path / "in" / "b_mean.pkl", np.zeros(DIM, np.float32))
    with pytest.raises(ValueError, match=r"b_mean\.pkl: holds a ndarray, not a list of records"):
        import_pickles(tmp_path / "in", tmp_path / "set")
    stray.write_bytes(pickle.dumps([image(1)]))
    with pytest.raises(ValueError, match="two feature sets"):
        import_pickles(tmp_path / "in", tmp_path / "other")
    stray.write_bytes(pickle.dumps([{"id": 0, "embed": print}]))
    with pytest.raises(ValueError, match=r"builtins\.print"):
        import_pickles(tmp_path / "in", tmp_path / "third")


def test_realigned_pickles_and_their_statistics_make_a_round_trip(tmp_path):
    mean = {"mu_txt": row(1, "float32"), "mu_img": row(2, "float32"), "mu_hat": row(3, "float32")}
    stats = mean | {"scale": 1.25, "trace_txt": 0.5, "trace_img": 0.78125, "strict_finite": True}
    write(tmp_path / "in" / "trace_stats.pkl", stats)
    records = [text(i, embed=row(i, "float32")) for i in range(3)]
    write(tmp_path / "in" / "trace" / "text_embeds_1_trace.pkl", records)

    header = import_pickles(tmp_path / "in", tmp_path / "set")
    assert header.alignment["name"] == "realign"
    alignment = load_alignment(tmp_path / "set" / "alignment")
    rows = np.stack([row(i, "float64") for i in range(20, 24)])
    anchored = 1.25 * (rows - mean["mu_txt"]) + mean["mu_img"].astype(np.float64)
    anchored /= np.linalg.norm(anchored, axis=1, keepdims=True)
    expected = anchored - mean["mu_hat"].astype(np.float64) + mean["mu_img"]
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(alignment(torch.tensor(rows)), expected, atol=1e-6)

    export_pickles(tmp_path / "set", tmp_path / "out")
    same(read_all(tmp_path / "out" / "trace"), records)
    same([pickle.loads((tmp_path / "out" / "trace_stats.pkl").read_bytes())], [stats])


def test_trace_pickles_alone_are_known_as_aligned(tmp_path):
    write(tmp_path / "in" / "text_embeds_1_trace.pkl", [text(0)])
    assert import_pickles(tmp_path / "in", tmp_path / "set").alignment["name"] == "realign"


def test_rows_that_are_said_to_be_aligned_are_not_aligned_again(tmp_path):
    write(tmp_path / "in" / "caption_embeddings_1.pkl", [text(0), text(1)])
    import_pickles(tmp_path / "in", tmp_path / "texts", aligned="unicorn")
    write(tmp_path / "img" / "image_embeds_1.pkl", [image(0), image(1)])
    import_pickles(tmp_path / "img", tmp_path / "images")
    with pytest.raises(ValueError, match=r"already aligned \(unicorn\)"):
        read_sets(tmp_path / "texts", tmp_path / "images")


def test_raw_rows_do_not_pass_for_aligned_ones(tmp_path):
    """The public script may write trace/ and its statistics into the directory of the raw rows."""
    raw = write(tmp_path / "in" / "text_embeds_1.pkl", [text(0)])
    write(tmp_path / "in" / "trace" / "text_embeds_1_trace.pkl", [text(1)])
    with pytest.raises(ValueError, match="1 of 2 pickles hold aligned rows"):
        import_pickles(tmp_path / "in", tmp_path / "set")
    stats = {"mu_txt": row(1), "mu_img": row(2), "mu_hat": row(3), "scale": 1.0}
    stats |= {"trace_txt": 0.5, "trace_img": 0.5}
    write(tmp_path / "other" / "trace_stats.pkl", stats)
    write(tmp_path / "other" / "text_embeds_1.pkl", pickle.loads(raw.read_bytes()))
    with pytest.raises(ValueError, match="0 of 1 pickles hold aligned rows"):
        import_pickles(tmp_path / "other", tmp_path / "set")
    assert not (tmp_path / "set").exists()


def test_a_refused_import_leaves_the_map_of_the_one_before(tmp_path):
    stats = {"mu_txt": row(1), "mu_img": row(2), "mu_hat": row(3), "scale": 1.0}
    stats |= {"trace_txt": 0.5, "trace_img": 0.5}
    for name, scale in (("in", 1.0), ("other", 2.0)):
        write(tmp_path / name / "trace_stats.pkl", stats | {"scale": scale})
        write(tmp_path / name / "trace" / f"{name}_trace.pkl", [text(0)])
    import_pickles(tmp_path / "in", tmp_path / "set")
    with pytest.raises(ValueError, match="begun with other files"):
        import_pickles(tmp_path / "other", tmp_path / "set")
    assert load_alignment(tmp_path / "set" / "alignment").gain == 1.0


def test_incomplete_statistics_are_refused(tmp_path):
    write(tmp_path / "in" / "x.pkl", [text(0)])
    write(tmp_path / "in" / "trace_stats.pkl", {"mu_txt": row(0)})
    with pytest.raises(ValueError, match=r"'mu_hat', 'mu_img'.* are missing"):
        import_pickles(tmp_path / "in", tmp_path / "set")


def test_a_record_with_several_rows_has_no_public_form(tmp_path):
    from revision.records import Record

    with ShardWriter(tmp_path / "set", 0, DIM, "float32") as writer:
        records = [Record("a", images=("x.jpg", "y.jpg"))]
        writer.add_block(np.stack([row(0), row(1)]), records, [2])
    write_header(tmp_path / "set", kind="image", encoder={}, source={}, num_shards=1)
    with pytest.raises(ValueError, match="'a' has 2 feature rows, the public format has one"):
        export_pickles(tmp_path / "set", tmp_path / "out")


def test_a_map_that_the_public_code_lacks_has_no_statistics_file(tmp_path):
    from revision.alignment.methods.none import NoAlignment

    write(tmp_path / "in" / "x.pkl", [text(i) for i in range(3)])
    import_pickles(tmp_path / "in", tmp_path / "set" / "shards")
    alignment = NoAlignment()
    for name in ReAlign.buffer_names[:-2]:
        setattr(alignment, name, torch.zeros(DIM, dtype=torch.float64))
    save_alignment_with_counts(alignment, tmp_path / "set" / "alignment")
    paths = export_pickles(tmp_path / "set", tmp_path / "out")
    assert [p.name for p in paths] == ["text_embeds_1.pkl"]


def save_alignment_with_counts(alignment, directory):
    for name in ("source_count", "target_count", "source_trace", "target_trace"):
        setattr(alignment, name, torch.tensor(3))
    save_alignment(alignment, directory)


@pytest.fixture
def convert(tmp_path, monkeypatch):
    """`python scripts/convert.py <arguments>` in `tmp_path`, inside this process."""
    path = REPOSITORY / "scripts" / "convert.py"
    spec = importlib.util.spec_from_file_location("convert_script", path)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> None:
        monkeypatch.setattr(sys, "argv", [str(path), *arguments])
        script.main()

    return run


def test_the_command_line_converts_there_and_back(tmp_path, convert, capsys):
    records = [text(i) for i in range(4)]
    write(tmp_path / "in" / "text_embeds_1.pkl", records)
    convert("format=revision_pkl", "input=in", "output_dir=set")
    assert "4 text rows of width 5, 0 rejected" in capsys.readouterr().out
    convert("format=revision_pkl", "direction=export", "input=set", "output_dir=out")
    same(read_all(tmp_path / "out"), records)


def test_the_command_line_converts_what_clip_retrieval_wrote(tmp_path, convert, capsys):
    for name in ("img_emb", "text_emb"):
        (tmp_path / "in" / name).mkdir(parents=True)
        np.save(tmp_path / "in" / name / f"{name}_0.npy", np.stack([row(0), row(1)]))
    (tmp_path / "in" / "metadata").mkdir()
    lines = pa.table({"image_path": ["a", "b"], "caption": ["c", "d"]})
    parquet.write_table(lines, tmp_path / "in" / "metadata" / "metadata_0.parquet")
    convert("format=clip_retrieval", "input=in", "output_dir=out")
    printed = capsys.readouterr().out
    assert "out: 2 image rows of width 5, 0 rejected" in printed
    assert "out: 2 text rows of width 5, 0 rejected" in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["format=clip_retrieval", "direction=export", "input=a", "output_dir=b"], "cannot export"),
        (["format=llm2clip_tar", "input=in", "output_dir=set"], "needs the encoder whose adapter"),
        (["format=parquet", "input=in", "output_dir=set"], "format 'parquet'"),
        (["format=revision_pkl", "kind=sound", "input=pkl", "output_dir=set"], "not 'sound'"),
        (["format=revision_pkl", "direction=up", "input=in", "output_dir=set"], "cannot up"),
        (["format=revision_pkl", "direction=export", "input=in", "output_dir=o"], "not a feature"),
    ],
)
def test_a_wrong_command_ends_with_one_line_and_status_1(
    tmp_path, convert, capsys, arguments, message
):
    write(tmp_path / "pkl" / "x.pkl", [text(0)])
    with pytest.raises(SystemExit) as exit:
        convert(*arguments)
    assert exit.value.code == 1
    error = capsys.readouterr().err
    assert message in error
    assert len(error.strip().splitlines()) == 1


def test_the_script_runs_from_anywhere(tmp_path):
    command = [sys.executable, str(REPOSITORY / "scripts" / "convert.py")]
    arguments = ["format=revision_pkl", "input=none", "output_dir=set"]
    done = subprocess.run(
        [*command, *arguments], check=False, capture_output=True, text=True, cwd=tmp_path
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "error: none: not a directory of public pickles\n"
