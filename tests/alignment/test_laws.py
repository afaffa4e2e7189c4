"""The laws of alignment maps, for every method that there is.

A method is found by its module in `revision/alignment/methods/`: a new one is under these laws
without an edit. A law that a method does not claim is named below with the reason.
"""

import inspect
import json
import re
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from revision.alignment.base import AlignmentMap, Cloud
from revision.alignment.methods import method, method_names
from revision.alignment.moments import moments_of, moments_of_transformed
from revision.alignment.noise import GaussianNoise, row_keys
from revision.alignment.recentred import RecentredMap
from revision.alignment.storage import load_alignment, save_alignment
from revision.config import CONF_DIR, build, compose
from tests.feature_sets import cloud

DIM, ROWS = 8, 200

SMALL: dict[str, dict[str, Any]] = {  # options for width 8; a few steps of training
    "bc": {"rank": 4},
    "ortho_gap": {"num_directions": 3},
    "aniso_init": {"rank": 4},
    "aniso": {
        "rank": 4,
        "neighbours": 1,
        "width": 8,
        "depth": 1,
        "training": {"prior_steps": 3, "refine_steps": 3, "batch": 32},
    },
}
IN_LAW = {  # a rotation of the data leaves the law of the noise as it is, but not the numbers drawn
    "c3",
    "close_cov",
}
NO_ROTATION = {
    "diag_std": "standard deviations of single coordinates",
    "aniso_init": "standard deviations of single coordinates outside the frame",
    "aniso": "as aniso_init, and networks that start from coordinates",
}
NO_IDENTITY = {
    "collapse": "the common mean is taken away",
    "unicorn": "the common mean is taken away",
    "c3": "noise",
    "close_cov": "noise",
    "perm": "a random image",
    "aniso": "what training leaves",
}
NO_ROW_ORDER = {
    "perm": "the images are drawn by their place",
    "aniso": "the batches of training are drawn by place",
}
IDENTITY_WITHIN = {"aniso_init": 2e-2}  # quantiles: 200 rows stand for a distribution


@pytest.fixture(params=method_names())
def name(request) -> str:
    return request.param


@pytest.fixture
def make(name: str) -> Callable[[], AlignmentMap]:
    return lambda: method(name)(**SMALL.get(name, {}))


@pytest.fixture(scope="module")
def text() -> np.ndarray:
    return cloud(1, ROWS, DIM)


@pytest.fixture(scope="module")
def image(text: np.ndarray) -> np.ndarray:
    """As many images: row i is also the picture of text i."""
    return (cloud(2, ROWS, DIM, mean=0.35) + 0.5 * text).astype(np.float32)


def fitted(make, text: np.ndarray, image: np.ndarray) -> AlignmentMap:
    alignment = make()
    alignment.fit(Cloud.of(text), Cloud.of(image))
    return alignment


def keys_of(alignment: AlignmentMap, count: int, epoch: int = 0) -> torch.Tensor | None:
    return row_keys([str(i) for i in range(count)], epoch) if alignment.is_random else None


def applied(alignment: AlignmentMap, rows: np.ndarray) -> torch.Tensor:
    return alignment(torch.tensor(rows), keys_of(alignment, len(rows)))


def unit(rows: np.ndarray) -> np.ndarray:
    wide = rows.astype(np.float64)
    return wide / np.linalg.norm(wide, axis=1, keepdims=True)


def exactly(alignment: AlignmentMap, rows: np.ndarray) -> np.ndarray:
    """The result in float64."""
    return alignment.transform(torch.tensor(unit(rows)), keys_of(alignment, len(rows))).numpy()


def moved(alignment: AlignmentMap, rows: np.ndarray) -> np.ndarray:
    return alignment.move(torch.tensor(unit(rows))).numpy()


def same_bits(one: AlignmentMap, other: AlignmentMap) -> None:
    for buffer, tensor in one.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[buffer]), buffer


# --- what a method is


def test_the_methods_are_found() -> None:
    assert len(method_names()) >= 12
    assert {"none", "mean_shift", "collapse", "unicorn", "c3", "realign"} <= set(method_names())


def test_no_claim_is_given_up_for_a_method_that_does_not_exist() -> None:
    lists = (SMALL, IN_LAW, NO_ROTATION, NO_IDENTITY, NO_ROW_ORDER, IDENTITY_WITHIN)
    assert {name for listed in lists for name in listed} <= set(method_names())


def test_the_docstring_has_formula_source_cost_and_need_of_pairs(name) -> None:
    text = sys.modules[method(name).__module__].__doc__ or ""
    assert re.search(r"^    .*=", text, re.MULTILINE), "a formula, indented"
    assert re.search(r"^Source", text, re.MULTILINE), "its source"
    assert re.search(r"arXiv:\d{4}\.\d{5}|[\w-]+/[\w.-]+@[0-9a-f]{7}|no paper", text)
    assert re.search(r"\bDeparts from\b|no paper", text), "where it is not its source"
    assert re.search(r"\bCosts?\b", text), "what it costs"
    assert re.search(r"\b(no|needs?) pairs\b|\bunpaired\b", text, re.IGNORECASE)
    assert re.search(r"\bneeds pairs\b", text, re.IGNORECASE) or not method(name).needs_pairs


def test_the_config_of_the_same_name_builds_it_with_every_option_written_down(name) -> None:
    node = OmegaConf.to_container(OmegaConf.load(CONF_DIR / "alignment" / f"{name}.yaml"))
    assert isinstance(node, dict)
    parameters = inspect.signature(method(name)).parameters
    assert set(node) - {"_target_"} == set(parameters)
    assert all(p.kind is p.KEYWORD_ONLY for p in parameters.values())
    built = build(compose("align", [f"alignment={name}"]).alignment)
    assert type(built) is method(name)


def test_options_rebuild_the_method(make, name) -> None:
    options = make().options()
    assert set(options) == set(inspect.signature(method(name)).parameters)
    again = method(name)(**json.loads(json.dumps(options)))
    assert again.options() == options


# --- rows in, rows out


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_texts_become_float32_unit_rows(make, text, image, dtype) -> None:
    alignment = fitted(make, text, image)
    rows = torch.tensor(text).to(dtype)
    before = rows.clone()
    aligned = alignment(rows, keys_of(alignment, ROWS))
    assert aligned.dtype == torch.float32
    assert (aligned.double().norm(dim=1) - 1).abs().max() <= 2e-7
    assert torch.equal(rows, before)


def test_images_become_float32_unit_rows_and_stay_unless_announced(make, text, image) -> None:
    alignment = fitted(make, text, image)
    placed = alignment.forward_images(torch.tensor(image))
    assert placed.dtype == torch.float32
    assert (placed.double().norm(dim=1) - 1).abs().max() <= 2e-7
    stayed = torch.allclose(placed.double(), torch.tensor(unit(image)), atol=1e-7)
    assert stayed is not alignment.changes_images


def test_a_row_does_not_depend_on_its_batch(make, text, image) -> None:
    alignment = fitted(make, text, image)
    rows, keys = torch.tensor(cloud(5, 300, DIM)), row_keys([str(i) for i in range(300)], 2)
    whole, images = alignment(rows, keys), alignment.forward_images(rows)
    for size in (1, 7, 256):
        pieces = zip(rows.split(size), keys.split(size), strict=True)
        assert torch.equal(whole, torch.cat([alignment(*piece) for piece in pieces]))
        parts = [alignment.forward_images(piece) for piece in rows.split(size)]
        assert torch.equal(images, torch.cat(parts))
    assert torch.equal(whole.flip(0), alignment(rows.flip(0), keys.flip(0)))


def test_positive_rescaling_of_rows_changes_nothing(make, text, image) -> None:
    text, image = text.astype(np.float64), image.astype(np.float64)
    factors = np.exp(np.random.default_rng(0).standard_normal((ROWS, 2)))
    rescaled = fitted(make, text * factors[:, :1], image * factors[:, 1:])
    difference = exactly(rescaled, text * factors[:, :1]) - exactly(fitted(make, text, image), text)
    assert np.abs(difference).max() < tolerance(rescaled)


# --- noise


def test_a_random_map_needs_keys_and_follows_them(make, text, image) -> None:
    alignment = fitted(make, text, image)
    rows = torch.tensor(text)
    if not alignment.is_random:
        assert torch.equal(alignment(rows), alignment(rows, row_keys(["x"] * ROWS, 0)))
        return
    with pytest.raises(ValueError, match=r"got no keys; give row_keys"):
        alignment(rows)
    with pytest.raises(ValueError, match="takes no second noise"):
        alignment.add_noise(GaussianNoise(std=0.1))
    first, again, later = (alignment(rows, keys_of(alignment, ROWS, e)) for e in (0, 0, 1))
    assert torch.equal(first, again)
    assert ((first - later).abs().amax(1) > 1e-6).float().mean() > 0.95


def test_noise_of_the_user_is_added_before_the_last_projection(make, text, image) -> None:
    alignment = fitted(make, text, image)
    if alignment.is_random:
        return
    alignment.add_noise(GaussianNoise(std=0.2, seed=4))
    keys = row_keys([str(i) for i in range(ROWS)], 3)
    expected = moved(alignment, text) + GaussianNoise(std=0.2, seed=4).draw(keys, DIM).numpy()
    noised = alignment.transform(torch.tensor(unit(text)), keys).numpy()
    assert np.abs(noised - unit(expected)).max() < 1e-12


# --- what the fit depends on


def test_batches_of_the_fit_change_no_bit(make, text, image) -> None:
    def pieces(rows: np.ndarray, count: int) -> Cloud:
        cut = np.array_split(rows, count)
        return Cloud(moments_of(cut, second="covariance"), lambda: cut)

    whole, parts = fitted(make, text, image), make()
    parts.fit(pieces(text, 6), pieces(image, 5))
    same_bits(whole, parts)


def test_the_same_fit_twice_is_the_same_map(make, text, image) -> None:
    torch.manual_seed(1)
    first = fitted(make, text, image)
    torch.manual_seed(2)
    state = torch.get_rng_state()
    second = fitted(make, text, image)
    assert torch.equal(torch.get_rng_state(), state)
    same_bits(first, second)
    assert torch.equal(applied(first, text), applied(second, text))


def test_order_of_the_rows_changes_nothing_beyond_rounding(make, name, text, image) -> None:
    if name in NO_ROW_ORDER:
        return
    text, image = text.astype(np.float64), image.astype(np.float64)
    order = np.random.default_rng(0).permutation(ROWS)
    shuffled = fitted(make, text[order], image[order])
    difference = exactly(shuffled, text) - exactly(fitted(make, text, image), text)
    assert np.abs(difference).max() < tolerance(shuffled)


def test_order_of_one_side_is_nothing_to_a_method_without_pairs(make, name, text, image) -> None:
    if name in NO_ROW_ORDER:
        return
    order = np.random.default_rng(0).permutation(ROWS)
    shuffled = fitted(make, text, image[order])
    difference = np.abs(exactly(shuffled, text) - exactly(fitted(make, text, image), text)).max()
    assert (difference > 1e-3) if shuffled.needs_pairs else (difference < tolerance(shuffled))


def test_rows_without_direction_are_left_out_of_the_fit_and_listed(make, text, image) -> None:
    spoilt_text, spoilt_image = (np.insert(rows, [3, 90, 199], 0, axis=0) for rows in (text, image))
    spoilt_text[3], spoilt_image[91] = np.nan, np.inf
    spoilt = make()
    source, target = Cloud.of(spoilt_text), Cloud.of(spoilt_image)
    spoilt.fit(source, target)
    assert source.moments.rejected == target.moments.rejected == (3, 91, 201)
    assert int(spoilt.source_count) == ROWS
    difference = exactly(spoilt, text) - exactly(fitted(make, text, image), text)
    assert np.abs(difference).max() < tolerance(spoilt)


# --- geometry


def test_a_common_rotation_rotates_the_result(make, name, text, image) -> None:
    if name in NO_ROTATION:
        return
    text, image = text.astype(np.float64), image.astype(np.float64)
    rotation = np.linalg.qr(np.random.default_rng(0).standard_normal((DIM, DIM)))[0]
    result = moved if name in IN_LAW else exactly
    rotated = result(fitted(make, text @ rotation, image @ rotation), text @ rotation)
    alignment = fitted(make, text, image)
    assert np.abs(rotated - result(alignment, text) @ rotation).max() < 10 * tolerance(alignment)


def test_equal_clouds_give_the_identity(make, name, text) -> None:
    if name in NO_IDENTITY:
        return
    difference = exactly(fitted(make, text, text.copy()), text) - unit(text)
    assert np.abs(difference).max() < IDENTITY_WITHIN.get(name, 1e-9)


def test_phi_does_not_exceed_its_bound(make, text, image) -> None:
    alignment = fitted(make, text, image)
    source, aligned = unit(text), exactly(alignment, text)
    shift = alignment.shift.numpy()
    phi = (source * aligned).sum(1).mean()
    bound = np.linalg.norm(source + shift, axis=1).mean() - shift @ aligned.mean(0)
    assert phi <= bound + 1e-12


def test_the_centroid_step_meets_the_image_mean(make, text, image) -> None:
    """Exactly before the last projection, within the length of the step after it."""
    alignment = fitted(make, text, image)
    if not isinstance(alignment, RecentredMap):
        return
    before = moments_of_transformed([text], alignment.move).mean
    after = moments_of_transformed([text], alignment.transform).mean
    target = alignment.target_mean.numpy()
    assert np.abs(before - target).max() < 1e-12
    step = float((alignment.target_mean - alignment.centroid).norm())
    assert np.linalg.norm(after - target) <= step + 1e-12


# --- on disk, in a module, and refused


def test_a_saved_map_gives_the_same_bits(make, name, text, image, tmp_path) -> None:
    alignment = fitted(make, text, image)
    save_alignment(alignment, tmp_path)
    again = load_alignment(tmp_path)
    assert type(again) is method(name)
    assert (again.options(), again.is_random) == (alignment.options(), alignment.is_random)
    same_bits(alignment, again)
    assert torch.equal(applied(alignment, text), applied(again, text))
    rows = torch.tensor(image)
    assert torch.equal(alignment.forward_images(rows), again.forward_images(rows))


def test_noise_of_the_user_is_saved_with_the_map(make, text, image, tmp_path) -> None:
    alignment = fitted(make, text, image)
    if not alignment.is_random:
        alignment.add_noise(GaussianNoise(variance=0.01, seed=7))
    save_alignment(alignment, tmp_path)
    assert torch.equal(applied(alignment, text), applied(load_alignment(tmp_path), text))


def test_casting_a_module_moves_a_map_but_never_rounds_it(make, text, image) -> None:
    alignment = fitted(make, text, image)
    before = {name: buffer.clone() for name, buffer in alignment.state_dict().items()}
    torch.nn.ModuleList([alignment]).half().to(torch.bfloat16)
    for name, buffer in alignment.state_dict().items():
        assert buffer.dtype == before[name].dtype
        assert torch.equal(buffer, before[name])


@pytest.mark.parametrize("value", [np.nan, np.inf, 0.0])
def test_rows_without_direction_are_refused(make, text, image, value) -> None:
    alignment = fitted(make, text, image)
    rows = torch.tensor(text).repeat(2, 1)
    rows[300] = value
    with pytest.raises(ValueError, match=r"1 of .* rows have no direction .* row 300"):
        alignment(rows, keys_of(alignment, 400))
    with pytest.raises(ValueError, match=r"1 of .* rows have no direction .* row 300"):
        alignment.forward_images(rows)


def test_another_width_is_refused(make, text, image) -> None:
    alignment = fitted(make, text, image)
    narrow = torch.tensor(text[:, :5].copy())
    with pytest.raises(ValueError, match=r"\(200, 5\) given to an alignment of width 8"):
        alignment(narrow, keys_of(alignment, ROWS))
    with pytest.raises(ValueError, match=r"\(200, 5\) given to an alignment of width 8"):
        alignment.forward_images(narrow)
    with pytest.raises(ValueError, match="source rows have width 5, target rows 8"):
        fitted(make, text[:, :5], image)


def test_an_unfitted_map_refuses_rows(make, text) -> None:
    with pytest.raises(ValueError, match="not fitted"):
        make()(torch.tensor(text), row_keys(["x"] * ROWS, 0))
    with pytest.raises(ValueError, match="not fitted"):
        make().forward_images(torch.tensor(text))


def test_one_row_is_not_a_distribution(make, text, image) -> None:
    with pytest.raises(ValueError, match="from 1 source and 200"):
        fitted(make, text[:1], image)


def test_a_method_of_pairs_refuses_sides_of_different_length(make, text, image) -> None:
    if make().needs_pairs:
        with pytest.raises(ValueError, match="190 texts and 200 images are to be pairs"):
            fitted(make, text[:190], image)
    else:
        fitted(make, text[:190], image)


def tolerance(alignment: AlignmentMap) -> float:
    """Rounding of the fit: an inverse root of a covariance enlarges it."""
    return 1e-12 if alignment.second_moments == "trace" else 1e-10
