"""The common laws of alignment maps, for every map."""

import numpy as np
import pytest
import torch

from revision.alignment import AlignmentMap, Cloud, MeanShift, NoAlignment, ReAlign, moments_of
from revision.alignment.methods.c3 import C3
from revision.alignment.noise import row_keys
from tests.alignment.numbers import numbers_of
from tests.feature_sets import cloud

MAPS = [
    NoAlignment,
    MeanShift,
    lambda: MeanShift(strength=0.4),
    ReAlign,
    lambda: ReAlign(mean_precision="float32"),
]


def fitted(make, text: np.ndarray, image: np.ndarray) -> AlignmentMap:
    alignment = make()
    alignment.fit(Cloud.of(text), Cloud.of(image))
    return alignment


def in_float64(alignment: AlignmentMap, rows: np.ndarray) -> np.ndarray:
    unit = torch.tensor(rows / np.linalg.norm(rows, axis=1, keepdims=True))
    return alignment.transform(unit).numpy()


def rounds_means(make) -> bool:
    return getattr(make(), "mean_precision", "float64") == "float32"


@pytest.fixture(params=MAPS, ids=["none", "mean_shift", "mean_shift_0.4", "realign", "realign_f32"])
def make(request):
    return request.param


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_outputs_are_float32_unit_rows(make, text, image, dtype):
    aligned = fitted(make, text, image)(torch.tensor(text).to(dtype))
    assert aligned.dtype == torch.float32
    assert (aligned.double().norm(dim=1) - 1).abs().max() <= 2e-7


def test_a_row_does_not_depend_on_its_batch(make):
    text, image = cloud(1, 1300, dim=40), cloud(2, 60, dim=40, mean=0.3)
    alignment = fitted(make, text, image)
    rows = torch.tensor(text)
    whole = alignment(rows)
    assert torch.equal(whole, torch.cat([alignment(piece) for piece in rows.split(7)]))
    assert torch.equal(whole[5:6], alignment(rows[5:6]))
    assert torch.equal(whole.flip(0), alignment(rows.flip(0)))


def test_batches_of_the_fit_do_not_change_a_bit(make, text, image):
    whole, pieces = fitted(make, text, image), make()
    cut = np.array_split(text, 6)
    pieces.fit(
        Cloud(moments_of(cut), lambda: cut), Cloud(moments_of(np.array_split(image, 5)), list)
    )
    for name, buffer in whole.state_dict().items():
        assert torch.equal(buffer, pieces.state_dict()[name]), name


def test_row_order_of_the_fit_changes_nothing_beyond_rounding(make, text, image):
    text, image = text.astype(np.float64), image.astype(np.float64)
    rng = np.random.default_rng(0)
    shuffled = fitted(make, rng.permutation(text), rng.permutation(image))
    difference = in_float64(shuffled, text) - in_float64(fitted(make, text, image), text)
    assert np.abs(difference).max() < 1e-12


def test_positive_rescaling_of_rows_changes_nothing(make, text, image):
    text = text.astype(np.float64)
    factors = np.exp(np.random.default_rng(0).standard_normal((len(text), 1)))
    rescaled = fitted(make, text * factors, image)
    difference = in_float64(rescaled, text * factors) - in_float64(fitted(make, text, image), text)
    assert np.abs(difference).max() < 1e-12


def test_a_common_rotation_rotates_the_result(make, text, image):
    text, image = text.astype(np.float64), image.astype(np.float64)
    rotation = np.linalg.qr(np.random.default_rng(0).standard_normal((24, 24)))[0]
    rotated = in_float64(fitted(make, text @ rotation, image @ rotation), text @ rotation)
    expected = in_float64(fitted(make, text, image), text) @ rotation
    assert np.abs(rotated - expected).max() < (1e-7 if rounds_means(make) else 1e-12)


def test_equal_clouds_give_the_identity(make, text):
    text = text.astype(np.float64)
    unit = text / np.linalg.norm(text, axis=1, keepdims=True)
    difference = in_float64(fitted(make, text, text.copy()), text) - unit
    assert np.abs(difference).max() < (1e-7 if rounds_means(make) else 1e-9)


def test_phi_does_not_exceed_its_bound(make, text, image):
    numbers = numbers_of(fitted(make, text, image), text)
    assert numbers.phi <= numbers.phi_bound + 1e-12


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_the_rows_given_are_left_alone(make, text, image, dtype):
    rows = torch.tensor(text).to(dtype)
    before = rows.clone()
    fitted(make, text, image)(rows)
    assert torch.equal(rows, before)


@pytest.mark.parametrize("value", [np.nan, np.inf, 0.0])
def test_rows_without_direction_are_refused(make, text, image, value):
    alignment = fitted(make, text, image)
    rows = torch.tensor(text).repeat(4, 1)
    rows[600] = value
    with pytest.raises(ValueError, match=r"1 of .* rows have no direction .* row 600"):
        alignment(rows)


def test_casting_a_module_moves_a_map_but_never_rounds_it(make, text, image):
    alignment = fitted(make, text, image)
    before = {name: buffer.clone() for name, buffer in alignment.state_dict().items()}
    torch.nn.ModuleList([alignment]).half().to(torch.bfloat16)
    for name, buffer in alignment.state_dict().items():
        assert buffer.dtype == before[name].dtype
        assert torch.equal(buffer, before[name])


def test_another_width_is_refused(make, text, image):
    with pytest.raises(ValueError, match=r"\(230, 9\) given to an alignment of width 24"):
        fitted(make, text, image)(torch.tensor(text[:, :9].copy()))
    with pytest.raises(ValueError, match="source rows have width 9, target rows 24"):
        fitted(make, text[:, :9], image)


def test_an_unfitted_map_refuses_rows(make, text):
    with pytest.raises(ValueError, match="not fitted"):
        make()(torch.tensor(text))


def test_one_row_is_not_a_distribution(make, text, image):
    with pytest.raises(ValueError, match="from 1 source and 170"):
        fitted(make, text[:1], image)


@pytest.mark.parametrize("seed", range(6))
def test_a_cloud_without_spread_has_trace_zero(text, seed):
    """Rounding would leave up to 5e-14 of either sign, and a scale that is nan."""
    point = np.random.default_rng(seed).standard_normal((1, 24))
    alignment = fitted(lambda: ReAlign(centroid=False), text, np.repeat(point, 30, axis=0))
    assert float(alignment.target_trace) == 0.0
    assert alignment.gain == 0.0


def test_bad_rows_become_nan_and_the_others_keep_their_own_noise(text, image):
    alignment = fitted(lambda: C3(std=0.1), text, image)
    keys = row_keys([str(i) for i in range(len(text))], 0)
    rows = torch.tensor(text)
    expected = alignment(rows, keys)
    rows[[0, 5]] = torch.tensor([[0.0], [torch.inf]], dtype=rows.dtype)
    mapped, bad = alignment.map_good(rows, keys)
    assert bad.nonzero()[:, 0].tolist() == [0, 5]
    assert mapped[bad].isnan().all()
    assert torch.equal(mapped[~bad], expected[~bad])
