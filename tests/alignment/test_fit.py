import json
import warnings

import numpy as np
import pytest
import torch

from revision.alignment import Cloud, MeanShift, NoAlignment, ReAlign, load_alignment, moments_of
from revision.alignment import fit as fit_module
from revision.alignment.fit import (
    FitOptions,
    check_moments,
    fit_alignment,
    passing,
    read_sets,
    stored_moments,
)
from revision.alignment.methods.wct import WhiteningColouring
from revision.alignment.moments import moments_of_transformed
from revision.records import Record
from revision.shards import ShardReader, ShardWriter, write_header
from tests.feature_sets import ENCODER, cloud, damage, forget_moments, read_rows, write_set


@pytest.fixture
def small_cells(monkeypatch) -> None:
    """29 cells and 4 spans instead of one of each."""
    monkeypatch.setattr(fit_module, "GRID_ROWS", 8)


def fitted(sets, directory, make=ReAlign, **options):
    return fit_alignment(make(), read_sets(*sets), directory, FitOptions(**options))


def same(one: torch.nn.Module, two: torch.nn.Module) -> bool:
    pairs = zip(one.state_dict().values(), two.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("make", [ReAlign, WhiteningColouring])
@pytest.mark.parametrize("num_workers", [2, 3])
def test_threads_do_not_change_a_bit(tmp_path, sets, small_cells, make, num_workers):
    one = fitted(sets, tmp_path / "1", make)
    many = fitted(sets, tmp_path / "n", make, num_workers=num_workers)
    assert same(one, many)


def test_threads_keep_the_positions_of_bad_rows(sets, small_cells):
    for position in (3, 100, 229):
        damage(sets[0], position, np.nan)
    reader = ShardReader(sets[0])
    for workers in (1, 2, 3):
        moments = moments_of(passing(reader, "rows", workers), second="covariance")
        assert moments.rejected == (3, 100, 229)


def test_an_error_in_a_thread_is_raised(sets, small_cells):
    def fail(rows):
        raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"):
        moments_of_transformed(passing(ShardReader(sets[0]), "rows", 2), fail)


@pytest.mark.parametrize("make", [NoAlignment, ReAlign])
def test_stored_sums_give_the_bits_of_a_pass(tmp_path, sets, make):
    stored = fitted(sets, tmp_path / "stored", make)
    for directory in sets:
        forget_moments(directory)
    assert same(stored, fitted(sets, tmp_path / "streamed", make))


def test_stored_sums_cost_no_read(tmp_path, sets, monkeypatch):
    def unread(*_):
        raise AssertionError("rows were read")

    monkeypatch.setattr(ShardReader, "rows", unread)
    monkeypatch.setattr(ShardReader, "features", unread)
    assert fitted(sets, tmp_path / "map", MeanShift).source_count == 230


def test_moments_that_are_not_those_of_the_rows_are_refused(tmp_path, sets):
    headers = [(d / "header.json").read_text() for d in sets]
    damage(sets[0], 7, np.nan)
    for directory, header in zip(sets, headers, strict=True):
        (directory / "header.json").write_text(header)
    with pytest.raises(ValueError, match=r"1 shards whose moments are not those of their rows"):
        check_moments(read_sets(*sets))
    with pytest.raises(ValueError, match="1 source rows have no direction, but 0 had none when"):
        fitted(sets, tmp_path / "map")


def test_stored_moments_of_aligned_rows_are_the_in_sample_ones(sets, text):
    moments = stored_moments(ShardReader(sets[0]))
    assert np.array_equal(moments.mean, moments_of([text]).mean)
    forget_moments(sets[0])
    assert stored_moments(ShardReader(sets[0])) is None


# ---- samples, domains, other corpora


def test_a_sample_does_not_depend_on_order_or_shards(tmp_path, text, image, sets):
    order = np.random.default_rng(0).permutation(len(text))
    with ShardWriter(tmp_path / "t", 0, 24, "float32") as writer:
        writer.add_block(text[order], [Record(id=str(i), text="a") for i in order])
    write_header(tmp_path / "t", kind="text", encoder=ENCODER, source={}, num_shards=1)
    one = fitted(sets, tmp_path / "1", rows=60, seed=3)
    two = fitted((tmp_path / "t", sets[1]), tmp_path / "2", rows=60, seed=3)
    assert same(one, two)
    assert one.source_count == one.target_count == 60
    assert not same(one, fitted(sets, tmp_path / "3", rows=60, seed=4))


def test_a_sample_is_a_fit_on_its_rows(tmp_path, sets, small_cells):
    rows = fit_module.select(ShardReader(sets[0]), count=40, seed=0, where={})
    places = rows.positions()
    text = read_rows(sets[0])[places]
    assert len(places) == 40
    assert np.array_equal(rows.rows(0, 40), text)
    assert np.array_equal(rows.rows(17, 31), text[17:31])
    image = fit_module.select(ShardReader(sets[1]), count=40, seed=0, where={})
    expected = ReAlign()
    expected.fit(Cloud.of(text), Cloud.of(image.rows(0, 40)))
    assert same(expected, fitted(sets, tmp_path / "map", rows=40))


def test_a_sample_of_pairs_stays_pairs(sets):
    chosen = [fit_module.select(ShardReader(d), count=170, seed=0, where={}) for d in sets]
    ids = [set(rows.positions().tolist()) for rows in chosen]
    assert len(ids[1]) == 170  # all of them: a side that has fewer is taken whole
    some = [fit_module.select(ShardReader(sets[0]), count=n, seed=0, where={}) for n in (20, 60)]
    assert set(some[0].positions()) < set(some[1].positions())


def domains(directory, kind, rows):
    """Even rows are of domain a, odd ones of domain b."""
    with ShardWriter(directory, 0, 24, "float32") as writer:
        for start in range(0, len(rows), 30):
            block = rows[start : start + 30]
            records = [
                Record(id=str(start + i), text="a", metadata={"domain": "ab"[i % 2], "year": 7})
                for i in range(len(block))
            ]
            writer.add_block(block, records)
    write_header(directory, kind=kind, encoder=ENCODER, source={}, num_shards=1)
    return directory


def test_one_domain_is_a_fit_on_its_rows(tmp_path, text, image):
    sets = domains(tmp_path / "t", "text", text), domains(tmp_path / "i", "image", image)
    expected = ReAlign()
    expected.fit(Cloud.of(text[1::2]), Cloud.of(image[1::2]))
    assert same(expected, fitted(sets, tmp_path / "b", where={"domain": "b", "year": 7}))
    damage(sets[0], 5, np.nan)
    fitted(sets, tmp_path / "d", where={"domain": "b"})
    card = json.loads((tmp_path / "d" / "alignment.json").read_text())["provenance"]
    assert card["source"]["rejected_rows"] == [5]
    assert card["fit"] == {"where": {"domain": "b"}}


def test_a_domain_that_is_not_there_is_refused(tmp_path, text, image):
    sets = domains(tmp_path / "t", "text", text), domains(tmp_path / "i", "image", image)
    with pytest.raises(ValueError, match=r"metadata {'domain': 'c'}; .* domain in \['a', 'b'\]"):
        fitted(sets, tmp_path / "map", where={"domain": "c"})
    message = "none of the first 30 records has the key 'category', they have domain, year"
    with pytest.raises(ValueError, match=message):
        fitted(sets, tmp_path / "map", where={"category": "c"})


def test_a_covariance_may_come_from_a_sample(tmp_path, sets, text):
    some = fitted(sets, tmp_path / "some", WhiteningColouring, covariance_rows=100)
    assert some.source_count == 230
    assert np.array_equal(some.source_mean.numpy(), moments_of([text]).mean)
    assert not same(some, fitted(sets, tmp_path / "all", WhiteningColouring))
    with pytest.raises(ValueError, match="20 source rows span at most 19 directions"):
        fitted(sets, tmp_path / "few", WhiteningColouring, covariance_rows=20)


def test_another_sample_in_the_same_directory_is_refused(tmp_path, sets):
    fitted(sets, tmp_path / "map", rows=50)
    assert same(fitted(sets, tmp_path / "map", rows=50), load_alignment(tmp_path / "map"))
    with pytest.raises(ValueError, match=r"rows {'rows': 50, 'seed': 0}, not {}"):
        fitted(sets, tmp_path / "map")


def test_another_corpus_is_compared_with_the_mapped_one(tmp_path, sets, image):
    other = write_set(tmp_path / "other", cloud(9, 300), "text")
    with pytest.warns(UserWarning, match=r"300 text rows of the fit and the 230 text rows in use"):
        fit_alignment(
            ReAlign(), read_sets(other, sets[1]), tmp_path / "map", mapped=read_sets(*sets)
        )
    card = json.loads((tmp_path / "map" / "alignment.json").read_text())["provenance"]
    assert set(card["domain"]) == {"source"}
    assert card["domain"]["source"]["ratio"] > 5
    assert card["domain"]["source"]["mapped_rows"] == 230


def test_statistics_of_another_encoder_are_refused(tmp_path, sets, text, image):
    other = (
        write_set(tmp_path / "t", text, "text", encoder={"name": "other"}),
        write_set(tmp_path / "i", image, "image", encoder={"name": "other"}),
    )
    with pytest.raises(ValueError, match=r"different encoders .*'synthetic' and 'other'"):
        fit_alignment(ReAlign(), read_sets(*other), tmp_path / "map", mapped=read_sets(*sets))


def test_a_sample_of_the_mapped_rows_is_no_other_domain(tmp_path, sets):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fitted(sets, tmp_path / "map", rows=100)
    card = json.loads((tmp_path / "map" / "alignment.json").read_text())["provenance"]
    assert card["domain"]["source"]["ratio"] < 3
