"""The verdict says what was planted, and says no more of a clean report."""

import copy
from dataclasses import asdict

import numpy as np
import pytest

from revision.alignment.moments import unit_rows
from revision.geometry import findings
from revision.geometry.findings import SEVERITIES, row_findings
from revision.geometry.measure import Split, frame_of, measure_split
from revision.geometry.options import MeasureOptions
from revision.geometry.quality import sample_quality, scan
from revision.geometry.texts import text_quality
from revision.geometry.verdict import verdict
from tests.feature_sets import cloud

DIM = 12
OPTIONS = MeasureOptions(neighbours=5, rank=4, bootstrap=10)


def quality(rows, texts=None, unit_norm=True):
    cosines = unit_rows(rows) @ unit_rows(rows).T
    np.fill_diagonal(cosines, -2)
    ordered = np.sort(cosines, axis=1)[:, ::-1]
    sample = sample_quality(unit_rows(rows), ordered[:, 0], ordered[:, 4])
    return {
        "unit_norm": unit_norm,
        "scan": scan([rows]).to_json(),
        "sample": sample | {"outlier_ids": []},
        "texts": text_quality(texts) if texts else None,
    }


def clean_rows(seed=1, count=150):
    rng = np.random.default_rng(seed)
    return unit_rows(rng.standard_normal((count, DIM)) + 0.5).astype(np.float32)


@pytest.fixture(scope="module")
def clean():
    """A map that carries its held-out texts onto the images, measured without any fault."""
    text, image = (unit_rows(cloud(s, 150, DIM)) for s in (1, 2))
    gap = image[::2].mean(0) - text[::2].mean(0)
    parts = []
    for first in (0, 1):
        y, x = text[first::2], image[first::2]
        parts.append(Split(y, x, True, mapped=unit_rows(y + gap), fit_noise=0.01, shift=gap))
    frame = frame_of(parts[0], OPTIONS)
    fitted, unseen = (measure_split(part, frame, OPTIONS) for part in parts)
    return {
        "alignment": {"name": "mean_shift"},
        "dim": DIM,
        "quality": {"source": quality(clean_rows()), "target": quality(clean_rows(2))},
        "domain": {},
        "seen_before": {"text": 0.0, "image": 0.0},
        "in_sample": fitted,
        "held_out": unseen,
    }


def topics(report, *severities):
    return {f["topic"] for f in verdict(report) if f["severity"] in severities}


def test_a_clean_report_has_no_warning(clean):
    assert topics(clean, "warning", "error") == set()
    assert "rows" in topics(clean, "ok")


def test_every_finding_has_a_number_and_a_reason_and_the_gravest_comes_first(clean):
    report = copy.deepcopy(clean)
    report["held_out"]["preservation"]["phi"]["value"] = 2.0
    found = verdict(report)
    ranks = [SEVERITIES.index(f["severity"]) for f in found]
    assert ranks == sorted(ranks) and ranks[0] == 0
    for finding in found:
        assert any(c.isdigit() for c in finding["sentence"]), finding
        assert len(finding["why"]) > 40, finding


def test_a_missing_hold_out_is_a_warning_only_where_a_map_was_fitted(clean):
    report = clean | {"held_out": None}
    assert "held-out rows" in topics(report, "warning")
    assert "held-out rows" not in topics(report | {"alignment": None}, "warning")


@pytest.mark.parametrize(("times", "severity"), [(1.0, "ok"), (2.0, "notice"), (9.0, "warning")])
def test_the_mapped_gap_is_judged_by_its_floor(clean, times, severity):
    report = copy.deepcopy(clean)
    gap = report["held_out"]["after"]["gap"]
    gap["value"] = times * gap["null"]
    found = next(f for f in verdict(report) if "the map takes" in f["sentence"])
    assert found["severity"] == severity


def test_an_in_sample_gap_of_zero_says_nothing(clean):
    report = copy.deepcopy(clean)
    report["in_sample"]["after"]["gap"]["value"] = 0.0
    assert verdict(report) == verdict(clean)


def test_phi_above_its_bound_is_an_error(clean):
    report = copy.deepcopy(clean)
    phi = report["held_out"]["preservation"]["phi"]
    phi["value"] = phi["null"] + 1e-4
    assert topics(report, "error") == {"preservation"}


def test_another_domain_is_a_warning_where_it_matters_and_a_notice_where_it_does_not(clean):
    raw = clean["held_out"]["before"]["gap"]["value"]
    test = {"distance": 0.5 * raw, "ratio": 9.0, "z": 40.0, "trace_z": 1.0}
    assert "domain" in topics(clean | {"domain": {"held-out text": test}}, "warning")
    small = test | {"distance": 0.01 * raw}
    assert "domain" in topics(clean | {"domain": {"held-out text": small}}, "notice")
    chance = test | {"z": 1.0}
    assert "domain" in topics(clean | {"domain": {"held-out text": chance}}, "ok")


def test_held_out_rows_that_were_fitted_are_found(clean):
    for share, severity in ((0.005, "ok"), (0.05, "notice"), (0.5, "warning")):
        found = topics(clean | {"seen_before": {"text": share}}, severity)
        assert ("held-out rows" in found) == (severity != "ok")


def rows_topics(found):
    return {(f.severity, f.topic) for f in row_findings("text", found)}


def test_each_fault_of_rows_is_found():
    plain = clean_rows()
    assert rows_topics(quality(plain)) == set()

    broken = plain.copy()
    broken[0] = np.nan
    good = quality(plain) | {"scan": scan([broken]).to_json()}
    assert ("warning", "rows") in rows_topics(good)
    broken[:5] = 0
    assert ("error", "rows") in rows_topics(good | {"scan": scan([broken]).to_json()})

    assert ("error", "norms") in rows_topics(quality(plain * 1.5))
    assert ("notice", "norms") in rows_topics(quality(plain * 1.5, unit_norm=False))

    copied = plain.copy()
    copied[:30] = copied[30:60]
    assert ("warning", "copies") in rows_topics(quality(copied))

    constant = plain.copy()
    constant[:, 2] = 0
    assert ("warning", "dimensions") in rows_topics(quality(unit_rows(constant)))

    cone = unit_rows(plain + 10)
    assert ("warning", "dimensions") in rows_topics(quality(cone.astype(np.float32)))


def test_a_few_rows_far_from_the_others_are_outliers():
    rows = clean_rows(3, 300)
    rows[:2] = unit_rows(-rows.mean(0, keepdims=True))
    tight = unit_rows(rows + 3 * np.where(np.arange(300)[:, None] < 2, 0, 1))
    assert ("notice", "outliers") in rows_topics(quality(tight))


def test_faults_of_texts_are_found():
    plain = [("word " * (3 + i % 9)).strip() + str(i) for i in range(200)]
    assert rows_topics(quality(clean_rows(), plain)) == set()
    cut = [" ".join(f"w{j}" for j in range(min(i, 40))) for i in range(1, 201)]
    assert ("warning", "texts") in rows_topics(quality(clean_rows(), cut))
    mixed = plain[:150] + ["слово"] * 50
    assert ("notice", "texts") in rows_topics(quality(clean_rows(), mixed))
    long = [("word " * 60) + str(i) * (i % 7) for i in range(50)]
    assert ("notice", "texts") in rows_topics(quality(clean_rows(), long))


def test_findings_become_json(clean):
    (first,) = findings.clean_rows({"text": clean["quality"]["source"]})
    assert "150 text rows" in first.sentence
    assert not list(findings.clean_rows({}))
    assert set(asdict(first)) == {"severity", "topic", "sentence", "why"}
