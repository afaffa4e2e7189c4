import json

import numpy as np
import pytest
import torch

from revision.alignment import Cloud, MeanShift, ReAlign, apply_alignment
from revision.alignment.apply import rejections_at
from revision.alignment.moments import moments_of
from revision.alignment.noise import GaussianNoise, row_keys
from revision.records import Record
from revision.shards import ShardReader, ShardWriter, read_header, verify, write_header
from tests.feature_sets import ENCODER, damage, read_rows, write_set


@pytest.fixture
def alignment(text, image) -> ReAlign:
    realign = ReAlign()
    realign.fit(Cloud.of(text), Cloud.of(image))
    return realign


def contents(directory) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in directory.iterdir()}


def test_offline_and_on_the_fly_give_the_same_bits(tmp_path, sets, text, alignment):
    apply_alignment(alignment, sets[0], tmp_path / "out")
    on_the_fly = torch.cat([alignment(rows) for rows in torch.tensor(text).split(11)])
    offline = read_rows(tmp_path / "out")
    assert offline.dtype == np.float32
    assert np.array_equal(offline, on_the_fly.numpy())


def test_the_result_is_a_feature_set_like_its_input(tmp_path, sets, alignment):
    header = apply_alignment(alignment, sets[0], tmp_path / "out")
    before, after = ShardReader(sets[0]), ShardReader(tmp_path / "out")
    assert header == read_header(tmp_path / "out")
    assert verify(tmp_path / "out") == []
    assert after.blocks == before.blocks
    assert after.records(3) == before.records(3)
    assert header.encoder == before.header.encoder
    assert header.unit_norm
    assert header.alignment is not None
    assert header.alignment["name"] == "realign"


def test_killed_between_shards_it_resumes_to_the_same_bytes(tmp_path, sets, alignment, monkeypatch):
    apply_alignment(alignment, sets[0], tmp_path / "whole")
    calls = iter(range(100))

    def dies_in_third_shard(rows, keys):
        if next(calls) == 6:
            raise KeyboardInterrupt
        return ReAlign.map_good(alignment, rows, keys)

    monkeypatch.setattr(alignment, "map_good", dies_in_third_shard)
    with pytest.raises(KeyboardInterrupt):
        apply_alignment(alignment, sets[0], tmp_path / "out")
    names = {p.name for p in (tmp_path / "out").iterdir()}
    assert names == {"plan.json", "00000.tar", "00001.tar"}
    kept = (tmp_path / "out" / "00001.tar").stat().st_mtime_ns
    monkeypatch.undo()
    apply_alignment(alignment, sets[0], tmp_path / "out")
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    assert (tmp_path / "out" / "00001.tar").stat().st_mtime_ns == kept


@pytest.mark.parametrize("num_workers", [2, 3])
def test_threads_do_not_change_a_byte(tmp_path, sets, alignment, num_workers):
    apply_alignment(alignment, sets[0], tmp_path / "one")
    apply_alignment(alignment, sets[0], tmp_path / "many", num_workers=num_workers)
    assert contents(tmp_path / "many") == contents(tmp_path / "one")


def test_aligned_shards_carry_the_moments_of_the_aligned_rows(tmp_path, sets, alignment):
    apply_alignment(alignment, sets[0], tmp_path / "out")
    sums = ShardReader(tmp_path / "out").sums()
    moments = moments_of([read_rows(tmp_path / "out")])
    assert np.array_equal(sums.mean, moments.mean)
    assert np.abs(sums.mean - alignment.target_mean.numpy()).max() < 1e-2


def test_noise_is_that_of_the_records_in_epoch_0(tmp_path, sets, text, alignment):
    alignment.add_noise(GaussianNoise(std=0.02))
    apply_alignment(alignment, sets[0], tmp_path / "out")
    keys = row_keys([str(number) for number in range(len(text))], epoch=0)
    assert np.array_equal(read_rows(tmp_path / "out"), alignment(torch.tensor(text), keys).numpy())


def test_another_map_or_source_is_refused(tmp_path, sets, text, image, alignment):
    apply_alignment(alignment, sets[0], tmp_path / "out")
    shift = MeanShift()
    shift.fit(Cloud.of(text), Cloud.of(image))
    with pytest.raises(ValueError, match="begun with other alignment"):
        apply_alignment(shift, sets[0], tmp_path / "out")
    other = write_set(tmp_path / "other", text[:100], "text")
    with pytest.raises(ValueError, match="begun with other source"):
        apply_alignment(alignment, other, tmp_path / "out")


def test_aligning_twice_is_refused(tmp_path, sets, alignment):
    apply_alignment(alignment, sets[0], tmp_path / "out")
    with pytest.raises(ValueError, match=r"already aligned \(realign\)"):
        apply_alignment(alignment, tmp_path / "out", tmp_path / "again")


def test_bad_rows_go_to_quarantine_with_their_address(tmp_path, sets, text, alignment):
    damage(sets[0], 47, np.nan)
    damage(sets[0], 150, 0.0)
    header = apply_alignment(alignment, sets[0], tmp_path / "out")
    lines = (tmp_path / "out" / "quarantine.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [
        {
            "id": "47",
            "reason": "feature row is zero or not finite",
            "address": "00000.tar/000002.features.npy row 7",
        },
        {
            "id": "150",
            "reason": "feature row is zero or not finite",
            "address": "00003.tar/000000.features.npy row 0",
        },
    ]
    assert (header.num_rows, header.num_rejected) == (228, 2)
    good = np.delete(text, [47, 150], axis=0)
    assert np.array_equal(read_rows(tmp_path / "out"), alignment(torch.tensor(good)).numpy())
    assert verify(tmp_path / "out") == []


def test_rows_that_were_damaged_since_are_refused_with_their_address(tmp_path, sets, alignment):
    header = (sets[0] / "header.json").read_text()
    damage(sets[0], 47, np.nan)
    (sets[0] / "header.json").write_text(header)
    with pytest.raises(
        ValueError, match=r"00000.tar block 2: row 7 is zero .*verify_shards.py input="
    ):
        apply_alignment(alignment, sets[0], tmp_path / "out")


def test_rejections_name_record_and_row(sets):
    (found,) = rejections_at(ShardReader(sets[1]), [130])
    assert (found.id, found.address) == ("130", "00001.tar/000001.features.npy row 7")


def test_records_with_no_row_or_many_rows_stay_whole(tmp_path, text, alignment):
    records = [Record(id=str(i), text="a") for i in range(4)]
    with ShardWriter(tmp_path / "in", 0, 24, "float32") as writer:
        writer.add_block(text[:6], records, [2, 0, 3, 1])
    write_header(tmp_path / "in", kind="text", encoder=ENCODER, source={}, num_shards=1)
    damage(tmp_path / "in", 4, np.nan)
    apply_alignment(alignment, tmp_path / "in", tmp_path / "out")
    reader = ShardReader(tmp_path / "out")
    assert [record.id for record in reader.records(0)] == ["0", "1", "3"]
    assert reader.row_counts(0).tolist() == [2, 0, 1]
    expected = alignment(torch.tensor(text[[0, 1, 5]]))
    assert np.array_equal(reader.features(0), expected.numpy())
    (rejection,) = (tmp_path / "out" / "quarantine.jsonl").read_text().splitlines()
    assert json.loads(rejection)["id"] == "2"


def test_a_shard_without_a_good_row_is_an_empty_shard(tmp_path, text, alignment):
    source = write_set(tmp_path / "in", text[:60], "text", shard_rows=20, block_rows=20)
    for position in range(20, 40):
        damage(source, position, np.inf)
    header = apply_alignment(alignment, source, tmp_path / "out")
    assert [shard.num_rows for shard in header.shards] == [20, 0, 20]
    again = apply_alignment(alignment, source, tmp_path / "out")
    assert again == header


def test_a_full_disk_leaves_no_shard(tmp_path, sets, alignment, monkeypatch):
    def full(self, pieces, num_rows, lines, num_records):
        raise ValueError("00000.tar: cannot be written (No space left on device)")

    monkeypatch.setattr(ShardWriter, "copy_block", full)
    with pytest.raises(ValueError, match="No space left"):
        apply_alignment(alignment, sets[0], tmp_path / "out")
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["plan.json"]
