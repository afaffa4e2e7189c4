import hashlib
import json

import pytest
import torch
from safetensors.torch import load, save

from revision.alignment import (
    Cloud,
    MeanShift,
    NoAlignment,
    ReAlign,
    load_alignment,
    save_alignment,
)
from revision.alignment.methods import method, method_names
from revision.alignment.noise import BallNoise, GaussianNoise
from revision.alignment.storage import alignment_digest, read_card

MAPS = (NoAlignment, MeanShift, ReAlign)


def fitted(make, text, image):
    alignment = make()
    alignment.fit(Cloud.of(text), Cloud.of(image))
    return alignment


@pytest.mark.parametrize(
    "make",
    [NoAlignment, lambda: MeanShift(strength=0.3), lambda: ReAlign(mean_precision="float32")],
)
def test_a_loaded_map_gives_the_same_bits(tmp_path, text, image, make):
    alignment = fitted(make, text, image)
    save_alignment(alignment, tmp_path / "map", {"source": {"rows": 1}})
    loaded = load_alignment(tmp_path / "map")
    rows = torch.tensor(text)
    assert torch.equal(loaded(rows), alignment(rows))
    assert type(loaded) is type(alignment)
    assert loaded.options() == alignment.options()
    assert alignment_digest(loaded) == alignment_digest(alignment)
    assert sorted(p.name for p in (tmp_path / "map").iterdir()) == [
        "alignment.json",
        "alignment.safetensors",
    ]


def test_the_card_says_what_was_fitted_on_what(tmp_path, text, image):
    save_alignment(fitted(ReAlign, text, image), tmp_path, {"source": {"rows": 1}})
    card = read_card(tmp_path)
    assert card["name"] == "realign"
    assert card["dim"] == 24
    assert card["statistics"]["source_count"] == 230
    assert card["statistics"]["target_count"] == 170
    assert card["statistics"]["scale"] > 0
    assert card["statistics"]["raw_gap"] > 0
    assert card["provenance"] == {"source": {"rows": 1}}


def test_every_method_is_found_by_its_name():
    assert {"none", "mean_shift", "realign"} <= set(method_names())
    assert all(method(name).name == name for name in method_names())
    for name in ("absent", "../realign", "__init__"):
        with pytest.raises(ValueError, match="unknown alignment"):
            method(name)


def test_digests_tell_maps_apart(text, image):
    digests = {alignment_digest(fitted(cls, text, image)) for cls in MAPS}
    digests.add(alignment_digest(fitted(ReAlign, text[1:], image)))
    assert len(digests) == 4


def test_digests_tell_noises_apart(text, image):
    digests = set()
    for noise in (
        None,
        GaussianNoise(std=0.1),
        GaussianNoise(std=0.1, seed=1),
        BallNoise(radius=0.1),
    ):
        alignment = fitted(MeanShift, text, image)
        alignment.noise = noise
        digests.add(alignment_digest(alignment))
    assert len(digests) == 4


def test_an_unfitted_map_is_not_saved(tmp_path):
    with pytest.raises(ValueError, match="not fitted"):
        save_alignment(ReAlign(), tmp_path)
    assert not list(tmp_path.iterdir())


def test_another_directory_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"not an alignment directory.*align\.py"):
        load_alignment(tmp_path)


def test_damaged_maps_are_refused(tmp_path, text, image):
    save_alignment(fitted(ReAlign, text, image), tmp_path)
    tensors = tmp_path / "alignment.safetensors"
    content = tensors.read_bytes()
    tensors.write_bytes(content[:-8] + bytes(8))
    with pytest.raises(ValueError, match="sha256 differs"):
        load_alignment(tmp_path)
    tensors.write_bytes(content[:40])
    with pytest.raises(ValueError, match="cannot be read"):
        load_alignment(tmp_path)
    tensors.unlink()
    with pytest.raises(ValueError, match="cannot be read"):
        load_alignment(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "other"}, "unknown alignment 'other'; known are .*mean_shift, "),
        ({"schema_version": 7}, "schema version 7, this code reads 1"),
        ({"options": {"slope": 1.0}}, r"does not take the options \{'slope': 1\.0\}"),
        ({"dim": 25}, r"float64 of shape \(24,\), alignment\.json says float64 of shape \(25,\)"),
        ({"name": "mean_shift", "options": {}}, "holds 8 tensors, .* has 6; centroid, scale are"),
    ],
)
def test_cards_of_another_time_are_refused(tmp_path, text, image, change, message):
    save_alignment(fitted(ReAlign, text, image), tmp_path)
    card = tmp_path / "alignment.json"
    card.write_text(json.dumps(json.loads(card.read_text()) | change))
    with pytest.raises(ValueError, match=message):
        load_alignment(tmp_path)


@pytest.mark.parametrize("key", ["name", "options", "dim", "sha256", "provenance"])
def test_incomplete_cards_are_refused(tmp_path, text, image, key):
    save_alignment(fitted(ReAlign, text, image), tmp_path)
    card = tmp_path / "alignment.json"
    content = json.loads(card.read_text())
    del content[key]
    card.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=f"lacks {key}"):
        load_alignment(tmp_path)


def test_a_map_without_one_of_its_tensors_is_refused(tmp_path, text, image):
    save_alignment(fitted(ReAlign, text, image), tmp_path)
    tensors = load((tmp_path / "alignment.safetensors").read_bytes())
    del tensors["scale"]
    content = save(tensors)
    (tmp_path / "alignment.safetensors").write_bytes(content)
    card = tmp_path / "alignment.json"
    changed = json.loads(card.read_text()) | {"sha256": hashlib.sha256(content).hexdigest()}
    card.write_text(json.dumps(changed))
    with pytest.raises(ValueError, match="holds 7 tensors, alignment 'realign' has 8; scale are"):
        load_alignment(tmp_path)


def test_broken_json_is_refused(tmp_path):
    for content, message in (("{", "not readable JSON"), ("[]", "holds a list")):
        (tmp_path / "alignment.json").write_text(content)
        with pytest.raises(ValueError, match=message):
            load_alignment(tmp_path)
