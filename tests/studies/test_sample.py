"""Laws of drawing: pairs stay pairs, halves do not overlap, rows are the stored ones."""

from pathlib import Path

import numpy as np
import pytest

from revision.alignment.moments import unit_rows
from revision.studies.sample import Domain, good_rows, mean_words, pool_of
from tests.feature_sets import cloud, damage, write_set


@pytest.fixture
def rows() -> np.ndarray:
    return cloud(1, 130)


@pytest.fixture
def text_dir(tmp_path: Path, rows: np.ndarray) -> Path:
    return write_set(tmp_path / "text", rows, "text")


@pytest.fixture
def image_dir(tmp_path: Path) -> Path:
    return write_set(tmp_path / "image", cloud(2, 130), "image", block_rows=33)


def together(pool) -> np.ndarray:
    return np.concatenate(list(pool.batches()))


def test_a_pool_reads_its_rows_in_its_order(text_dir, rows):
    pool = pool_of(text_dir)
    np.testing.assert_array_equal(together(pool), rows)
    drawn = pool.draw(40, 7)
    np.testing.assert_array_equal(together(drawn), rows[drawn.positions])
    assert drawn.ids() == [str(i) for i in drawn.positions]
    assert len(set(drawn.ids())) == 40
    assert pool.draw(40, 7).ids() == drawn.ids() != pool.draw(40, 8).ids()
    repeated = pool.draw(400, 7, repeat=True)
    np.testing.assert_array_equal(together(repeated), rows[repeated.positions])
    assert len(repeated) == 400


def test_more_rows_than_there_are_are_refused(text_dir):
    with pytest.raises(ValueError, match=r"131 rows wanted of 130 .*resample=true"):
        pool_of(text_dir).draw(131, 0)


def test_pools_of_one_size_drawn_by_one_seed_stay_pairs(text_dir, image_dir):
    text, image = (pool_of(d, part="unseen").draw(20, 3) for d in (text_dir, image_dir))
    assert text.ids() == image.ids()


def test_the_halves_share_no_record_and_are_the_same_on_both_sides(text_dir, image_dir):
    domain = Domain(text_dir, image_dir)
    (text, image), (unseen, unseen_image) = domain.fitting(), domain.unseen()
    assert text.ids() == image.ids()
    assert unseen.ids() == unseen_image.ids()
    assert sorted(text.ids() + unseen.ids(), key=int) == [str(i) for i in range(130)]
    assert 40 < len(text) < 90


def test_a_domain_takes_the_records_that_its_pattern_names(text_dir, image_dir):
    text, image = Domain(text_dir, image_dir, text_dir, image_dir, ids="^1.$").fitting()
    assert text.ids() == image.ids() == [str(i) for i in range(10, 20)]
    with pytest.raises(ValueError, match="none of 130 rows has an id that matches 'x'"):
        Domain(text_dir, image_dir, ids="x").fitting()


def test_half_a_held_out_pair_and_swapped_sets_are_refused(text_dir, image_dir):
    with pytest.raises(ValueError, match="give both held-out sets, or neither"):
        Domain(text_dir, image_dir, holdout_source=text_dir)
    with pytest.raises(ValueError, match="holds image features, expected text"):
        Domain(image_dir, text_dir).fitting()


def test_bad_rows_are_left_out_and_take_their_partner_with_them(text_dir, image_dir, rows):
    damage(text_dir, 3, 0.0)
    damage(image_dir, 5, np.nan)
    pools = pool_of(text_dir), pool_of(image_dir)
    text, image = good_rows(*pools, paired=True)
    kept = [i for i in range(130) if i not in (3, 5)]
    np.testing.assert_array_equal(text, unit_rows(rows[kept]))
    assert len(image) == 128
    assert [len(side) for side in good_rows(*pools, paired=False)] == [129, 129]


def test_words_are_counted_over_the_rows(text_dir):
    assert mean_words(pool_of(text_dir)) == 2.0  # "text 17"
