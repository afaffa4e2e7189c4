"""The page says what report.json says, and needs no other file."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from revision.config import compose
from revision.geometry.measure import Split
from revision.report.gap import write_page
from revision.report.gap_terms import CLOUD, GAP, MARGINALS, MIXING, PAIRED, PRESERVATION, shown
from scripts import measure_gap
from tests.feature_sets import cloud, write_set

PNG = b"\x89PNG\r\n\x1a\n"


class Tags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.addresses, self.tags, self.hovers = [], [], []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.addresses += [value for name, value in attributes if name in ("src", "href")]
        self.hovers += [value for name, value in attributes if name == "title"]


@pytest.fixture(scope="module")
def out(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("gap")
    text = write_set(place / "text", cloud(1, 130), "text", encoder={"name": "<b>towers</b>"})
    image = write_set(
        place / "image", cloud(2, 130, mean=0.35), "image", encoder={"name": "<b>towers</b>"}
    )
    options = ["report.bootstrap=10", "report.neighbours=5", "report.rank=6", "alignment=realign"]
    where = [f"source={text}", f"target={image}", f"output_dir={place / 'out'}"]
    return measure_gap.run(compose("measure_gap", [*where, *options]))


@pytest.fixture(scope="module")
def report(out) -> dict:
    return json.loads((out / "report.json").read_text())


@pytest.fixture(scope="module")
def page(out) -> str:
    return re.sub(r"data:image/[^\"]+", "data:image/", (out / "report.html").read_text())


def test_the_page_needs_no_other_file_and_runs_no_script(page):
    parser = Tags()
    parser.feed(page)
    assert parser.addresses == ["data:image/"] * 7
    assert not {"script", "link", "iframe"} & set(parser.tags)


def test_every_figure_is_on_disk_and_on_the_page(out, report):
    names = {"gap", "projection", "spectra", "cosines", "subspaces", "mixing", "energy"}
    assert {Path(figure).stem for figure in report["figures"]} == names
    for figure in report["figures"]:
        assert (out / figure).read_bytes().startswith(PNG)


def test_every_number_has_an_explanation_and_the_page_shows_it(page, report):
    parser = Tags()
    parser.feed(page)
    for term in (*GAP, *CLOUD, *MARGINALS, *MIXING, *PRESERVATION, *PAIRED):
        assert len(term.text) > 15, term.key
        assert any(term.text.split(".")[0] in hover for hover in parser.hovers), term.key
    for key in ("gap", "pmb", "cob", "js_bits", "m_text"):
        number = report["held_out"]["after"][key]
        assert f">{shown(number['value'])}<" in page, key
        assert f"[{shown(number['low'])}, {shown(number['high'])}]" in page, key
    assert f"floor {shown(report['held_out']['after']['gap']['null'])}" in page


def test_every_measured_number_is_on_the_page(report):
    known = {term.key for term in (*GAP, *MARGINALS, *MIXING)}
    before = {k for k, v in report["held_out"]["before"].items() if isinstance(v, dict)}
    assert before - known == {"paired"}
    paired = report["held_out"]["before"]["paired"]
    assert {k for k, v in paired.items() if isinstance(v, dict)} == {t.key for t in PAIRED}
    kept = report["held_out"]["preservation"]
    assert set(kept) == {t.key for t in PRESERVATION}
    image = report["held_out"]["clouds"]["image"]
    assert {k for k, v in image.items() if isinstance(v, dict)} <= {t.key for t in CLOUD}


def test_every_finding_is_on_the_page(page, report):
    for finding in report["verdict"]:
        assert finding["why"].split(",")[0].replace("'", "&#39;") in page, finding
    assert page.count('class="finding"') == len(report["verdict"])


def test_names_from_outside_cannot_become_markup(page):
    assert "&lt;b&gt;towers&lt;/b&gt;" in page
    assert "<b>towers" not in page


def test_an_undefined_number_is_a_dash(out, report, tmp_path):
    report = json.loads(json.dumps(report))
    report["held_out"]["clouds"]["text"]["condition"] |= {"value": None, "low": None, "high": None}
    figures = {Path(f).stem: (out / f).read_bytes() for f in report["figures"]}
    assert ">–<" in write_page(tmp_path / "page.html", report, figures).read_text()


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0.0, "0.0000"),
        (0.12345, "0.1235"),
        (1.2345, "1.234"),
        (123.4, "123.4"),
        (12345.6, "12,346"),
        (2.3e-4, "2.3e-4"),
        (1.5e7, "1.5e7"),
        (None, "–"),
    ],
)
def test_numbers_are_short(number, text):
    assert shown(number) == text


def test_a_split_names_the_clouds_that_it_has():
    rows = cloud(1, 30).astype(float)
    assert list(Split(rows, rows, True).clouds) == ["image", "text"]
