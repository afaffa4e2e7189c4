import json

import numpy as np
import pytest

from revision.alignment.moments import unit_rows
from revision.geometry.coupling import measure_coupling
from revision.geometry.decomposition import decompose, residual_coordinates
from revision.geometry.frame import principal_axes
from revision.geometry.measure import Split, frame_of, measure_split
from revision.geometry.neighbours import mixing, nearest_others, neighbour_overlap
from revision.geometry.options import MeasureOptions
from revision.geometry.spectrum import covariance_of
from tests.feature_sets import cloud

DIM = 12
OPTIONS = MeasureOptions(neighbours=5, rank=4, bootstrap=20)


def rows(seed, count=90, mean=0.5):
    return unit_rows(cloud(seed, count, DIM, mean=mean))


def measured(split, options=OPTIONS):
    return measure_split(split, frame_of(split, options), options)


def values(part):
    """Every number of a comparison, by name."""
    found = {k: v["value"] for k, v in part.items() if isinstance(v, dict) and "value" in v}
    return found | {f"o{o['size']}": o["value"] for o in part["overlaps"]}


def mapped_split(paired=True):
    text, image = rows(1), rows(2)
    moved = unit_rows(text + image.mean(0) - text.mean(0))
    shift = image.mean(0) - text.mean(0)
    return Split(text, image, paired, mapped=moved, fit_noise=0.01, shift=shift)


@pytest.fixture(scope="module")
def found():
    return measured(mapped_split())


def test_equal_clouds_have_nothing_between_them():
    same = rows(1)
    before = measured(Split(same, same[::-1].copy(), False))["before"]
    plain = values(before)
    for zero in ("gap", "pmb", "cob", "g_sigma", "js_bits"):
        assert plain[zero] == pytest.approx(0, abs=1e-9)
    for one in ("c_lambda", "c_lambda_half", "o1", "o8"):
        assert plain[one] == pytest.approx(1)
    assert np.abs(before["angles"]).max() < 1e-4
    pairs = measured(Split(same, same.copy(), True))["before"]
    assert pairs["paired"] is None and pairs["gap"]["null"] < 1e-9
    assert pairs["pmb_share"]["value"] is pairs["cob_share"]["value"] is None


def test_the_parts_of_the_gap_add_up(found):
    for stage in ("before", "after"):
        part, pairs = found[stage], found[stage]["paired"]
        square = part["gap"]["value"] ** 2
        assert part["pmb"]["value"] ** 2 + part["cob"]["value"] ** 2 == pytest.approx(square)
        assert part["pmb_share"]["value"] + part["cob_share"]["value"] == pytest.approx(1)
        centre = pairs["center_discrepancy"]["value"]
        assert pairs["residual_u"]["value"] + pairs["residual_v"]["value"] == pytest.approx(centre)
        assert square + centre == pytest.approx(2 - 2 * pairs["cosine"]["value"])
        assert pairs["r_energy"]["value"] + pairs["rho"]["value"] == pytest.approx(1)


def test_the_floors_of_the_parts_add_up_and_hold_the_noise_of_the_fit(found):
    for stage, noise in (("before", 0.0), ("after", 0.01)):
        floors = {name: found[stage][name]["null"] ** 2 for name in ("gap", "pmb", "cob")}
        assert floors["pmb"] + floors["cob"] == pytest.approx(floors["gap"])
        residual = found[stage]["paired"]["center_discrepancy"]["value"]
        assert floors["gap"] == pytest.approx(residual / 90 + noise)


def test_without_pairs_the_floor_is_that_of_two_samples():
    split = Split(rows(1), rows(2, 60), False)
    found = measured(split)
    assert found["before"]["paired"] is None
    traces = [found["clouds"][name]["trace"]["value"] for name in ("text", "image")]
    expected = traces[0] / 90 + traces[1] / 60
    assert found["before"]["gap"]["null"] ** 2 == pytest.approx(expected)


def test_a_common_rotation_changes_no_number(found):
    turn = np.linalg.qr(np.random.default_rng(0).standard_normal((DIM, DIM)))[0]
    split = mapped_split()
    turned = Split(
        split.text @ turn,
        split.image @ turn,
        True,
        mapped=split.mapped @ turn,
        fit_noise=0.01,
        shift=split.shift @ turn,
    )
    other = measured(turned)
    for stage in ("before", "after"):
        assert values(other[stage]) == pytest.approx(values(found[stage]), abs=1e-7)
    for kept in ("phi", "psi", "omega"):
        assert other["preservation"][kept] == pytest.approx(found["preservation"][kept], abs=1e-7)


def test_the_identity_keeps_everything():
    text, image = rows(1), rows(2)
    split = Split(text, image, True, mapped=text.copy(), shift=image.mean(0) - text.mean(0))
    found = measured(split)
    kept = found["preservation"]
    assert [kept[k]["value"] for k in ("phi", "psi", "omega_10", "omega")] == pytest.approx([1] * 4)
    assert values(found["after"]) == pytest.approx(values(found["before"]))


def test_phi_does_not_exceed_its_bound_and_meets_it_for_a_shift_and_projection(found):
    phi = found["preservation"]["phi"]
    assert phi["value"] == pytest.approx(phi["null"], abs=1e-9)


def test_every_estimate_lies_in_its_interval_and_json_can_hold_it(found):
    def walk(node):
        if isinstance(node, dict):
            if node.get("low") is not None:
                assert node["low"] <= node["value"] <= node["high"], node
            list(map(walk, node.values()))

    walk(found)
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_numbers_of_pairs_stand_under_their_names(found):
    text, image = rows(1), rows(2)
    frame = frame_of(mapped_split(), OPTIONS)
    parts, pairs = decompose(text, image, frame), found["before"]["paired"]
    coupling = measure_coupling(*residual_coordinates(image - text, frame))
    expected = {
        "kappa_u": (parts.inside.kappa, parts.inside.kappa_null),
        "kappa_v": (parts.outside.kappa, parts.outside.kappa_null),
        "anisotropy_u": (parts.inside.anisotropy, 1),
        "anisotropy_v": (parts.outside.anisotropy, 1),
        "spread_angle": (parts.spread_angle, parts.spread_angle_null),
        "concentration": (parts.concentration, None),
        "coupling": (coupling.strength, None),
        "coupling_r2": (coupling.explained, coupling.null),
        "coupling_r2_held_out": (coupling.explained_held_out, coupling.null_held_out),
        "eta_u": (parts.coverage, 4 / DIM),
    }
    for name, (value, null) in expected.items():
        assert pairs[name]["value"] == pytest.approx(value), name
        assert pairs[name]["null"] == pytest.approx(null), name


def test_numbers_of_neighbours_stand_under_their_names():
    text, image, mapped = rows(1), rows(2, 60), rows(3)
    split = Split(text, image, False, mapped=mapped, shift=np.zeros(DIM))
    found = measured(split)
    (pool,) = mixing(image, mapped, (5,))
    expected = {
        "mixing_rate": pool.rate,
        "touched": pool.touched,
        "m_text": pool.penetration,
        "m_image": pool.coverage,
    }
    plain = values(found["after"])
    assert {name: plain[name] for name in expected} == pytest.approx(expected)
    lists = [nearest_others(r, 10) for r in (text, mapped)]
    for name, size in (("omega_10", 10), ("omega", 5)):
        kept = found["preservation"][name]
        assert kept["value"] == pytest.approx(neighbour_overlap(*lists, size).mean()), name
        assert kept["null"] == size / 89


def test_principal_angles_are_degrees_between_the_leading_directions(found):
    axes = [principal_axes(covariance_of(r))[1][:, :4] for r in (rows(1), rows(2))]
    cosines = np.linalg.svd(axes[0].T @ axes[1])[1]
    assert np.cos(np.radians(found["before"]["angles"]))[::-1] == pytest.approx(cosines)


def test_the_phantom_drift_is_that_of_the_first_step(found):
    text, image = rows(1), rows(2)
    scale = np.sqrt(image.var(0).sum() / text.var(0).sum())
    placed = unit_rows(image.mean(0) + scale * (text - text.mean(0)))
    expected = np.linalg.norm(placed.mean(0) - image.mean(0))
    assert found["before"]["phantom_anchor"]["value"] == pytest.approx(expected)
    assert found["before"]["phantom"]["value"] > expected


def test_a_gap_that_depends_on_the_topic_is_told_from_a_common_one():
    topics = unit_rows(np.eye(DIM)[np.arange(200) % 2] * 3 + 0.3 * cloud(3, 200, DIM))
    turned = np.where(np.arange(200)[:, None] % 2, 1, -1) * np.eye(DIM)[5]
    noise = 0.1 * cloud(4, 200, DIM)
    found = {}
    for name, gap in (("common", np.eye(DIM)[5]), ("own", turned + 0.5 * np.eye(DIM)[6])):
        image = unit_rows(topics + gap + noise)
        found[name] = measured(Split(topics, image, True))["before"]["paired"]
    common, own = (found[name]["cluster_cosine"] for name in ("common", "own"))
    assert common["value"] > 0.9 * common["null"]
    assert own["value"] < 0.6 < own["null"]
    assert found["common"]["cluster_gain"]["value"] > 0.1
    gain = found["own"]["cluster_gain"]
    assert gain["value"] != gain["null"]


def test_fewer_rows_than_dimensions_leave_the_condition_open():
    text, image = (unit_rows(cloud(s, 22, 40)) for s in (1, 2))
    found = measured(Split(text, image, False))
    assert found["clouds"]["text"]["condition"]["value"] is None
    assert found["clouds"]["text"]["kappa"]["value"] > 1e4
    json.dumps(found, allow_nan=False)


def test_images_that_a_map_moves_are_a_cloud_of_their_own():
    text, image = rows(1), rows(2)
    moved = [unit_rows(r - r.mean(0)) for r in (text, image)]
    split = Split(text, image, True, mapped=moved[0], moved=moved[1], shift=-text.mean(0))
    found = measured(split)
    assert set(found["clouds"]) == {"image", "text", "mapped", "moved"}
    expected = np.linalg.norm(moved[0].mean(0) - moved[1].mean(0))
    assert found["after"]["gap"]["value"] == pytest.approx(expected)


def test_the_same_rows_give_the_same_numbers_and_another_seed_other_intervals(found):
    assert measured(mapped_split()) == found
    other = measured(mapped_split(), MeasureOptions(neighbours=5, rank=4, bootstrap=20, seed=1))
    assert other["before"]["gap"]["value"] == found["before"]["gap"]["value"]
    assert other["before"]["gap"]["low"] != found["before"]["gap"]["low"]


def test_few_distinct_texts_are_measured_as_far_as_they_go():
    text = rows(1)[np.arange(90) % 3]
    found = measured(Split(text, rows(2), True))
    assert found["before"]["c_lambda"]["value"] is None
    assert found["before"]["paired"]["cluster_cosine"]["value"] is not None
    json.dumps(found, allow_nan=False)


def test_rows_that_are_all_alike_are_refused():
    same = np.tile(rows(1, 1), (90, 1)) + 1e-9
    with pytest.raises(ValueError, match="90 mapped rows are all alike"):
        measured(Split(rows(1), rows(2), True, mapped=same, shift=np.zeros(DIM)))


def test_too_few_rows_are_refused():
    with pytest.raises(ValueError, match="19 text and 90 image rows are too few"):
        measured(Split(rows(1, 19), rows(2), False))
