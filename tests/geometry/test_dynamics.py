"""The numbers of a contrastive run: laws of the frame, the gradients and what is remembered."""

from math import sqrt

import numpy as np
import pytest
import torch
from torch.nn import functional

from revision.geometry.dynamics import GapTracker, coupled, motion
from revision.geometry.frame import Frame, reference_frame
from revision.geometry.gradients import (
    Gradients,
    info_nce_gradients,
    leakage,
    match,
    sines_of_angles,
    spectral_match,
)

DIM, RANK, PAIRS = 12, 4, 60


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def clouds(seed=0, pairs=PAIRS, dim=DIM, offset=0.6):
    """Pairs that share a meaning, in an anisotropic space, with a mean gap."""
    rng = np.random.default_rng(seed)
    scales = 1 / np.arange(1, dim + 1)
    shared = rng.standard_normal((pairs, dim)) * scales
    noise = rng.standard_normal((2, pairs, dim)) * scales / 3
    gap = np.zeros(dim)
    gap[[1, -1]] = offset
    return unit(shared + noise[0] + gap), unit(shared + noise[1] - gap)


def turned(rows, angle, axes=(0, DIM - 1)):
    rows, (i, j) = rows.copy(), axes
    a, b = rows[:, i].copy(), rows[:, j].copy()
    rows[:, i], rows[:, j] = (
        np.cos(angle) * a - np.sin(angle) * b,
        np.sin(angle) * a + np.cos(angle) * b,
    )
    return rows


def covariance(rows):
    return np.cov(rows.T, bias=True)


def frame_of(image, text, rank=RANK):
    return reference_frame(covariance(text), covariance(image), rank=rank)


def run(steps, *, freeze_step=0, tracker=None, turn=None):
    """A tracker over clouds that turn a little at every step."""
    tracker = tracker or GapTracker(rank=RANK, freeze_step=freeze_step)
    measured = []
    for step in steps:
        image, text = (turned(side, 0.02 * step) for side in clouds())
        image, text = (side if turn is None else side @ turn for side in (image, text))
        gradients = info_nce_gradients(image[:20], text[:20], 10.0)
        measured.append(tracker.measure(step, image, text, gradients))
    return measured


def assert_same(one, other, **tolerance):
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert value == pytest.approx(other[name], nan_ok=True, **tolerance), name


def test_gradients_are_those_of_autograd():
    image, text = clouds(pairs=9)
    rows = [torch.tensor(side, requires_grad=True) for side in (image, text)]
    logits = 7.0 * rows[0] @ rows[1].T
    own = torch.arange(9)
    loss = functional.cross_entropy(logits, own, reduction="sum") / 2
    loss = loss + functional.cross_entropy(logits.T, own, reduction="sum") / 2
    loss.backward()
    gradients = info_nce_gradients(image, text, 7.0)
    np.testing.assert_allclose(gradients.image, rows[0].grad, atol=1e-13)
    np.testing.assert_allclose(gradients.text, rows[1].grad, atol=1e-13)


def test_gradients_lie_in_the_span_of_the_other_side():
    """Lemma B.6."""
    image, text = clouds(pairs=5)
    gradients = info_nce_gradients(image, text, 20.0)
    for rows, other in ((gradients.image, text), (gradients.text, image)):
        assert np.linalg.norm(rows) > 0.1
        inside = rows @ np.linalg.pinv(other) @ other
        np.testing.assert_allclose(inside, rows, atol=1e-12)


def test_gradients_survive_a_large_scale():
    gradients = info_nce_gradients(*clouds(pairs=5), 1e4)
    assert np.isfinite(gradients.rows).all()


def test_bias_and_residual_add_up_to_the_energy():
    image, text = clouds()
    (measured,) = run([0])
    assert measured["beta_share"] + measured["gamma_share"] == pytest.approx(1, abs=1e-12)
    parts = measured["beta"] ** 2 + measured["gamma"] ** 2
    assert parts == pytest.approx(measured["mean_gap"] ** 2, abs=1e-12)
    parts += measured["residual_u"] + measured["residual_v"]
    assert parts == pytest.approx(((image - text) ** 2).sum(1).mean(), abs=1e-12)


@pytest.mark.parametrize("factor", [0.0, 0.1, 0.3])
def test_a_small_update_keeps_the_direction(factor):
    """Prop. B.8: |eta| <= a |gamma| implies cos >= 1 - 2 a^2 / (1 - a)^2."""
    rng = np.random.default_rng(3)
    image, text = clouds()
    frame, gap = frame_of(image, text), image.mean(0) - text.mean(0)
    gamma = frame.split(gap)[1]
    for _ in range(20):
        step = frame.split(rng.standard_normal(DIM))[1]
        moved = gap + factor * np.linalg.norm(gamma) * step / np.linalg.norm(step)
        measured = motion(moved, frame, frozen=gap, previous=gap)
        assert measured["update"] == pytest.approx(factor, abs=1e-12)
        assert measured["drift"] == pytest.approx(factor, abs=1e-12)
        assert measured["stability"] >= 1 - 2 * factor**2 / (1 - factor) ** 2 - 1e-12


@pytest.mark.parametrize("angle", [1e-12, 1e-9, 1e-4, 0.3, np.pi / 2])
def test_sine_of_the_angle_of_two_frames_keeps_its_digits(angle):
    vectors = np.eye(DIM)
    rotated = np.eye(DIM)
    rotated[:, 0] = np.cos(angle) * vectors[0] + np.sin(angle) * vectors[-1]
    frames = [Frame(axes, np.ones(DIM), RANK) for axes in (vectors, rotated)]
    sines = sines_of_angles(*frames)
    assert sines[0] == pytest.approx(np.sin(angle), rel=1e-12)
    assert not sines[1:].any()


def test_leakage_of_gradients_inside_the_frame_is_bounded_by_the_angle():
    """Lemma B.7, and for any gradients with the part outside U_t added."""
    rng = np.random.default_rng(4)
    image, text = clouds()
    reference, now = frame_of(image, text), frame_of(turned(image, 0.4), turned(text, 0.4))
    free = rng.standard_normal((2, 30, DIM))
    inside = leakage(reference, now, Gradients(*(now.split(rows)[0] for rows in free)))
    assert 0 < inside["leakage"] <= inside["sin_theta"]
    assert inside["leakage_now"] == pytest.approx(0, abs=1e-12)
    anything = leakage(reference, now, Gradients(*free))
    assert anything["leakage"] <= anything["sin_theta"] + anything["leakage_now"]
    assert anything["leakage_squared"] == pytest.approx(anything["leakage"] ** 2)


def test_random_gradients_leak_as_the_null_says():
    rng = np.random.default_rng(5)
    frame = frame_of(*clouds())
    measured = leakage(frame, frame, Gradients(*rng.standard_normal((2, 4000, DIM))))
    assert measured["leakage_null"] == sqrt(8 / 12)
    assert measured["leakage"] == pytest.approx(measured["leakage_null"], abs=0.01)


def test_gradients_that_spread_as_the_rows_do_leak_as_much():
    image, text = clouds(pairs=400)
    frame = frame_of(image, text)
    own = Gradients(image - image.mean(0), text - text.mean(0))
    measured = leakage(frame, frame, own)
    assert measured["leakage"] == pytest.approx(measured["leakage_rows"], rel=1e-9)
    assert measured["leakage_rows"] == pytest.approx(sqrt(1 - frame.energy), rel=1e-9)
    assert measured["leakage_rows"] < measured["leakage_null"] / 1.5


def test_sorted_spectra_correlate_whatever_they_are():
    """The example of the docstring, and a match that beats the broken stick."""
    ranks = np.arange(1.0, 129)
    assert spectral_match(1 / ranks, ranks**-2.0)["rho_eig"] == pytest.approx(0.93, abs=0.005)
    same = spectral_match(1 / ranks, 3 / ranks)
    assert same["rho_eig"] == pytest.approx(1) and same["rho_eig_log"] == pytest.approx(1)
    assert same["rho_eig_null"] < 0.95
    assert spectral_match(1 / ranks, ranks**-2.0)["rho_eig_log"] == pytest.approx(1)


def test_independent_residuals_explain_as_little_as_the_nulls_say():
    rng = np.random.default_rng(8)
    found = [
        coupled(rng.standard_normal((60, DIM)), Frame(np.eye(DIM), np.ones(DIM), RANK))
        for _ in range(200)
    ]
    mean = {name: np.mean([measured[name] for measured in found]) for name in found[0]}
    assert mean["r2_in"] == pytest.approx(mean["r2_null"], abs=0.005)
    assert mean["r2_out"] == pytest.approx(mean["r2_out_null"], abs=0.01)


def test_nothing_that_rests_moves():
    tracker = GapTracker(rank=RANK, freeze_step=0)
    image, text = clouds()
    gradients = info_nce_gradients(image, text, 10.0)
    first, second = (tracker.measure(step, image, text, gradients) for step in (0, 5))
    assert "stability" not in first
    assert second["stability"] == pytest.approx(1)
    for name in ("drift", "update", "sin_theta", "sin_theta_rms"):
        assert second[name] == pytest.approx(0, abs=1e-12)
    assert_same(
        {k: second[k] for k in first if k != "window_steps"},
        {k: v for k, v in first.items() if k != "window_steps"},
        abs=1e-12,
    )


def test_the_reference_follows_until_the_freeze_and_stays_then():
    measured = run(range(0, 8), freeze_step=4)
    before, after = measured[:4], measured[4:]
    assert [m["is_frozen"] for m in measured] == [0] * 4 + [1] * 4
    assert all("drift" not in m for m in before)
    assert after[0]["drift"] == 0
    assert ["sin_theta" in m for m in measured] == [False, *[True] * 3, False, *[True] * 3]
    moved = [m["sin_theta"] for m in after[1:]]
    np.testing.assert_allclose(moved, np.sin(0.02 * np.arange(1, 4)), rtol=0.2)
    steps = [m["sin_theta"] for m in before[1:]]
    np.testing.assert_allclose(steps, moved[0], rtol=1e-6)  # one step of the same turn each


def test_a_common_rotation_changes_no_number():
    turn = np.linalg.qr(np.random.default_rng(7).standard_normal((DIM, DIM)))[0]
    rotated = run(range(4), freeze_step=2, turn=turn)
    for one, other in zip(run(range(4), freeze_step=2), rotated, strict=True):
        assert_same(one, other, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("stopped", range(1, 6))
def test_a_restored_tracker_goes_on_as_the_one_that_stopped(stopped):
    whole = run(range(6), freeze_step=3)
    first = GapTracker(rank=RANK, freeze_step=3)
    run(range(stopped), tracker=first)
    second = GapTracker(rank=RANK, freeze_step=3)
    second.load_state_dict(first.state_dict())
    for one, other in zip(run(range(stopped, 6), tracker=second), whole[stopped:], strict=True):
        assert_same(one, other, rel=0, abs=0)


def test_the_window_averages_covariances_and_leaves_the_drift_out():
    """Lemma B.9: pooled over time, Cov = mean of Cov + Cov of the means."""
    tracker = GapTracker(rank=RANK, freeze_step=0)
    pooled, means = [], []
    for step in range(3):
        image, text = clouds(seed=step, offset=0.3 * step)
        tracker.measure(step, image, text, info_nce_gradients(image, text, 5.0))
        pooled.append(image - text)
        means.append((image - text).mean(0))
    averaged = tracker.window / tracker.window_steps
    assert tracker.window_steps == 3
    expected = covariance(np.concatenate(pooled)) - covariance(np.array(means))
    np.testing.assert_allclose(averaged, expected, atol=1e-14)
    assert np.trace(covariance(np.concatenate(pooled))) > np.trace(averaged) + 1e-3


def test_a_frame_without_rest_and_a_probe_that_is_too_small_are_refused():
    image, text = clouds()
    gradients = info_nce_gradients(image, text, 5.0)
    for rank in (0, DIM):
        with pytest.raises(ValueError, match=rf"rank {rank} of width 12 leaves no V|needs rank"):
            GapTracker(rank=rank, freeze_step=0).measure(0, image, text, gradients)
    few = GapTracker(rank=RANK, freeze_step=0)
    with pytest.raises(ValueError, match="2 probe pairs span at most 2 directions"):
        few.measure(0, image[:2], text[:2], gradients)


def test_the_null_of_the_rows_is_their_share_outside_of_another_frame():
    """sqrt(tr P_V S_t / tr S_t), where the reference is not the frame of the rows."""
    image, text = clouds()
    now, reference = frame_of(image, text), frame_of(turned(image, 0.5), turned(text, 0.5))
    found = leakage(reference, now, info_nce_gradients(image, text, 10.0))["leakage_rows"]
    spread = covariance(text) + covariance(image)
    outside = reference.complement.T @ spread @ reference.complement
    assert found == pytest.approx(sqrt(np.trace(outside) / np.trace(spread)), rel=1e-12)
    assert found > 1.2 * sqrt(1 - now.energy)


def test_residuals_are_matched_with_the_gradients_of_both_sides():
    image, text = clouds()
    frame = frame_of(image, text)
    gradients = info_nce_gradients(image, text, 10.0)
    residual = covariance(image - text)
    pushes = covariance(np.concatenate([gradients.image, gradients.text]))
    one, other = (frame.basis.T @ c @ frame.basis for c in (residual, pushes))
    found = match(frame, residual, gradients)
    expected = np.corrcoef(np.diag(one), np.diag(other))[0, 1]
    assert found["diagonal_correlation"] == pytest.approx(expected, rel=1e-9)
    spectra = (np.linalg.eigvalsh(c)[::-1] for c in (one, other))
    assert found["rho_eig"] == pytest.approx(np.corrcoef(*spectra)[0, 1], rel=1e-9)
