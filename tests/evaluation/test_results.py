"""The results table: exact schema, later value wins, no half-written file, spread over seeds."""

import json
import statistics

import pytest

from revision.evaluation.metrics import Score
from revision.evaluation.results import (
    Row,
    merge,
    over_seeds,
    read_results,
    rows_of,
    write_results,
)

ROW = Row("realign", "pretrain", 0, "test", "token_loss", 2.5)


def test_rows_survive_the_file_with_exactly_the_six_fields(tmp_path):
    write_results(tmp_path / "results.json", [ROW])
    assert read_results(tmp_path / "results.json") == [ROW]
    [entry] = json.loads((tmp_path / "results.json").read_text())
    assert list(entry) == ["setting", "stage", "seed", "split", "metric", "value"]


def test_merging_twice_changes_nothing_and_a_new_value_replaces_the_old():
    other = Row("none", "pretrain", 0, "test", "token_loss", 3.0)
    assert merge([ROW, other], [other]) == [ROW, other]
    newer = Row("realign", "pretrain", 0, "test", "token_loss", 2.0)
    assert merge([ROW, other], [newer]) == [newer, other]


def test_a_score_takes_three_rows():
    rows = rows_of({"m": Score(2.0, 1.0, 3.0, 9)}, setting="s", stage="t", seed=1, split="u")
    assert [(row.metric, row.value) for row in rows] == [("m", 2), ("m_low", 1), ("m_high", 3)]


def test_a_failed_write_keeps_the_old_table(tmp_path):
    path = tmp_path / "results.json"
    write_results(path, [ROW])
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_results(path, [ROW, Row("x", "y", 0, "z", "loss", float("nan"))])
    assert read_results(path) == [ROW]
    assert [file.name for file in tmp_path.iterdir()] == ["results.json"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[{", "is not JSON"),
        ('{"a": 1}', "holds a dict, a list of rows"),
        ('[{"setting": "a"}]', "row 0 is .* its fields must be"),
    ],
)
def test_what_is_no_table_is_refused(tmp_path, text, message):
    path = tmp_path / "results.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_results(path)


def test_spread_is_the_sample_standard_deviation_over_seeds():
    rows = [Row("a", "b", seed, "test", "m", value) for seed, value in enumerate([1.0, 2.0, 4.0])]
    spreads = over_seeds([*rows, ROW])
    spread = spreads[("a", "b", "test", "m")]
    assert (spread.mean, spread.num_seeds) == (7 / 3, 3)
    assert spread.std == pytest.approx(statistics.stdev([1, 2, 4]))
    assert spreads[("realign", "pretrain", "test", "token_loss")].std is None
