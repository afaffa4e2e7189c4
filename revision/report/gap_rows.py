"""The tables of the geometry report about single sets: rows, domains and texts.

Also the pieces that every table of that report is made of.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from revision.geometry.findings import Json
from revision.report.gap_terms import shown
from revision.report.html import Picture

SIDES = {
    "source": "texts",
    "target": "images",
    "holdout_source": "held-out texts",
    "holdout_target": "held-out images",
}


@dataclass(frozen=True)
class Cell:
    """One number: its value, its interval, what it is compared with, and the hover text."""

    value: str
    interval: str = ""
    null: str = ""
    hover: str = ""


@dataclass(frozen=True)
class Line:
    """A row of a table."""

    name: str
    text: str
    cells: Sequence[Cell]


@dataclass(frozen=True)
class Block:
    """A section of the page."""

    title: str
    text: str
    picture: Picture | None = None
    header: Sequence[str] = ()
    lines: Sequence[Line] = ()


def row_blocks(report: Json) -> list[Block]:
    sides = list(report["quality"].items())
    header = [SIDES[side] for side, _ in sides]
    lines = [
        Line(
            name,
            text,
            [Cell(show(quality), hover=f"{name}, {SIDES[side]}") for side, quality in sides],
        )
        for name, text, show in ROWS
    ]
    blocks = [
        Block(
            "The rows themselves",
            "Counts, norms and copies are of every row; the rest is of the sample.",
            None,
            header,
            lines,
        )
    ]
    if report["domain"]:
        blocks.append(_domain_block(report["domain"]))
    texts = [(side, quality["texts"]) for side, quality in sides if quality["texts"]]
    if texts:
        lines = [
            Line(
                name,
                text,
                [Cell(show(found), hover=f"{name}, {SIDES[side]}") for side, found in texts],
            )
            for name, text, show in TEXTS
        ]
        blocks.append(Block("The texts", "", None, [SIDES[side] for side, _ in texts], lines))
    return blocks


def _domain_block(domain: Json) -> Block:
    """Fitting rows against held-out rows of the same modality."""
    lines = [
        Line(name, text, [Cell(shown(test[key]), hover=name) for test in domain.values()])
        for key, name, text in DOMAIN
    ]
    text = (
        "Do these rows come from the distribution that the map was fitted on? Means and traces "
        "are compared with what sampling alone would make them differ by."
    )
    header = [f"{name}s" for name in domain]
    return Block("Other rows against the fitting rows", text, None, header, lines)


def _norms(quality: Json) -> str:
    scan = quality["scan"]
    return f"{scan['norm_min']:.4g} to {scan['norm_max']:.4g}"


def _outlier_ids(quality: Json) -> str:
    return ", ".join(quality["sample"]["outlier_ids"]) or "none"


ROWS = (
    ("Rows", "In the whole set.", lambda q: f"{q['scan']['num_rows']:,}"),
    (
        "without a direction",
        "Zero or not finite; left out everywhere.",
        lambda q: f"{q['scan']['num_bad']:,}",
    ),
    ("Norms", "Smallest and largest, as stored.", _norms),
    (
        "Exact copies",
        "Rows equal to an earlier one, byte by byte.",
        lambda q: f"{q['scan']['copies']:.2%}",
    ),
    (
        "Near-copies",
        "Rows with another one within cosine 0.9999, in the sample.",
        lambda q: f"{q['sample']['near_copies']:.2%}",
    ),
    (
        "Constant or collapsed dimensions",
        "Without any variance; with less than a thousandth of the average.",
        lambda q: f"{q['sample']['num_constant']} / {q['sample']['num_collapsed']}",
    ),
    (
        "Largest share of one dimension",
        "Of the total variance; 1 / d on average.",
        lambda q: f"{q['sample']['largest_share']:.2%}",
    ),
    (
        "Mean cosine of two rows",
        "Squared length of the mean: near 1, all rows point the same way.",
        lambda q: f"{q['sample']['mean_cosine']:.3f}",
    ),
    (
        "Outliers",
        "Robust z below -6, of the cosine to the mean or to the neighbours.",
        lambda q: f"{q['sample']['outliers']:.2%}",
    ),
    ("the first of them", "Ids of their records.", _outlier_ids),
)
TEXTS = (
    (
        "Words",
        "Shortest, 5 %, median, 95 %, longest.",
        lambda t: " / ".join(f"{v:.0f}" for v in t["words"].values()),
    ),
    (
        "As long as the longest",
        "In words or characters; a spike there means that texts were cut.",
        lambda t: f"{t['at_limit']:.2%}",
    ),
    (
        "Beyond CLIP's window",
        "More than 55 words, about 77 tokens.",
        lambda t: f"{t['beyond_clip_window']:.2%}",
    ),
    ("Repeated texts", "Equal to an earlier one, in the sample.", lambda t: f"{t['repeated']:.2%}"),
    (
        "Scripts",
        "By the letters of each text; languages of one script are not told apart.",
        lambda t: ", ".join(f"{s} {v:.0%}" for s, v in list(t["scripts"].items())[:4]),
    ),
)
DOMAIN = (
    ("distance", "Distance of the means", "The part of the gap that a map fitted there leaves."),
    ("expected", "by sampling alone", "What two samples of one distribution give."),
    ("ratio", "in units of that", "About 1 for one domain."),
    ("z", "z", "Above 5 it is no chance."),
    ("trace_z", "z of the traces", "Difference of the traces over its sampling error."),
)
