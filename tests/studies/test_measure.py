"""Laws of a job's numbers: the floor predicts, means predict, arithmetic is told apart."""

from pathlib import Path

import numpy as np
import pytest

from revision.alignment.methods.mean_shift import MeanShift
from revision.alignment.methods.realign import ReAlign
from revision.alignment.moments import unit_rows
from revision.studies.measure import STEPS, Sample, ablation, fit, numbers_of
from revision.studies.sample import pool_of
from tests.feature_sets import cloud, write_set

TRIALS = 8


@pytest.fixture
def sets(tmp_path: Path) -> tuple[Path, Path]:
    return (
        write_set(tmp_path / "text", cloud(1, 300), "text"),
        write_set(tmp_path / "image", cloud(2, 300, mean=0.35), "image"),
    )


def fresh(seed: int, count: int, which: int) -> np.ndarray:
    """Other rows of the two clouds: their centre is the first draw of the generator."""
    mean = {1: 0.5, 2: 0.35}[which]
    return unit_rows(cloud(which, 300 + count * (seed + 1), mean=mean)[-count:])


def sample(directory: Path, count: int, seed: int = 0, **options) -> Sample:
    return Sample((pool_of(directory).draw(count, seed, **options),))


def measure(sets, alignment=None, *, rows=100, seed=0, text=None, image=None, accumulator=None):
    source, target = (sample(d, rows, (seed, i)) for i, d in enumerate(sets))
    fitted = fit(alignment or ReAlign(), source, target, accumulator)
    text = fresh(seed, 60, 1) if text is None else text
    image = fresh(seed, 60, 2) if image is None else image
    return numbers_of(fitted, text, image, paired=False)


def test_the_held_out_gap_is_on_average_its_floor(sets):
    for rows in (20, 80):
        found = [measure(sets, rows=rows, seed=seed) for seed in range(TRIALS)]
        gap, floor = (
            np.sqrt(np.mean([numbers[name] ** 2 for numbers in found])) for name in ("gap", "floor")
        )
        assert gap == pytest.approx(floor, rel=0.25)
        assert max(numbers["in_sample_gap"] for numbers in found) < gap / 20


def test_means_alone_predict_the_gap_across_domains(sets):
    one, other = unit_rows(cloud(9, 60, mean=0.8)), unit_rows(cloud(10, 60, mean=0.8))
    step = 0.4 * np.eye(24)[:1]
    for text, image in ((one, None), (None, other), (one, other), (one, one + step)):
        image = image if image is None else image / np.linalg.norm(image, axis=1, keepdims=True)
        numbers = measure(sets, ablation("anchor"), text=text, image=image)
        assert numbers["gap"] > 2 * numbers["floor"]
        assert numbers["predicted_gap"] == pytest.approx(numbers["gap"], rel=0.2)


def test_the_floor_knows_that_fitting_rows_of_one_record_vary_together(tmp_path):
    noise = 0.1 * np.random.default_rng(0).standard_normal((2, 300, 24))
    common = cloud(1, 300)
    text, image = (
        write_set(tmp_path / name, (common + noise[i]).astype(np.float32), name)
        for i, name in enumerate(("text", "image"))
    )
    held = [unit_rows(common[:80] + noise[i][:80]) for i in range(2)]

    def floor(seeds: tuple[int, int]) -> float:
        samples = [sample(d, 150, seed) for d, seed in zip((text, image), seeds, strict=True)]
        numbers = numbers_of(fit(MeanShift(), *samples), *held, paired=True)
        return numbers["floor"] ** 2 - numbers["test_floor"] ** 2

    residual = np.var(held[1] - held[0], axis=0).sum() / 150
    assert floor((0, 0)) == pytest.approx(residual, rel=0.35)  # the same records: tr S_r / N
    assert floor((0, 1)) > 2 * residual


def test_repeated_rows_do_not_lower_the_floor(sets):
    text, image = (fresh(0, 60, which) for which in (1, 2))
    floors = []
    for rows in (300, 3000):
        samples = [sample(d, rows, i, repeat=True) for i, d in enumerate(sets)]
        assert samples[0].effective_rows < 300
        numbers = numbers_of(fit(ReAlign(), *samples), text, image, paired=False)
        floors.append(numbers["floor"])
    whole = [sample(d, 300) for d in sets]
    bound = numbers_of(fit(ReAlign(), *whole), text, image, paired=False)["floor"]
    assert min(floors) > bound
    assert whole[0].effective_rows == 300


def test_the_steps_of_the_ablation_are_the_maps_that_they_name(sets):
    numbers = {step: measure(sets, ablation(step)) for step in STEPS}
    assert numbers["none"]["gap"] == numbers["none"]["raw_gap"]
    assert numbers["none"]["phi"] == pytest.approx(1.0)
    assert numbers["anchor"]["phi"] == measure(sets, MeanShift())["phi"]
    assert numbers["all"]["phi"] == measure(sets, ReAlign())["phi"]
    assert numbers["anchor"]["scale"] == numbers["anchor_centroid"]["scale"] == 1.0
    assert numbers["anchor_trace"]["scale"] == numbers["all"]["scale"] != 1.0
    for with_step, without in (("all", "anchor_trace"), ("anchor_centroid", "anchor")):
        assert numbers[with_step]["in_sample_gap"] < numbers[without]["in_sample_gap"] / 3
    for step in STEPS:
        assert numbers[step]["phi"] <= numbers[step]["phi_bound"] + 1e-12
    with pytest.raises(ValueError, match=r"step is one of none, anchor, .*'trace'"):
        ablation("trace")


def test_the_accumulator_and_the_rounding_of_the_mean_show_in_its_error_and_nowhere_else(sets):
    exact, coarse = (
        measure(sets, accumulator=name, rows=300) for name in ("fixed_point", "float32_sequential")
    )
    assert exact["mean_error"] < 1e-14 < 1e-9 < coarse["mean_error"] < 1e-6
    assert coarse["gap"] == pytest.approx(exact["gap"], abs=1e-6)
    rounded = measure(sets, ReAlign(mean_precision="float32"), accumulator="fixed_point", rows=300)
    assert 1e-9 < rounded["mean_error"] < 1e-7
    assert "mean_error" not in measure(sets)


def test_storage_is_measured(sets):
    samples = [Sample(sample(d, 50).pools, "bfloat16") for d in sets]
    text, image = (fresh(0, 60, which) for which in (1, 2))
    numbers = numbers_of(fit(ReAlign(), *samples), text, image, paired=False)
    assert 1e-7 < numbers["cosine_loss"] < 1e-5


def test_maps_that_a_study_cannot_judge_are_refused(sets):
    alignment = ReAlign()
    alignment.needs_pairs = True
    with pytest.raises(ValueError, match=r"use scripts/measure_gap\.py"):
        fit(alignment, *(sample(d, 20) for d in sets))
