"""Noise: its moments, its cosines, and that a row's noise depends on (seed, key) alone."""

import math

import numpy as np
import pytest
import torch

from revision.alignment.noise import (
    NOISES,
    BallNoise,
    FixedNormNoise,
    GaussianNoise,
    Noise,
    ScaledNoise,
    noise_card,
    noise_of,
    normal,
    row_keys,
    uniform,
)
from revision.config import CONF_DIR, build, compose

KINDS = [
    GaussianNoise(std=0.3),
    GaussianNoise(variance=0.09, seed=3),
    FixedNormNoise(norm=2.0),
    BallNoise(radius=0.5),
    ScaledNoise(std=0.2),
]


def keys(count: int, epoch: int = 0) -> torch.Tensor:
    return row_keys([str(i) for i in range(count)], epoch)


@pytest.fixture(params=KINDS, ids=lambda noise: noise.name)
def noise(request) -> Noise:
    return request.param


@pytest.mark.parametrize("dim", [1, 2, 7, 24, 33, 130])
def test_batches_change_no_bit(noise, dim):
    every = keys(300)
    whole = noise.draw(every, dim)
    for size in (1, 5, 64, 77, 299):
        assert torch.equal(whole, torch.cat([noise.draw(part, dim) for part in every.split(size)]))
    assert torch.equal(whole.flip(0), noise.draw(every.flip(0), dim))


def test_threads_change_no_bit(noise):
    before = torch.get_num_threads()
    try:
        drawn = []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            drawn.append(noise.draw(keys(80), 1280))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*drawn)


def test_drawing_leaves_the_global_random_state_alone(noise):
    torch.manual_seed(0)
    state = torch.get_rng_state()
    noise.draw(keys(4), 8)
    assert torch.equal(torch.get_rng_state(), state)


def test_another_seed_or_key_gives_another_vector(noise):
    first = noise.draw(keys(3), 6)
    other = noise_of({"name": noise.name, "options": noise.options() | {"seed": 99}})
    assert not torch.isclose(first, other.draw(keys(3), 6)).any()
    assert not torch.isclose(first, noise.draw(keys(3, epoch=1), 6)).any()
    assert not torch.isclose(first[0], first[1]).any()


def test_normal_numbers_have_the_moments_of_their_law():
    drawn = normal(keys(20_000), 16, seed=5).numpy()
    count = drawn.size
    for power, expected, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        deviation = (drawn**power).mean() - expected
        assert abs(deviation) < 4 * math.sqrt(variance / count), power
    correlation = np.corrcoef(drawn.T) - np.eye(16)
    assert np.abs(correlation).max() < 5 / math.sqrt(len(drawn))
    neighbours = (drawn[1:] * drawn[:-1]).mean()
    assert abs(neighbours) < 4 / math.sqrt(count)
    assert 4.0 < np.abs(drawn).max() < 6.7


def test_small_keys_and_seeds_in_sequence_are_as_good_as_hashes():
    for drawn in (
        normal(torch.arange(20_000), 2, seed=0),
        torch.cat([normal(torch.tensor([7]), 2, seed) for seed in range(4000)]),
    ):
        tolerance = 4 / math.sqrt(drawn.numel())
        assert abs(float(drawn.mean())) < tolerance
        assert abs(float(drawn.square().mean()) - 1) < 2 * tolerance
        assert abs(float((drawn[1:] * drawn[:-1]).mean())) < 2 * tolerance


def test_the_tails_are_those_of_a_normal_law():
    drawn = normal(keys(20_000), 50, seed=1).numpy().ravel()
    for bound in (1.0, 2.0, 3.0, 4.0):
        expected = math.erfc(bound / math.sqrt(2))
        spread = math.sqrt(expected / drawn.size)
        assert abs((np.abs(drawn) > bound).mean() - expected) < 4 * spread


def test_uniform_numbers_are_uniform_and_tell_nothing_of_the_normal_ones():
    numbers = uniform(keys(20_000), seed=0).numpy()
    assert numbers.min() >= 0 and numbers.max() < 1
    counts = np.histogram(numbers, bins=20, range=(0, 1))[0]
    assert ((counts - 1000) ** 2 / 1000).sum() < 45
    drawn = normal(keys(20_000), 2, seed=0).numpy()
    for known in (numbers, np.cos(2 * np.pi * numbers), np.sin(2 * np.pi * numbers)):
        for hidden in (*drawn.T, np.linalg.norm(drawn, axis=1)):
            assert abs(np.corrcoef(known, hidden)[0, 1]) < 0.03


@pytest.mark.parametrize(
    ("noise", "dim", "expected"),
    [
        *[
            (GaussianNoise(variance=0.016), dim, cosine)
            for dim, cosine in ((512, 0.330), (640, 0.298), (768, 0.274), (1280, 0.216))
        ],
        (GaussianNoise(std=0.04), 768, 0.670),
        (GaussianNoise(std=0.08), 768, 0.411),
        (GaussianNoise(std=0.12), 768, 0.288),
        (BallNoise(radius=math.sqrt(0.016)), 1280, 0.992),
        (FixedNormNoise(norm=math.sqrt(0.016 * 512)), 1280, 0.330),
        (FixedNormNoise(norm=math.sqrt(0.016 * 512)), 64, 0.330),
    ],
)
def test_cosine_of_a_row_with_its_noised_copy(noise, dim, expected):
    clean = torch.zeros(2000, dim, dtype=torch.float64)
    clean[:, 3] = 1
    noised = clean + noise.draw(keys(2000), dim)
    cosine = torch.nn.functional.cosine_similarity(clean, noised)
    tolerance = 5e-3 if dim > 100 else 2e-2  # 1 / sqrt(1 + sigma^2 d) is its limit at large d
    assert float(cosine.mean()) == pytest.approx(expected, abs=tolerance)


def test_the_ball_is_filled_evenly():
    drawn = BallNoise(radius=2.0).draw(keys(20_000), 3)
    volumes = ((drawn.norm(dim=1) / 2) ** 3).numpy()
    assert volumes.max() <= 1 + 1e-6
    assert ((np.histogram(volumes, bins=10, range=(0, 1))[0] - 2000) ** 2 / 2000).sum() < 30
    assert drawn.mean(0).abs().max() < 0.03


def test_scaled_noise_has_one_factor_per_row():
    drawn = ScaledNoise(std=0.5).draw(keys(2000), 400)
    factors = drawn.std(dim=1) / 0.5
    expected = uniform(keys(2000), 0)
    assert torch.allclose(factors, expected, atol=0.15)
    assert float(factors.mean()) == pytest.approx(0.5, abs=0.03)


def test_a_card_brings_the_same_noise_back(noise):
    again = noise_of(noise_card(noise))
    assert again == noise
    assert torch.equal(again.draw(keys(3), 5), noise.draw(keys(3), 5))
    assert noise_of(noise_card(None)) is None


def test_no_noise_is_zero():
    for noise in (GaussianNoise(std=0.0), FixedNormNoise(norm=0.0), BallNoise(radius=0.0)):
        assert not noise.draw(keys(3), 5).any()


@pytest.mark.parametrize("path", sorted((CONF_DIR / "noise").glob("*.yaml")), ids=lambda p: p.stem)
def test_the_leaves_build_and_name_no_field_noise(path):
    noise = build(compose(f"noise/{path.stem}").noise)
    assert isinstance(noise, Noise)
    assert "noise" not in noise.options()


def test_refusals():
    with pytest.raises(ValueError, match=r"std=None and variance=None; give exactly one"):
        GaussianNoise()
    with pytest.raises(ValueError, match=r"std=0.1 and variance=0.01; give exactly one"):
        GaussianNoise(std=0.1, variance=0.01)
    with pytest.raises(ValueError, match=r"variance of a noise must be .* not -1"):
        GaussianNoise(variance=-1.0)
    with pytest.raises(ValueError, match=r"radius of a noise .* not inf"):
        BallNoise(radius=math.inf)
    with pytest.raises(ValueError, match="unknown noise 'pink'; known are gaussian"):
        noise_of({"name": "pink", "options": {}})
    assert len(NOISES) == 4
