"""What a run was made from is recorded, and a change is noticed."""

import pytest

from revision.training.provenance import claim_inputs, input_digests, provenance


def test_a_digest_follows_the_content_not_the_name(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    for path in (one, two):
        path.mkdir()
        (path / "header.json").write_text("{}")
    same = input_digests({"a": one, "b": str(two), "c": None})
    assert set(same) == {"a", "b"}
    assert same["a"] == same["b"]
    (two / "header.json").write_text("{ }")
    assert input_digests({"b": two})["b"] != same["b"]


def test_an_input_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"data\.shards=\S+ does not exist"):
        input_digests({"data.shards": tmp_path / "absent"})


def test_a_changed_input_is_refused(tmp_path):
    claim_inputs(tmp_path, {"data.shards": "1", "start_from": "2"})
    claim_inputs(tmp_path, {"data.shards": "1", "start_from": "2"})
    with pytest.raises(ValueError, match="start_from changed since"):
        claim_inputs(tmp_path, {"data.shards": "1", "start_from": "3"})


def test_provenance_names_versions_and_config():
    card = provenance({"seed": 0}, {"data.shards": "1"})
    assert card["config"] == {"seed": 0}
    assert card["inputs"] == {"data.shards": "1"}
    assert set(card["versions"]) == {"torch", "transformers", "lightning"}
