import numpy as np
import pytest

from revision.geometry.clusters import cluster_gaps, cluster_text, cluster_transfer
from tests.geometry.clouds import pairs, unit


def split(seed: int, gaps: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Two far clusters of text, each with a gap of its own."""
    rng = np.random.default_rng(seed)
    noise = rng.standard_normal((2, 120, 10)) * 0.1
    text = np.repeat(np.eye(10)[:2], 60, axis=0) + noise[0]
    image = text + np.repeat(gaps, 60, axis=0) + noise[1]
    return unit(text), unit(image)


COMMON = (np.eye(10)[2], np.eye(10)[2])
OPPOSITE = (np.eye(10)[2] + 0.1 * np.eye(10)[3], -np.eye(10)[2] + 0.1 * np.eye(10)[3])


def test_text_clusters_are_found_and_depend_on_the_seed_only():
    text, _ = split(0, COMMON)
    labels = cluster_text(text, 2, seed=3)
    assert len(set(labels[:60])) == len(set(labels[60:])) == 1 and labels[0] != labels[-1]
    assert (labels == cluster_text(text, 2, seed=3)).all()
    with pytest.raises(ValueError, match="120 text rows do not form 121 clusters"):
        cluster_text(text, 121)


def test_cosines_equal_their_definition():
    text, image = pairs(0, 90)
    labels = np.random.default_rng(0).integers(0, 5, 90) * 2  # labels need not be dense
    found = cluster_gaps(text, image, labels)
    mean = (image - text).mean(0)
    for label, size, cosine in zip(range(0, 10, 2), found.sizes, found.cosines, strict=True):
        gap = (image - text)[labels == label].mean(0)
        expected = gap @ mean / np.linalg.norm(gap) / np.linalg.norm(mean)
        assert cosine == pytest.approx(expected)
        assert size == (labels == label).sum()


def test_one_cluster_is_all_of_them():
    text, image = pairs(0, 90)
    found = cluster_gaps(text, image, np.zeros(90, np.int64))
    assert found.cosines == pytest.approx([1]) and found.null == pytest.approx([1])


def test_a_common_gap_looks_like_random_subsets_and_two_gaps_do_not():
    labels = np.repeat([0, 1], 60)
    common = cluster_gaps(*split(1, COMMON), labels)
    other = cluster_gaps(*split(1, OPPOSITE), labels)
    assert common.cosines.min() > 0.9 and common.null.min() > 0.95
    assert other.cosines.min() < 0.5 < other.null.mean()


def test_random_subsets_have_the_expected_cosine():
    """0.40 of a gap under a residual 8 times its energy; subsets of 10 of 2000 pairs."""
    rng = np.random.default_rng(0)
    gaps = 0.4 * np.eye(24)[0] + rng.standard_normal((2000, 24)) * np.sqrt(1.264 / 24)
    text = rng.standard_normal((2000, 24))
    labels = np.repeat(np.arange(200), 10)
    found = cluster_gaps(text, text + gaps, labels)
    mean = gaps.mean(0)
    expected = 1 / np.sqrt(1 + gaps.var(0).sum() / (10 * mean @ mean))
    for cosines in (found.null, found.cosines):  # these clusters are random subsets, too
        assert cosines.mean() == pytest.approx(expected, abs=0.02)


def test_a_common_gap_transfers_and_another_does_not():
    labels = np.repeat([0, 1], 60)
    common = cluster_transfer(*split(2, COMMON), labels)
    other = cluster_transfer(*split(2, OPPOSITE), labels)
    assert common.gain > 0.2 and other.gain < -0.2
    assert (common.num_source, common.num_target) == (60, 60)


def test_transfer_is_tried_on_other_clusters_only():
    text, image = pairs(2, 90)
    labels = np.repeat(np.arange(10), 9)
    found = cluster_transfer(text, image, labels, source_share=0.8, seed=1)
    source = np.random.default_rng(1).permutation(10)[:8]
    held_out = ~np.isin(labels, source)
    shift = (image - text)[~held_out].mean(0)
    moved = unit(text[held_out] + shift)
    assert (found.num_source, found.num_target) == (72, 18)
    assert found.raw == pytest.approx((text * image)[held_out].sum(1).mean())
    assert found.shifted == pytest.approx((moved * image[held_out]).sum(1).mean())


def test_a_share_without_clusters_is_refused():
    text, image = pairs(0, 20)
    with pytest.raises(ValueError, match=r"0\.1 makes 0 of 2 clusters the source"):
        cluster_transfer(text, image, np.repeat([0, 1], 10), source_share=0.1)
