import numpy as np
import pytest

from revision.alignment import MeanShift, ReAlign
from revision.alignment.fit import read_sets
from revision.alignment.moments import unit_rows
from revision.alignment.parts import Part, fit_in_memory, part_of, split_of
from revision.alignment.samples import Sample
from revision.geometry.measure import frame_of, measure_split
from revision.geometry.options import MeasureOptions
from tests.feature_sets import cloud, write_set

OPTIONS = MeasureOptions(neighbours=5, rank=4, bootstrap=4)


def pairs(seed: int, count: int, dim: int = 8) -> tuple[np.ndarray, np.ndarray]:
    """Text and image rows that share half of their variation."""
    rng = np.random.default_rng(seed)
    shared = rng.standard_normal((count, dim))
    text, image = (
        center + 0.15 * (shared + rng.standard_normal((count, dim)))
        for center in (np.eye(dim)[0] * 0.5, np.eye(dim)[1] * 0.4)
    )
    return unit_rows(text), unit_rows(image)


@pytest.fixture(scope="module")
def part(tmp_path_factory):
    """Makes parts in memory; maps without noise never look at the sets behind them."""
    place = tmp_path_factory.mktemp("sets")
    kinds = ("text", "image")
    sets = read_sets(*(write_set(place / kind, cloud(1, 2), kind) for kind in kinds))

    def make(text, image, paired) -> Part:
        samples = (Sample(rows, np.arange(len(rows))) for rows in (text, image))
        return Part(sets, *samples, paired)

    return make


def measured_gap(alignment, fitting: Part, unseen: Part) -> dict:
    frame = frame_of(split_of(fitting, alignment, fitting), OPTIONS)
    return measure_split(split_of(unseen, alignment, fitting), frame, OPTIONS)["after"]["gap"]


@pytest.mark.parametrize("paired", [False, True])
def test_a_held_out_gap_is_about_its_floor(part, paired):
    """Mean square over draws, as the floor predicts an expectation; measured 1.06 with pairs."""
    ratios = []
    for seed in range(16):
        text, image = pairs(seed, 500)
        fitting = part(text[:300], image[:300], paired)
        alignment = fit_in_memory(ReAlign(), fitting)
        gap = measured_gap(alignment, fitting, part(text[300:], image[300:], paired))
        ratios.append((gap["value"] / gap["null"]) ** 2)
    if paired:
        assert 0.6 < np.mean(ratios) < 1.7
    else:  # 0.57: they are pairs, whose means move together, so that of strangers is too high
        assert np.mean(ratios) < 0.9


def test_the_floor_is_the_noise_of_four_means(part):
    text, image = (unit_rows(cloud(s, n, 8)) for s, n in ((1, 90), (2, 70)))
    fitting = part(text, image, False)
    alignment = fit_in_memory(ReAlign(), fitting)
    split = split_of(fitting, alignment, fitting)
    traces = [float(rows.var(0).sum()) for rows in (text, image)]
    expected = traces[1] / 70 + alignment.gain**2 * traces[0] / 90
    assert split.fit_noise == pytest.approx(expected, rel=1e-9)
    whole = measured_gap(alignment, fitting, fitting)["null"] ** 2
    mapped = float(split.mapped.var(0).sum())
    assert whole == pytest.approx(expected + mapped / 90 + traces[1] / 70, rel=1e-9)


def test_a_fit_on_pairs_has_the_noise_of_their_differences(part):
    text, image = pairs(1, 120)
    fitting = part(text, image, True)
    alignment = fit_in_memory(MeanShift(), fitting)
    split = split_of(fitting, alignment, fitting)
    expected = float((image - split.mapped).var(0).sum()) / 120
    assert split.fit_noise == pytest.approx(expected, rel=1e-9)


def test_the_noise_of_the_fit_is_that_of_all_its_rows_not_of_the_sample(part):
    text, image = pairs(1, 400)
    alignment = fit_in_memory(MeanShift(), part(text, image, True))
    sampled = part(text[::4], image[::4], True)
    whole = split_of(sampled, alignment, part(text, image, True)).fit_noise
    assert split_of(sampled, alignment, sampled).fit_noise == pytest.approx(whole, rel=0.15)


def test_a_method_for_pairs_refuses_strangers(tmp_path):
    from revision.alignment.methods.procrustes_oracle import ProcrustesOracle

    text = write_set(tmp_path / "t", cloud(1, 30), "text")
    image = write_set(tmp_path / "i", cloud(2, 40), "image")
    strangers = part_of(read_sets(text, image), 100)
    with pytest.raises(ValueError, match="'procrustes_oracle' is fitted on pairs"):
        fit_in_memory(ProcrustesOracle(), strangers)
