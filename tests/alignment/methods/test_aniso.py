import json
import math
from itertools import pairwise

import numpy as np
import pytest
import torch

from revision.alignment.base import Cloud
from revision.alignment.methods.aniso import AnisoAlign
from revision.alignment.methods.aniso_init import AnisoInit
from revision.alignment.moments import unit_rows
from revision.alignment.storage import load_alignment, read_card, save_alignment
from tests.alignment.numbers import numbers_of

SMALL = {
    "rank": 8,
    "neighbours": 2,
    "width": 32,
    "depth": 2,
    "training": {"prior_steps": 30, "refine_steps": 30, "batch": 64},
}


def fitted(text: np.ndarray, image: np.ndarray, **options) -> AnisoAlign:
    alignment = AnisoAlign(**{**SMALL, **options})
    alignment.fit(Cloud.of(text), Cloud.of(image))
    return alignment


def wild(alignment: AnisoAlign) -> AnisoAlign:
    """As if training had driven every output of g_eta far out."""
    generator = torch.Generator().manual_seed(0)
    alignment.refiner = 5 * torch.randn(len(alignment.refiner), generator=generator)
    return alignment


@pytest.fixture
def aniso(text, image) -> AnisoAlign:
    return fitted(text, image)


def test_untrained_it_is_aniso_init_bit_for_bit(text, image):
    untrained = fitted(text, image, training={"prior_steps": 0, "refine_steps": 0})
    initial = AnisoInit(rank=8)
    initial.fit(Cloud.of(text), Cloud.of(image))
    rows = torch.tensor(text)
    assert torch.equal(untrained(rows), initial(rows))
    assert torch.equal(untrained.centroid, initial.centroid)


def test_training_changes_the_map(text, image, aniso):
    initial = AnisoInit(rank=8)
    initial.fit(Cloud.of(text), Cloud.of(image))
    rows = torch.tensor(text)
    assert aniso.history["stage_two"]["kept_step"] > 0
    assert (aniso(rows) - initial(rows)).abs().max() > 1e-5


def test_refinement_stays_within_its_bounds(text, aniso):
    alignment = wild(aniso)
    alignment.bounds = type(alignment.bounds)(phase=0.2, radius=0.3, residual=0.05)
    polar, residual = alignment.initial(torch.tensor(unit_rows(text)))
    refined, moved = alignment.refined(polar, residual)
    turns, stretches = (refined.phases - polar.phases).abs(), refined.radii / polar.radii
    assert 0.1 < turns.max() <= 0.2 + 1e-12
    assert math.exp(-0.3) - 1e-12 <= stretches.min() and stretches.max() <= math.exp(0.3) + 1e-12
    assert stretches.min() < math.exp(-0.29) and stretches.max() > math.exp(0.29)
    outside = moved - residual
    assert (outside @ alignment.basis).abs().max() < 1e-13
    assert 0 < outside.norm(dim=1).max() <= 0.05 * math.sqrt(24)


def test_frame_coordinates_move_by_kappa_of_their_length_at_most(text, aniso):
    """kappa(0.2, 0.2) = 0.3126: a turn of 0.2 with a stretch of exp(0.2)."""
    alignment = wild(aniso)
    polar, residual = alignment.initial(torch.tensor(unit_rows(text)))
    refined, _ = alignment.refined(polar, residual)
    kappa = math.sqrt((math.exp(0.2) - 1) ** 2 + 4 * math.exp(0.2) * math.sin(0.1) ** 2)
    blocks = [torch.polar(p.radii, p.phases) for p in (polar, refined)]
    moved = (blocks[1] - blocks[0]).abs().norm(dim=1) / blocks[0].abs().norm(dim=1)
    assert kappa == pytest.approx(0.3126, abs=1e-4)
    assert 0.1 < moved.max() <= kappa + 1e-12


def test_cosines_move_by_the_bound_of_the_measured_perturbation(text, aniso):
    """|<z_i, z_j> - <y_i, y_j>| <= 4 e / (1 - e), for the states before and after refinement."""
    polar, residual = aniso.initial(torch.tensor(unit_rows(text)))
    before = aniso._assembled(polar, residual)
    after = aniso._assembled(*aniso.refined(polar, residual))
    share = float(((after - before).norm(dim=1) / before.norm(dim=1)).max())
    z, y = (torch.nn.functional.normalize(rows) for rows in (after, before))
    assert 0 < share < 1
    assert (z @ z.T - y @ y.T).abs().max() <= 4 * share / (1 - share)


def test_one_seed_gives_one_map_another_seed_another(text, image, aniso):
    state = torch.get_rng_state()
    again, other = fitted(text, image), fitted(text, image, seed=1)
    rows = torch.tensor(text)
    assert torch.equal(aniso(rows), again(rows)) and not torch.equal(aniso(rows), other(rows))
    assert torch.equal(state, torch.get_rng_state())


def test_a_row_depends_on_itself_alone(text, image):
    """A width at which an incomplete tile of rows would round differently."""
    alignment = fitted(text, image, width=200, training={"prior_steps": 0, "refine_steps": 0})
    alignment.refiner = wild(alignment).refiner / 50  # far from the flat ends of tanh
    rows = torch.tensor(text)
    together = alignment.refined(*alignment.initial(torch.tensor(unit_rows(text))))[0].phases
    for start, stop in ((7, 8), (3, 12), (100, 217)):
        part = alignment.initial(torch.tensor(unit_rows(text))[start:stop])
        assert torch.equal(alignment.refined(*part)[0].phases, together[start:stop])
        assert torch.equal(alignment(rows[start:stop]), alignment(rows)[start:stop])


def test_saved_and_loaded_it_gives_the_same_bits(text, aniso, tmp_path):
    save_alignment(aniso, tmp_path)
    loaded = load_alignment(tmp_path)
    assert torch.equal(loaded(torch.tensor(text)), aniso(torch.tensor(text)))
    assert loaded.options() == aniso.options()
    assert read_card(tmp_path)["history"] == aniso.history


def test_casting_a_module_around_it_does_not_round_its_parameters(text, aniso):
    before = aniso(torch.tensor(text))
    torch.nn.ModuleList([aniso]).half()
    assert aniso.refiner.dtype == torch.float32 and aniso.basis.dtype == torch.float64
    assert torch.equal(aniso(torch.tensor(text)), before)


def test_only_the_refinement_is_kept_of_the_training(aniso):
    widths = aniso._refiner(torch.device("cpu")).mlp.widths
    assert widths == (3 * 4 + 24, 32, 32, 2 * 4 + 24)
    sizes = {name: tensor.numel() for name, tensor in aniso.state_dict().items()}
    assert sizes["refiner"] == sum((i + 1) * o for i, o in pairwise(widths))
    assert set(sizes) == set(AnisoAlign.buffer_names)


def test_history_holds_curves_seconds_and_the_strength_of_the_prior(aniso):
    history = json.loads(json.dumps(aniso.history))
    for stage in ("stage_one", "stage_two"):
        curves = history[stage]
        assert curves["step"] == list(range(1, 31)) and curves["seconds"] > 0
        assert len(curves["loss"]) == len(curves["unseen"]) == 30
    assert {"score", "phase_differences", "proximal"} <= history["stage_two"].keys()
    assert history["phase_prior"]["coupling"] >= 0
    assert history["potential"].keys() == {"images", "initial", "refined"}


def test_phi_stays_below_its_bound(text, aniso):
    numbers = numbers_of(aniso, text)
    assert numbers.phi < numbers.phi_bound


def test_too_few_blocks_for_the_graph_are_refused(text, image):
    with pytest.raises(ValueError, match=r"4 blocks, too few for 4 neighbours each; .* to 10"):
        fitted(text, image, neighbours=4)


def test_a_misspelt_number_is_refused():
    with pytest.raises(ValueError, match="Training has no step"):
        AnisoAlign(training={"step": 3})


def test_a_network_without_layers_is_refused():
    with pytest.raises(ValueError, match="depth 0"):
        AnisoAlign(depth=0)
