"""The comparison of methods reads held-out numbers, marks what needs pairs, and repeats nothing."""

import json
import sys
from pathlib import Path

import pytest

from revision.config import compose
from revision.studies.methods import Measured, methods_figure, methods_table, read_method
from tests.feature_sets import cloud, write_set

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))
import compare_methods

METHODS = ("none", "realign", "procrustes_oracle")


@pytest.fixture(scope="module")
def compared(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("compared")
    sets = {
        "source": write_set(root / "text", cloud(1, 80, dim=8), "text"),
        "target": write_set(root / "image", cloud(2, 80, dim=8, mean=0.35), "image"),
        "holdout_source": write_set(root / "text_h", cloud(1, 60, dim=8), "text"),
        "holdout_target": write_set(root / "image_h", cloud(2, 60, dim=8, mean=0.35), "image"),
    }
    cfg = compose(
        "compare_methods",
        [
            *(f"{key}={path}" for key, path in sets.items()),
            f"output_dir={root / 'out'}",
            f"methods=[{','.join(METHODS)}]",
            "overrides={realign: ['alignment.trace=false']}",
        ],
    )
    compare_methods.run(cfg)
    compare_methods.run(cfg)
    return root


@pytest.mark.slow
def test_each_method_is_aligned_as_align_py_does_it(compared):
    for name in METHODS:
        assert (compared / "out" / name / "shards" / "header.json").exists()
        assert (compared / "out" / name / "report.html").exists()
    card = json.loads((compared / "out" / "realign" / "alignment" / "alignment.json").read_text())
    assert card["options"]["trace"] is False


@pytest.mark.slow
def test_the_table_has_held_out_numbers_with_intervals(compared):
    table = (compared / "out" / "methods.md").read_text()
    report = json.loads((compared / "out" / "realign" / "report.json").read_text())
    gap = report["held_out"]["after"]["gap"]
    line = next(line for line in table.splitlines() if "realign" in line)
    assert f"{gap['value']:.3f} [{gap['low']:.3f}, {gap['high']:.3f}]" in line
    assert f"{gap['value'] / gap['null']:.2f}" in line
    assert "| procrustes_oracle* " in table and "| none " in table
    assert "paired cosine" in table


def test_unknown_methods_in_overrides_are_refused(compared):
    cfg = compose(
        "compare_methods",
        [
            *(f"{key}=x" for key in ("source", "target", "holdout_source", "holdout_target")),
            "output_dir=y",
            "methods=[none]",
            "overrides={aniso: []}",
        ],
    )
    with pytest.raises(ValueError, match=r"overrides for \['aniso'\]"):
        compare_methods.run(cfg)


def test_in_sample_numbers_do_not_compare_methods(tmp_path):
    (tmp_path / "report.json").write_text(json.dumps({"in_sample": {}, "held_out": None}))
    with pytest.raises(ValueError, match="in-sample numbers only"):
        read_method(tmp_path, "none", needs_pairs=False, cpu_seconds=1.0)


def test_a_number_without_interval_stands_alone():
    numbers = {"gap ↓": (0.5, 0.4, 0.6), "mixing rate, %": (0.25, None, None)}
    table = methods_table([Measured("m", False, numbers, 0.25, 1.5)])
    assert table.body == [["m", "0.500 [0.400, 0.600]", "25.0", "2.00", "1.5"]]


def test_the_figure_is_a_png():
    numbers = {"M_X": (0.5, 0.4, 0.6), "Ω ↑": (1.0, None, None)}
    assert methods_figure([Measured("m", True, numbers, 0.1, 1.0)]).startswith(b"\x89PNG")
