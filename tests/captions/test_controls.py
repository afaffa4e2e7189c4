"""The options: what cannot be meant is refused, and what is recorded is what changes something."""

import dataclasses

import pytest
from omegaconf import OmegaConf

from revision.captions import Controls
from revision.config import CONF_DIR


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_samples": 0}, "num_samples must be at least 1 or null, got 0"),
        ({"max_caption_words": -1}, "max_caption_words must be at least 1"),
        ({"caption_length": "tiny"}, "short, medium, long or .*, got 'tiny'"),
        ({"caption_length": [4]}, r"caption_length is \[low, high\].*got \[4\]"),
        ({"caption_length": [None, None]}, "one of them may be null"),
        ({"caption_length": [5, 4]}, r"caption_length=\[5, 4\] holds nothing"),
        ({"caption_characters": [3, 2]}, "caption_characters=.* holds nothing"),
        ({"dedup": "fuzzy"}, "dedup is exact, near or null, got 'fuzzy'"),
        ({"dedup_threshold": 0}, "dedup_threshold is above 0"),
        ({"dedup_shingle": 0}, "dedup_shingle must be at least 1"),
        ({"languages": "en"}, r"a list of codes such as \[en, de\], got 'en'"),
        ({"languages": []}, "a list of codes"),
        ({"language_confidence": 0}, "a probability above 0, got 0"),
    ],
)
def test_refusals(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Controls(**options)


def test_only_what_changes_something_is_recorded() -> None:
    assert Controls().active() == {}
    assert Controls(dedup="exact").active() == {"dedup": "exact"}
    near = {"dedup": "near", "dedup_threshold": 0.8, "dedup_shingle": 5}
    assert Controls(dedup="near").active() == near
    options = {"caption_length": [None, 4], "languages": ["en"], "language_confidence": 0.1}
    assert Controls(**options).active() == options
    assert Controls(**Controls(**options).active()) == Controls(**options)


def test_the_shipped_file_names_every_option_with_its_default() -> None:
    leaf = OmegaConf.to_container(OmegaConf.load(CONF_DIR / "data" / "captions.yaml"))
    assert isinstance(leaf, dict)
    assert leaf.pop("_target_") == "revision.captions.Controls"
    assert leaf == {field.name: field.default for field in dataclasses.fields(Controls)}
