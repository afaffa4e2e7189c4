from itertools import pairwise

import numpy as np
import pytest
import torch

from revision.alignment.aniso.polar import radial_quantiles
from revision.alignment.base import Cloud
from revision.alignment.methods.aniso_init import AnisoInit
from revision.alignment.moments import moments_of, unit_rows
from revision.alignment.storage import load_alignment, save_alignment
from tests.alignment.numbers import numbers_of


def fitted(text: np.ndarray, image: np.ndarray, **options) -> AnisoInit:
    alignment = AnisoInit(**{"rank": 8, **options})
    alignment.fit(Cloud.of(text), Cloud.of(image))
    return alignment


def unit(rows: np.ndarray) -> torch.Tensor:
    return torch.tensor(unit_rows(rows))


def test_block_radii_have_the_image_quantiles_on_the_fitting_set(text, image):
    """129 rows, 33 levels: levels are order statistics, so the law is exact."""
    alignment = fitted(text[:129], image[:129], num_quantiles=33)
    (radii, _), _ = alignment.initial(unit(text[:129]))
    wanted = alignment._polar(unit(image[:129])).radii
    found = radial_quantiles(radii, 33), radial_quantiles(wanted, 33)
    assert (found[0] - found[1]).abs().max() < 1e-13


def test_phases_are_those_of_the_shifted_texts(text, image):
    alignment = fitted(text, image)
    rows = unit(text)
    (_, phases), _ = alignment.initial(rows.clone())
    shifted = rows - alignment.source_mean + alignment.target_mean
    pairs = (shifted @ alignment.basis).reshape(len(rows), 4, 2)
    assert (phases - torch.atan2(pairs[..., 1], pairs[..., 0])).abs().max() < 1e-12


def test_outside_the_frame_the_images_scales_are_applied_and_nothing_enters_the_frame(text, image):
    alignment = fitted(text, image)
    rows, basis = unit(text), alignment.basis
    project = torch.eye(24, dtype=torch.float64) - basis @ basis.T
    outside = [(unit(r) @ project).std(0, correction=0) for r in (text, image)]
    assert torch.allclose(alignment.residual_scale, outside[1] / outside[0], rtol=1e-9)
    _, residual = alignment.initial(rows.clone())
    centred = (rows - rows.mean(0)) @ project * alignment.residual_scale
    assert (residual - (centred + unit(image).mean(0)) @ project).abs().max() < 1e-12
    assert (residual @ basis).abs().max() < 1e-14


@pytest.mark.parametrize("options", [{}, {"rotation": "haar"}, {"rank": 24}])
def test_equal_clouds_give_the_identity(text, options):
    alignment = fitted(text, text, **options)
    moved = alignment.transform(unit(text))
    assert (moved - unit(text)).abs().max() < 1e-9


def test_signs_of_eigenvectors_do_not_matter(text, image):
    alignment = fitted(text, image)
    before = alignment.transform(unit(text))
    alignment.basis = alignment.basis * torch.tensor([1.0, -1, -1, 1, 1, 1, -1, -1]).double()
    assert (alignment.transform(unit(text)) - before).abs().max() < 1e-13


def test_a_full_frame_turns_with_the_rows(text, image):
    """Outside the frame scales go coordinate by coordinate, so this needs rank = width."""
    generator = np.random.default_rng(0)
    rotation = np.linalg.qr(generator.standard_normal((24, 24)))[0]
    rows = unit_rows(text), unit_rows(image)
    plain = fitted(*rows, rank=24).transform(unit(text))
    turned = fitted(*(r @ rotation for r in rows), rank=24).transform(unit(text) @ rotation)
    assert (turned - plain @ torch.tensor(rotation)).abs().max() < 1e-9


def test_a_row_depends_on_itself_alone(text, image):
    alignment = fitted(text, image)
    rows = torch.tensor(text)
    together = alignment(rows)
    assert torch.equal(alignment(rows[7:8]), together[7:8])
    assert torch.equal(alignment(rows[100:217]), together[100:217])


def test_fit_does_not_depend_on_batches(text, image):
    parts = np.array_split(text, 7)
    apart = AnisoInit(rank=8)
    apart.fit(Cloud(moments_of(parts, second="covariance"), lambda: parts), Cloud.of(image))
    whole = fitted(text, image)
    assert torch.equal(apart(torch.tensor(text)), whole(torch.tensor(text)))


def test_phi_stays_below_its_bound_and_the_gap_is_small(text, image):
    alignment = fitted(text, image)
    numbers = numbers_of(alignment, text)
    assert numbers.phi < numbers.phi_bound
    step = float((alignment.target_mean - alignment.centroid).norm())
    assert numbers.in_sample_gap <= step


def test_haar_follows_its_seed_and_keeps_the_subspace(text, image):
    plain, one, other = (
        fitted(text, image, **o)
        for o in ({}, {"rotation": "haar", "seed": 1}, {"rotation": "haar", "seed": 2})
    )
    projectors = [a.basis @ a.basis.T for a in (plain, one, other)]
    assert all((a - b).abs().max() < 1e-13 for a, b in pairwise(projectors))
    assert not torch.allclose(one(torch.tensor(text)), other(torch.tensor(text)))


def test_quantiles_come_from_at_most_max_rows(text, image):
    alignment = fitted(text, image, max_rows=20, num_quantiles=5)
    radii = alignment._polar(unit(image)).radii
    chosen = [i for i in range(170) if i * 20 // 170 != (i - 1) * 20 // 170]
    assert torch.equal(alignment.target_quantiles, radial_quantiles(radii[chosen], 5))


def test_the_default_rank_is_the_even_part_of_a_small_width(text, image):
    alignment = AnisoInit()
    alignment.fit(Cloud.of(text[:, :23]), Cloud.of(image[:, :23]))
    assert alignment.basis.shape == (23, 22)


def test_saved_and_loaded_it_gives_the_same_bits(text, image, tmp_path):
    alignment = fitted(text, image, rotation="haar")
    save_alignment(alignment, tmp_path)
    rows = torch.tensor(text)
    assert torch.equal(load_alignment(tmp_path)(rows), alignment(rows))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 7}, "rank is 7: .* in pairs"),
        ({"rank": 0}, "rank is 0"),
        ({"num_quantiles": 1}, "num_quantiles is 1"),
        ({"epsilon": 0.0}, "not 0.0"),
    ],
)
def test_options_that_cannot_work_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        AnisoInit(**options)


def test_a_rank_beyond_the_width_is_refused(text, image):
    with pytest.raises(ValueError, match="rank 26 does not fit rows of width 24"):
        fitted(text, image, rank=26)


def test_too_few_rows_for_the_frame_are_refused(text, image):
    with pytest.raises(ValueError, match=r"6 text and 5 image rows span at most 9 .* has 10"):
        fitted(text[:6], image[:5], rank=10)
