"""The whole of align.py on small feature sets."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import align
from revision.alignment import Cloud, ReAlign, load_alignment, moments_of
from revision.config import compose
from revision.records import Record
from revision.shards import ShardReader, ShardWriter, write_header
from tests.feature_sets import ENCODER, cloud, damage, read_rows, write_set

ROOT = Path(__file__).parents[1]


@pytest.fixture
def sets(tmp_path) -> tuple[Path, Path]:
    text = write_set(tmp_path / "text", cloud(1, 230), "text")
    image = write_set(tmp_path / "image", cloud(2, 170, mean=0.35), "image", shard_rows=90)
    return text, image


def run(sets, output_dir, *overrides: str, alignment: str = "realign", report=False) -> Path:
    arguments = [f"source={sets[0]}", f"target={sets[1]}", f"output_dir={output_dir}"]
    small = ["report.bootstrap=10"] if report else ["report=null"]
    return align.run(compose("align", [f"alignment={alignment}", *arguments, *small, *overrides]))


def report(directory: Path) -> dict:
    return json.loads((directory / "report.json").read_text())


def contents(directory: Path) -> dict[str, bytes]:
    files = (p for p in directory.rglob("*") if p.is_file())
    return {str(p.relative_to(directory)): p.read_bytes() for p in files}


@pytest.mark.parametrize("alignment", ["none", "mean_shift", "realign"])
def test_every_alignment_runs_from_shards_to_report(tmp_path, sets, alignment):
    out = run(sets, tmp_path / "out", alignment=alignment, report=True)
    assert {p.name for p in out.iterdir()} == {
        *("alignment", "shards", "figures", "report.html", "report.json", "quarantine.jsonl")
    }
    assert report(out)["alignment"]["name"] == alignment
    rows = torch.tensor(read_rows(sets[0]))
    assert np.array_equal(read_rows(out / "shards"), load_alignment(out / "alignment")(rows))
    assert ShardReader(out / "shards").header.alignment["name"] == alignment


def test_the_fit_from_shards_is_the_fit_from_memory(tmp_path, sets):
    out = run(sets, tmp_path / "out")
    text, image = read_rows(sets[0]), read_rows(sets[1])
    expected = ReAlign()
    expected.fit(Cloud.of(text), Cloud.of(image))
    for name, buffer in load_alignment(out / "alignment").state_dict().items():
        assert torch.equal(buffer, expected.state_dict()[name]), name


def test_the_map_alone_is_fitted_and_measured_without_shards(tmp_path, sets):
    out = run(sets, tmp_path / "out", "apply=false", report=True)
    assert not (out / "shards").exists()
    assert (out / "report.html").exists()
    run(sets, tmp_path / "out", report=True)
    assert ShardReader(out / "shards").num_rows == 230


def test_a_sample_larger_than_the_set_warns_and_takes_all(tmp_path, sets):
    with pytest.warns(UserWarning, match="200 rows of .*image were asked for, it has 170"):
        run(sets, tmp_path / "out", "fit_rows=200", "report=null")


def test_refusals_name_the_key_that_was_given(tmp_path, sets):
    swapped = f"holdout_source={sets[1]}", f"holdout_target={sets[0]}"
    with pytest.raises(ValueError, match=r"holdout_source=.* holds image features"):
        run(sets, tmp_path / "out", *swapped)


def test_splitting_the_same_rows_into_other_shards_does_not_change_a_bit(tmp_path, sets):
    text, image = read_rows(sets[0]), read_rows(sets[1])
    other = (
        write_set(tmp_path / "t", text, "text", shard_rows=230, block_rows=100),
        write_set(tmp_path / "i", image, "image", shard_rows=7, block_rows=3),
    )
    first, second = run(sets, tmp_path / "a"), run(other, tmp_path / "b")
    tensors = "alignment/alignment.safetensors"
    assert (first / tensors).read_bytes() == (second / tensors).read_bytes()
    assert np.array_equal(read_rows(first / "shards"), read_rows(second / "shards"))


def test_provenance_has_counts_and_digests_of_the_shards(tmp_path, sets):
    out = run(sets, tmp_path / "out")
    card = json.loads((out / "alignment" / "alignment.json").read_text())
    assert card["statistics"]["source_count"] == 230
    for side, directory in zip(("source", "target"), sets, strict=True):
        header = ShardReader(directory).header
        recorded = card["provenance"][side]
        assert recorded["shards"] == {s.name: s.sha256 for s in header.shards}
        assert recorded["encoder"] == header.encoder
        assert recorded["num_rows"] == header.num_rows


def test_held_out_pairs_are_found_by_their_ids(tmp_path, sets):
    text = write_set(tmp_path / "ht", cloud(3, 60), "text")
    image = write_set(tmp_path / "hi", cloud(4, 60, mean=0.35), "image", shard_rows=13)
    holdout = f"holdout_source={text}", f"holdout_target={image}"
    out = run(sets, tmp_path / "out", *holdout, report=True)
    unseen = report(out)["summary"]["held_out"]
    assert unseen["num_source"] == unseen["num_target"] == 60
    assert unseen["paired_cosine"] is not None
    fewer = write_set(tmp_path / "hf", cloud(4, 50, mean=0.35), "image")
    run(sets, out, f"holdout_source={text}", f"holdout_target={fewer}", report=True)
    unseen = report(out)["summary"]["held_out"]
    assert (unseen["num_target"], unseen["paired_cosine"]) == (50, None)


def test_no_report_is_written_where_none_is_wanted(tmp_path, sets):
    out = run(sets, tmp_path / "out", "report=null")
    assert {p.name for p in out.iterdir()} == {"alignment", "shards"}


def test_one_held_out_side_alone_is_refused(tmp_path, sets):
    with pytest.raises(ValueError, match="give both or neither"):
        run(sets, tmp_path / "out", f"holdout_source={sets[0]}")


def test_a_finished_directory_is_only_checked(tmp_path, sets):
    out = run(sets, tmp_path / "out", report=True)
    before = {p: p.stat().st_mtime_ns for p in out.rglob("*") if p.is_file()}
    run(sets, out, report=True)
    after = {p: p.stat().st_mtime_ns for p in out.rglob("*") if p.is_file()}
    assert after == before


@pytest.mark.parametrize(
    "lost",
    [
        "report.json",
        "report.html",
        "figures",
        "shards/header.json",
        "shards/00002.tar",
        "alignment",
    ],
)
def test_any_missing_piece_is_made_again_with_the_same_bytes(tmp_path, sets, lost):
    out = run(sets, tmp_path / "out", report=True)
    before = contents(out)
    for path in sorted((out / lost).rglob("*"), reverse=True):
        path.unlink()
    (out / lost).rmdir() if (out / lost).is_dir() else (out / lost).unlink()
    if lost.endswith(".tar"):  # a set without its header is an unfinished one
        (out / "shards" / "header.json").unlink()
    run(sets, out, report=True)
    assert contents(out) == before


def test_bad_rows_reach_no_mean_and_are_listed_with_their_address(tmp_path, sets, capsys):
    damage(sets[0], 47, np.nan)
    damage(sets[1], 100, 0.0)
    held = write_set(tmp_path / "ht", cloud(3, 60), "text"), sets[1]
    holdout = f"holdout_source={held[0]}", f"holdout_target={held[1]}"
    out = run(sets, tmp_path / "out", *holdout, report=True)
    good = np.delete(read_rows(sets[0]), 47, axis=0), np.delete(read_rows(sets[1]), 100, axis=0)
    means = moments_of([good[0]]).mean, moments_of([good[1]]).mean
    alignment = load_alignment(out / "alignment")
    assert np.abs(alignment.source_mean.numpy() - means[0]).max() < 1e-12
    assert np.abs(alignment.target_mean.numpy() - means[1]).max() < 1e-12
    lines = (out / "quarantine.jsonl").read_text().splitlines()
    assert [(r["id"], r["address"]) for r in map(json.loads, lines)] == [
        ("47", "00000.tar/000002.features.npy row 7"),
        ("100", "00001.tar/000000.features.npy row 10"),
        ("100", "00001.tar/000000.features.npy row 10"),
    ]
    assert len(ShardReader(out / "shards").records(2)) == 9
    assert "3 rows rejected, listed in quarantine.jsonl" in capsys.readouterr().out


def test_another_fit_in_the_same_directory_is_refused_by_name(tmp_path, sets):
    out = run(sets, tmp_path / "out")
    with pytest.raises(ValueError, match="fitted with name 'realign', not 'mean_shift'"):
        run(sets, out, alignment="mean_shift")
    with pytest.raises(ValueError, match="'mean_precision': 'float64'"):
        run(sets, out, "alignment.mean_precision=float32")
    other = write_set(tmp_path / "other", cloud(8, 50), "text")
    with pytest.raises(ValueError, match="other source shards"):
        run((other, sets[1]), out)


def test_swapped_sides_are_refused(tmp_path, sets):
    with pytest.raises(ValueError, match="holds image features, expected text"):
        run(sets[::-1], tmp_path / "out")


def test_aligned_shards_are_refused_as_source(tmp_path, sets):
    out = run(sets, tmp_path / "out")
    with pytest.raises(ValueError, match="already aligned"):
        run((out / "shards", sets[1]), tmp_path / "again")


def test_features_of_another_encoder_are_refused(tmp_path, sets):
    other = write_set(tmp_path / "o", cloud(2, 50), "image", encoder={"name": "other"})
    with pytest.raises(ValueError, match=r"different encoders .*name 'synthetic' and 'other'"):
        run((sets[0], other), tmp_path / "out")
    narrow = write_set(tmp_path / "n", cloud(2, 50, dim=9), "image")
    with pytest.raises(ValueError, match="width 24 and 9"):
        run((sets[0], narrow), tmp_path / "out")


def domains(directory, kind, rows):
    """Even rows are of domain a, odd ones of domain b."""
    with ShardWriter(directory, 0, rows.shape[1], "float32") as writer:
        names = ["ab"[i % 2] for i in range(len(rows))]
        records = [Record(id=str(i), metadata={"domain": n}) for i, n in enumerate(names)]
        writer.add_block(rows, records)
    write_header(directory, kind=kind, encoder=ENCODER, source={}, num_shards=1)
    return directory


def test_a_map_of_one_domain_is_applied_to_all_and_says_so(tmp_path):
    text, image = cloud(1, 230), cloud(2, 170, mean=0.35)
    text[1::2] = cloud(8, 115)
    sets = domains(tmp_path / "t", "text", text), domains(tmp_path / "i", "image", image)
    with pytest.warns(UserWarning, match="115 text rows of the fit and the 230 text rows in use"):
        out = run(sets, tmp_path / "out", "fit_where={domain: b}", "report=null")
    expected = ReAlign()
    expected.fit(Cloud.of(text[1::2]), Cloud.of(image[1::2]))
    assert torch.equal(load_alignment(out / "alignment").centroid, expected.centroid)
    assert len(read_rows(out / "shards")) == 230


def test_statistics_may_come_from_other_sets(tmp_path, sets):
    others = write_set(tmp_path / "o", cloud(1, 400)[230:], "text")
    options = f"fit_source={others}", "fit_rows=100", "fit_seed=3", "report=null"
    out = run(sets, tmp_path / "out", *options, alignment="mean_shift")
    card = json.loads((out / "alignment" / "alignment.json").read_text())
    assert card["statistics"]["source_count"] == card["statistics"]["target_count"] == 100
    assert card["provenance"]["fit"] == {"rows": 100, "seed": 3}
    assert set(card["provenance"]["domain"]) == {"source", "target"}
    rows = torch.tensor(read_rows(sets[0]))
    assert np.array_equal(read_rows(out / "shards"), load_alignment(out / "alignment")(rows))


def test_threads_do_not_change_a_byte(tmp_path, sets):
    outs = [run(sets, tmp_path / n, f"num_workers={n}", "report=null") for n in "123"]
    assert contents(outs[0]) == contents(outs[1]) == contents(outs[2])


def test_stored_moments_are_verified_when_asked_to(tmp_path, sets):
    run(sets, tmp_path / "out", "verify_moments=true", "report=null")
    header = (sets[1] / "header.json").read_text()
    damage(sets[1], 100, 1.0)
    (sets[1] / "header.json").write_text(header)
    with pytest.raises(ValueError, match=r"1 shards whose moments are not those .*00001.tar"):
        run(sets, tmp_path / "other", "verify_moments=true", "report=null")


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")
def test_a_gpu_that_is_not_there_is_refused(tmp_path, sets):
    with pytest.raises(ValueError, match="torch sees no GPU; use device=cpu or auto"):
        run(sets, tmp_path / "out", "device=cuda", "report=null")
    with pytest.raises(ValueError, match="device is auto, cpu or cuda, not 'tpu'"):
        run(sets, tmp_path / "out", "device=tpu", "report=null")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("alignment", ["realign", "wct"])
def test_a_gpu_gives_the_same_rows(tmp_path, sets, alignment):
    cpu, gpu = (
        run(sets, tmp_path / device, f"device={device}", "report=null", alignment=alignment)
        for device in ("cpu", "cuda")
    )
    difference = read_rows(cpu / "shards") - read_rows(gpu / "shards")
    assert np.abs(difference).max() <= 1e-7


@pytest.mark.slow
def test_the_command_line_ends_with_one_clear_line(tmp_path, sets):
    command = [sys.executable, str(ROOT / "align.py"), f"source={sets[0]}", f"target={sets[1]}"]
    done = subprocess.run(
        [*command, f"output_dir={tmp_path / 'out'}"], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert "in-sample" in done.stdout
    assert {p.name for p in tmp_path.iterdir()} == {"text", "image", "out"}
    failed = subprocess.run(
        [*command, "source=nowhere", "output_dir=x"], capture_output=True, text=True, cwd=tmp_path
    )
    assert failed.returncode == 1
    assert failed.stderr.strip().splitlines()[-1].startswith("error: nowhere: not a feature set")
