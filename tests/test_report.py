"""The report: tables and figures say what the rows say, and the page needs no other file."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from revision.config import compose
from revision.evaluation.metrics import Score
from revision.evaluation.results import Row, over_seeds, read_results, write_results
from revision.report.figures import _whisker, colours, score_figure
from revision.report.html import Answer, Picture, Report, Section, thumbnail, write_report
from revision.report.labels import (
    base_lines,
    condition,
    metric_of,
    result_rows,
    select_settings,
)
from revision.report.page import (
    answer_section,
    gap_section,
    gap_tile,
    loss_section,
    score_section,
    score_tile,
)
from revision.report.tables import markdown, results_table
from scripts import results_table as script

SCORES = {
    "real": {"token_loss": Score(2.5, 2.4, 2.6, 9), "choice_accuracy": Score(0.5, 0.4, 0.6, 9)},
    "zero": {"token_loss": Score(3.0, 2.9, 3.1, 9)},
    "chance": {"choice_accuracy": Score(0.25, 0.25, 0.25, 9)},
}
ROWS = [
    *result_rows(SCORES, setting="realign", stage="pretrain", seed=0, split="test"),
    Row("none", "pretrain", 0, "test", "token_loss", 2.8),
]
PNG = b"\x89PNG\r\n\x1a\n"


def seeds(*values):
    return [Row("a", "sft", i, "test", "choice_accuracy", v) for i, v in enumerate(values)]


def png_size(png):
    return int.from_bytes(png[16:20], "big"), int.from_bytes(png[20:24], "big")


def test_one_seed_shows_its_interval_and_several_their_spread():
    table = results_table(ROWS, ["token_loss"])
    assert table.body[0] == ["pretrain", "realign", "2.500 [2.400, 2.600]"]
    assert results_table(ROWS, ["token_loss"], intervals=False).body[0][2] == "2.500"
    assert results_table(seeds(0.2, 0.3, 0.4)).body == [["sft", "a", "30.0 ± 10.0"]]


def test_blind_and_chance_are_lines_of_their_own_and_missing_cells_are_empty():
    table = results_table(ROWS)
    assert [line[1] for line in table.body] == ["realign", "realign (blind)", "chance", "none"]
    assert table.body[2] == ["pretrain", "chance", "", "25.0"]
    assert base_lines(ROWS) == [("realign", "pretrain", "test"), ("none", "pretrain", "test")]


def test_markdown_has_one_cell_per_column_and_a_rule():
    lines = markdown(results_table(ROWS)).splitlines()
    assert len(lines) == 2 + 4
    assert set(lines[1]) <= set("|- ")
    assert {line.count("|") for line in lines} == {5}


def test_several_splits_are_told_apart():
    rows = [*seeds(0.5), Row("a", "sft", 0, "val", "choice_accuracy", 0.7)]
    table = results_table(rows)
    assert table.header[:3] == ["Stage", "Setting", "Split"]
    assert [line[2:] for line in table.body] == [["test", "50.0"], ["val", "70.0"]]


def test_settings_are_selected_with_their_blind_rows_in_the_order_given():
    chosen = select_settings(ROWS, ["none", "realign"])
    order = ["none", "realign", condition("realign", "zero"), "chance"]
    assert list(dict.fromkeys(row.setting for row in chosen)) == order
    with pytest.raises(ValueError, match=r"no rows of \['nobody'\]; the file has"):
        select_settings(ROWS, ["nobody"])


def test_whiskers_are_the_interval_of_one_seed_and_the_deviation_of_several():
    one = _whisker(over_seeds(ROWS), ("realign", "pretrain", "test", "token_loss"))
    assert one == pytest.approx((2.5, 0.1, 0.1))
    several = _whisker(over_seeds(seeds(0.2, 0.3, 0.4)), ("a", "sft", "test", "choice_accuracy"))
    assert several == pytest.approx((0.3, 0.1, 0.1))


def test_figures_are_pngs_that_grow_with_what_they_show():
    one, two = score_figure(ROWS, ["token_loss"]), score_figure(ROWS)
    assert one.startswith(PNG)
    assert png_size(two)[0] > png_size(one)[0]
    assert score_figure(ROWS) == two
    with pytest.raises(ValueError, match="0 settings to draw"):
        score_figure([row for row in ROWS if row.setting == "chance"])


def test_settings_have_different_colours():
    names = ["realign", "none", "mine", "yours", "mean_shift", "paired"]
    palette = colours(names)
    assert len({palette[name] for name in names}) == len(names)


def test_an_unknown_metric_is_shown_under_its_own_name():
    assert metric_of("speed").show(1234.5) == "1234.5000"
    assert metric_of("speed").title == "speed"


class Addresses(HTMLParser):
    def __init__(self):
        super().__init__()
        self.found, self.tags = [], []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.found += [value for name, value in attributes if name in ("src", "href")]


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """What align.py, train.py and scripts/evaluate.py leave, in miniature."""
    (tmp_path / "align" / "figures").mkdir(parents=True)
    held_out = {"raw_gap": 0.7, "gap": 0.1, "floor": 0.08, "ratio": 1.25}
    gap = {"raw_gap": 0.6, "in_sample_gap": 0.05, "held_out": held_out}
    (tmp_path / "align" / "report.json").write_text(json.dumps({"summary": gap}))
    Image.new("RGB", (40, 20)).save(tmp_path / "align" / "figures" / "gap.png")
    curve = "step,metric,value\n1,train/loss,3.0\n2,train/loss,2.5\n2,val/loss,2.75\n"
    (tmp_path / "metrics.csv").write_text(curve)
    Image.new("RGB", (900, 30), "red").save(tmp_path / "red.png")
    for name in ("before", "after"):
        (tmp_path / name).mkdir()
        lines = [
            {
                "record_id": str(i),
                "visual": visual,
                "prompt": "What is it?",
                "text": f"{name} <b>{i}</b>" if visual == "real" else "dark",
                "reference": "red & wide",
                "images": ["red.png"],
            }
            for visual in ("real", "zero")
            for i in range(10)
        ]
        content = "".join(json.dumps(line) + "\n" for line in lines)
        (tmp_path / name / "predictions.jsonl").write_text(content)
    return tmp_path


def page(run_dir: Path) -> str:
    evaluations = {"before": run_dir / "before", "after": run_dir / "after"}
    sections = [
        gap_section({"realign": run_dir / "align"}),
        loss_section({"Stage 1": {"realign": run_dir / "metrics.csv"}}),
        score_section(ROWS),
        answer_section(evaluations, image_root=run_dir, count=4),
    ]
    tiles = [
        gap_tile(run_dir / "align"),
        score_tile(ROWS, "realign", "pretrain", "token_loss"),
    ]
    report = Report("A run", "What happened.", sections, tiles, {"Commit": "abc <1>"})
    return write_report(run_dir / "report.html", report).read_text()


def test_the_page_needs_no_other_file(run_dir):
    parser = Addresses()
    parser.feed(page(run_dir))
    assert len(parser.found) == 3 + 4
    assert all(address.startswith("data:image/") for address in parser.found)
    assert not {"script", "link", "iframe"} & set(parser.tags)


def test_text_of_models_and_captions_cannot_become_markup(run_dir):
    text = page(run_dir)
    assert "after &lt;b&gt;0&lt;/b&gt;" in text
    assert "red &amp; wide" in text
    assert "<b>" not in text


def test_the_page_says_the_numbers_of_the_run(run_dir):
    text = re.sub(r"data:image/[^\"]+", "", page(run_dir))
    assert "0.70 → 0.10" in text
    assert "<td>0.080</td><td>1.25</td>" in text
    assert "none 2.800, realign (blind) 3.000" in text
    assert "2.500 [2.400, 2.600]" in text


def test_sample_answers_are_spread_and_saw_the_real_picture(run_dir):
    evaluations = {"before": run_dir / "before", "after": run_dir / "after"}
    section = answer_section(evaluations, image_root=run_dir, count=5)
    shown = [re.findall(r"\d", answer.said["after"])[0] for answer in section.answers]
    assert shown == ["0", "2", "4", "6", "8"]
    assert section.answers[0].said == {"before": "before <b>0</b>", "after": "after <b>0</b>"}


def test_a_gap_that_was_not_held_out_says_so(run_dir):
    path = run_dir / "align" / "report.json"
    gap = {"raw_gap": 0.6, "in_sample_gap": 0.05, "held_out": None}
    path.write_text(json.dumps({"summary": gap}))
    tile = gap_tile(run_dir / "align")
    assert (tile.number, tile.note) == (
        "0.60 → 0.05",
        "centroid distance, the rows it was fitted on",
    )


def test_a_tile_without_its_row_is_refused():
    with pytest.raises(ValueError, match="no token_loss of paired after sft; there is"):
        score_tile(ROWS, "paired", "sft", "token_loss")


def test_thumbnails_are_small_and_keep_their_shape():
    content = thumbnail(Image.new("RGB", (1200, 600), "red"))
    assert content.startswith(b"\xff\xd8")
    section = Section("t", answers=[Answer(content, "q", {}, "r")])
    assert len(section.answers[0].image) < 20_000


def test_a_picture_is_never_wider_than_the_page():
    assert Picture(score_figure(ROWS), "alt").width_px <= 1024


def test_the_script_writes_table_and_figure(tmp_path, capsys):
    write_results(tmp_path / "one.json", seeds(0.2, 0.3))
    write_results(tmp_path / "two.json", seeds(0.4, 0.5))
    overrides = [f"input=[{tmp_path}/one.json,{tmp_path}/two.json]", f"output_dir={tmp_path}/out"]
    path = script.run(compose("results_table", overrides))
    assert "45.0 ± 7.1" in path.read_text()
    assert "45.0 ± 7.1" in capsys.readouterr().out
    assert path.with_suffix(".png").read_bytes().startswith(PNG)


def test_the_rows_of_a_sweep_become_one_table_and_one_file(tmp_path: Path) -> None:
    for seed in (0, 1):
        row = Row("realign", "pretrain", seed, "test", "token_loss", 3.0 + seed)
        write_results(tmp_path / f"seed={seed}" / "results.json", [row])
    pattern = f"input='{tmp_path}/*/results.json'"
    places = [f"output_dir={tmp_path}", f"merged={tmp_path / 'all.json'}"]
    table = script.run(compose("results_table", [pattern, *places]))
    assert "3.500 ± 0.707" in table.read_text()
    assert len(read_results(tmp_path / "all.json")) == 2
    with pytest.raises(ValueError, match="no results file at"):
        script.run(compose("results_table", [f"input={tmp_path}/nothing.json", *places]))


def test_a_model_that_is_scored_blind_only_is_no_variant_of_another() -> None:
    score = Score(1.0, 0.5, 1.5, 4)
    named = {"seed": 0, "split": "test", "stage": "pretrain"}
    rows = result_rows({"zero": {"token_loss": score}, "chance": {}}, setting="blind", **named)
    assert {row.setting for row in rows} == {"blind"}
    both = {"zero": {"token_loss": score}, "real": {"token_loss": score}}
    rows = result_rows(both, setting="realign", **named)
    assert {row.setting for row in rows} == {"realign", "realign (blind)"}
