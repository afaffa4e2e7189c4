"""scripts/measure_gap.py and the report of align.py on feature sets on disk."""

import json
from pathlib import Path

import numpy as np
import pytest

import align
from revision.alignment.fit import read_sets
from revision.alignment.parts import fitted_parts, halves, part_of
from revision.alignment.report import summary
from revision.alignment.samples import even_positions, ids_at, sample_batches, sample_of, texts_of
from revision.config import compose
from revision.shards import ShardReader
from scripts import measure_gap
from tests.feature_sets import cloud, damage, read_rows, write_set

SMALL = ("report.bootstrap=10", "report.neighbours=5", "report.rank=6")


@pytest.fixture
def pairs(tmp_path: Path) -> tuple[Path, Path]:
    text = write_set(tmp_path / "text", cloud(1, 130), "text")
    return text, write_set(tmp_path / "image", cloud(2, 130, mean=0.35), "image", shard_rows=90)


def measure(sets: tuple[Path, Path], out: Path, *overrides: str) -> dict:
    where = f"source={sets[0]}", f"target={sets[1]}", f"output_dir={out}"
    measure_gap.run(compose("measure_gap", [*where, *SMALL, *overrides]))
    return json.loads((out / "report.json").read_text())


def align_report(sets: tuple[Path, Path], out: Path, *overrides: str) -> dict:
    where = f"source={sets[0]}", f"target={sets[1]}", f"output_dir={out}"
    align.run(compose("align", [*where, *SMALL, *overrides]))
    return json.loads((out / "report.json").read_text())


def test_two_sets_alone_are_measured_on_halves(tmp_path, pairs):
    report = measure(pairs, tmp_path / "out")
    for split in ("in_sample", "held_out"):
        assert report[split]["rows"]["text"] == 65
        assert report[split]["rows"]["paired"] is True
        assert report[split]["after"] is None
    assert report["alignment"] is None
    assert report["summary"]["held_out"]["gap"] is None
    assert set(report["quality"]) == {"source", "target"}
    assert all((tmp_path / "out" / figure).is_file() for figure in report["figures"])
    assert "raw" in summary(report)


def test_copies_across_the_split_are_said(tmp_path, pairs):
    rows = cloud(1, 130)
    rows[1::2] = rows[::2]
    copies = write_set(tmp_path / "copies", rows, "text")
    report = measure((copies, pairs[1]), tmp_path / "out")
    assert report["seen_before"] == {"text": 1.0, "image": 0.0}
    assert any("copies of fitting rows" in f["sentence"] for f in report["verdict"])


def test_a_method_can_be_tried_on_the_other_half(tmp_path, pairs):
    report = measure(pairs, tmp_path / "out", "alignment=realign")
    unseen = report["summary"]["held_out"]
    assert unseen["gap"] < 0.5 * unseen["raw_gap"]
    assert report["summary"]["in_sample_gap"] < 0.1 * unseen["gap"]
    assert report["alignment"]["num_source"] == 65


def test_a_map_of_another_place_makes_the_rows_unseen_and_its_own_rows_in_sample(tmp_path, pairs):
    align_report(pairs, tmp_path / "fit")
    fitted = f"map={tmp_path / 'fit' / 'alignment'}"
    own = measure(pairs, tmp_path / "own", fitted)
    assert own["held_out"] is None and own["in_sample"]["rows"]["text"] == 130
    other = (
        write_set(tmp_path / "t", cloud(3, 60), "text"),
        write_set(tmp_path / "i", cloud(4, 60, mean=0.35), "image"),
    )
    report = measure(other, tmp_path / "out", fitted)
    assert report["in_sample"] is None
    assert report["held_out"]["rows"]["text"] == 60
    means = [read_rows(sets).astype(float) for sets in (pairs[0], other[0])]
    means = [(r / np.linalg.norm(r, axis=1, keepdims=True)).mean(0) for r in means]
    test = report["domain"]["held-out text"]
    assert test["distance"] == pytest.approx(np.linalg.norm(means[0] - means[1]), abs=1e-6)
    with pytest.raises(ValueError, match="not both"):
        measure(other, tmp_path / "x", fitted, "alignment=realign")


def test_rows_that_a_map_left_out_of_its_fit_are_not_in_sample(tmp_path, pairs):
    aligned = align_report(pairs, tmp_path / "fit", "fit_rows=70")
    report = measure(pairs, tmp_path / "own", f"map={tmp_path / 'fit' / 'alignment'}")
    assert report["in_sample"]["rows"]["text"] == 70
    assert report["held_out"]["rows"]["text"] == 60
    for key in ("in_sample_gap", "held_out"):
        assert report["summary"][key] == aligned["summary"][key]


def test_pairs_can_be_denied_and_cannot_be_claimed(tmp_path, pairs):
    assert measure(pairs, tmp_path / "a", "paired=false")["held_out"]["before"]["paired"] is None
    fewer = write_set(tmp_path / "few", cloud(2, 50), "image")
    with pytest.raises(ValueError, match=r"paired=true, but .* has 130 rows and .* 50"):
        measure((pairs[0], fewer), tmp_path / "b", "paired=true")


def test_a_finished_report_is_kept_and_other_options_make_another(tmp_path, pairs):
    out = tmp_path / "out"
    measure(pairs, out)
    before = {p: p.stat().st_mtime_ns for p in out.rglob("*")}
    measure(pairs, out)
    assert {p: p.stat().st_mtime_ns for p in out.rglob("*")} == before
    measure(pairs, out, "report.seed=1")
    assert (out / "report.json").stat().st_mtime_ns != before[out / "report.json"]


def test_rows_that_a_sampled_fit_left_out_are_its_held_out_rows(tmp_path, pairs):
    report = align_report(pairs, tmp_path / "out", "fit_rows=70", "alignment=mean_shift")
    assert report["in_sample"]["rows"]["text"] == 70
    assert report["held_out"]["rows"]["text"] == 60
    card = json.loads((tmp_path / "out" / "alignment" / "alignment.json").read_text())
    sets = read_sets(*pairs)
    seen, rest = fitted_parts(sets, card["provenance"]["fit"], 1000)
    assert rest is not None
    both = np.sort(np.concatenate([seen.text.positions, rest.text.positions]))
    assert np.array_equal(both, np.arange(130))
    assert np.array_equal(seen.text.positions, seen.image.positions)
    used = seen.text.rows.mean(0)
    mean = np.array(report["in_sample"]["clouds"]["text"]["mean_norm"]["value"])
    assert np.linalg.norm(used) == pytest.approx(mean)


def test_the_in_sample_gap_of_a_sample_is_taken_over_all_rows(tmp_path, pairs):
    whole = align_report(pairs, tmp_path / "a")
    few = align_report(pairs, tmp_path / "b", "report.num_rows=60")
    for key in ("raw_gap", "in_sample_gap"):
        assert few["summary"][key] == pytest.approx(whole["summary"][key], abs=1e-6)
    assert few["in_sample"]["rows"]["text"] == 60
    assert few["in_sample"]["after"]["gap"]["value"] > 5 * few["summary"]["in_sample_gap"]


def test_random_maps_and_maps_that_move_images_are_measured_too(tmp_path, pairs):
    report = align_report(pairs, tmp_path / "c3", "alignment=c3", "report.num_rows=60")
    assert report["summary"]["in_sample_gap"] > 0
    moved = align_report(pairs, tmp_path / "collapse", "alignment=collapse")
    assert "moved" in moved["in_sample"]["clouds"]
    assert (tmp_path / "collapse" / "report.html").is_file()


def test_bad_rows_are_left_out_on_both_sides_of_a_pair_and_listed_once(tmp_path, pairs):
    damage(pairs[0], 47, np.nan)
    damage(pairs[1], 100, 0.0)
    report = measure(pairs, tmp_path / "out")
    assert report["in_sample"]["rows"]["text"] + report["held_out"]["rows"]["text"] == 128
    lines = (tmp_path / "out" / "quarantine.jsonl").read_text().splitlines()
    assert [json.loads(line)["id"] for line in lines] == ["47", "100"]
    assert report["num_quarantined"] == 2


def test_halves_are_disjoint_and_keep_pairs_together(pairs):
    first, second = halves(part_of(read_sets(*pairs), 1000))
    assert not set(first.text.positions) & set(second.text.positions)
    assert np.array_equal(first.text.positions, first.image.positions)
    assert len(first.text.rows) + len(second.image.rows) == 130


def test_samples_are_even_and_say_where_their_rows_stand(pairs):
    reader = ShardReader(pairs[0])
    assert np.array_equal(even_positions(10, 4), [0, 2, 5, 7])
    assert len(even_positions(3, 100)) == 3
    sample = sample_of(reader, 40)
    stored = read_rows(pairs[0])[sample.positions].astype(np.float64)
    stored /= np.linalg.norm(stored, axis=1, keepdims=True)
    assert np.abs(sample.rows - stored).max() < 1e-12
    assert ids_at(reader, sample.positions) == [str(p) for p in sample.positions]
    among = np.array([3, 60, 129])
    assert np.array_equal(sample_of(reader, 40, among).positions, among)
    found = np.concatenate([s.positions for s in sample_batches(reader, among)])
    assert np.array_equal(found, among)


def test_texts_come_from_blocks_all_over_the_set(pairs):
    found = texts_of(ShardReader(pairs[0]), 40)
    assert len(found) == 40
    assert max(int(text.split()[1]) for text in found) > 60
