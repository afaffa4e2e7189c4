"""The geometry report as one self-contained HTML page: verdict first, then tables and figures.

Nothing is computed here: the page shows what `report.json` holds. Numbers of the fitting rows stand
beside those of held-out rows, each over its 95 % interval and what chance gives. Explanations stand
under every name; the page has no script and fetches nothing.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from revision.files import write_bytes
from revision.geometry.findings import SEVERITIES, Json
from revision.report.gap_rows import SIDES, Block, Cell, Line, row_blocks
from revision.report.gap_terms import (
    CLOUD,
    GAP,
    MARGINALS,
    MIXING,
    PAIRED,
    PRESERVATION,
    Term,
    shown,
    shown_interval,
)
from revision.report.html import Picture, Tile, template
from revision.report.projection import CLOUD_NAMES

SPLITS = {"in_sample": "in-sample", "held_out": "held-out"}


def write_page(path: Path, report: Json, figures: Mapping[str, bytes]) -> Path:
    """Write the page whole or not at all."""
    page = template("gap.html.j2").render(
        title=_title(report),
        summary=_subtitle(report),
        tiles=_tiles(report),
        verdict=report["verdict"],
        counts={s: sum(f["severity"] == s for f in report["verdict"]) for s in SEVERITIES},
        blocks=[
            *_place_blocks(report, figures),
            *_shape_blocks(report, figures),
            *_row_by_row_blocks(report, figures),
            *row_blocks(report),
        ],
        facts=_facts(report),
    )
    write_bytes(path, page.encode())
    return path


def _title(report: Json) -> str:
    if report["alignment"]:
        return f"The modality gap before and after {report['alignment']['name']}"
    return "The modality gap"


def _subtitle(report: Json) -> str:
    parts = []
    for split, name in SPLITS.items():
        if report[split]:
            rows = report[split]["rows"]
            kind = "pairs" if rows["paired"] else "texts and images that are no pairs"
            count = (
                f"{rows['text']:,}" if rows["paired"] else f"{rows['text']:,} + {rows['image']:,}"
            )
            parts.append(f"{name}: {count} {kind}{_sampled(rows)}")
    encoder = report["encoder"].get("name", "unnamed encoder")
    return f"{'; '.join(parts)}. Width {report['dim']}, {encoder}."


def _sampled(rows: Json) -> str:
    if rows["text"] == rows["all_text"] and rows["image"] == rows["all_image"]:
        return ""
    return f" of {rows['all_text']:,} texts and {rows['all_image']:,} images"


def _tiles(report: Json) -> list[Tile]:
    name, split = next((SPLITS[s], report[s]) for s in ("held_out", "in_sample") if report[s])
    stages = [split[stage] for stage in ("before", "after") if split[stage]]
    last, kept = stages[-1], split["preservation"]

    def change(key: str, digits: int) -> str:
        return " → ".join(f"{stage[key]['value']:.{digits}f}" for stage in stages)

    floor = last["gap"]["null"]
    ratio = f"{name}; {last['gap']['value'] / floor:.2f} times the floor {floor:.3f}"
    tiles = [
        Tile("Centroid gap", change("gap", 3), ratio),
        Tile("Mixing around images", change("m_image", 2), "0 apart, 1 mixed"),
        Tile("JS of cosines, bits", change("js_bits", 3), "0 equal, 1 disjoint"),
    ]
    if kept:
        phi = f"Φ {kept['phi']['value']:.3f}, at most {kept['phi']['null']:.3f}"
        tiles.append(Tile("Neighbours kept", f"{kept['omega']['value']:.0%}", phi))
    if last["paired"]:
        cosines = " → ".join(f"{stage['paired']['cosine']['value']:.3f}" for stage in stages)
        tiles.append(Tile("Cosine of a pair", cosines, "image and its own text"))
    return tiles


def _place_blocks(report: Json, figures: Mapping[str, bytes]) -> list[Block]:
    """Where the clouds lie."""
    frame = _first(report)["frame"]
    return [
        Block(
            "The gap",
            "Every dot is a row, plus signs are the centroids. The bars show the distance of the "
            "centroids with 95 % intervals; dashes mark the sampling floor. "
            f"The table splits the gap in a fixed frame: U holds the {frame['rank']} leading "
            f"directions of both clouds together ({frame['energy']:.0%} of their variance), V the "
            "rest.",
            _picture(figures, "gap", "both clouds on the plane through the mean gap, and the gaps"),
            *_comparison(report, GAP),
        ),
        Block(
            "The same rows by principal components",
            "The two leading directions of all rows together, as most papers draw them. A gap "
            "that is small beside the clouds' spread does not show here.",
            _picture(figures, "projection", "joint principal components of all clouds"),
        ),
    ]


def _shape_blocks(report: Json, figures: Mapping[str, bytes]) -> list[Block]:
    """How the clouds are shaped, alone and beside each other."""
    first = _first(report)
    return [
        Block(
            "Shape of each cloud",
            "Eigenvalues of the covariance against their rank, with the fitted power law dashed. "
            "Intervals leave out tenths of the rows.",
            _picture(figures, "spectra", "eigenvalue spectra on logarithmic axes"),
            *_clouds(report),
        ),
        Block(
            "Directions and angles",
            "O_q is the share of the q leading directions that both clouds have in common; "
            "dashed is what random subspaces share. The principal angles are those between the "
            f"leading {first['frame']['rank']} directions of each.",
            _picture(figures, "subspaces", "subspace overlap and principal angles"),
        ),
        Block(
            "Cosines within the clouds",
            "Densities of the cosines of random pairs of rows of one cloud. They show the shape of "
            "a cloud without its place: two clouds that are apart can have the same.",
            _picture(figures, "cosines", "densities of pairwise cosines"),
            *_comparison(report, MARGINALS, overlaps=True),
        ),
        Block(
            "Who the neighbours are",
            f"The {first['before']['neighbours']} nearest neighbours of every row in one pool of "
            "texts and images, found exactly. Equal centroids do not make neighbours. The fewer "
            "rows, the farther that many neighbours reach: compare mixing only at equal numbers "
            "of rows.",
            _picture(figures, "mixing", "mixing of neighbourhoods"),
            *_comparison(report, MIXING),
        ),
    ]


def _row_by_row_blocks(report: Json, figures: Mapping[str, bytes]) -> list[Block]:
    """A text against its mapped version, and against its own image."""
    blocks = []
    if report["alignment"]:
        header, lines = _kept(report)
        text = "Texts against themselves, before and after the map; no images are involved."
        blocks.append(Block("What the map keeps of the texts", text, None, header, lines))
    if any(comparison["paired"] for *_, comparison in _columns(report)):
        text = (
            "What is left of the distance of an image from its own text once the mean gap is gone. "
            "Squares and distances are told apart, because papers mix them up."
        )
        picture = _picture(figures, "energy", "cumulative energy of the pair residual")
        blocks.append(Block("Pairs", text, picture, *_comparison(report, PAIRED, inner="paired")))
    return blocks


def _first(report: Json) -> Json:
    split: Json = next(report[s] for s in SPLITS if report[s])
    return split


def _picture(figures: Mapping[str, bytes], name: str, alt: str) -> Picture:
    return Picture(figures[name], alt)


def _columns(report: Json) -> list[tuple[str, str, Json]]:
    """(split, stage, comparison) in reading order."""
    return [
        (split, stage, report[split][stage])
        for split in SPLITS
        for stage in ("before", "after")
        if report[split] and report[split][stage]
    ]


def _comparison(
    report: Json, terms: Sequence[Term], *, inner: str | None = None, overlaps: bool = False
) -> tuple[list[str], list[Line]]:
    """Header and lines: one column for each split and stage."""
    columns = [(split, stage, c[inner] if inner else c) for split, stage, c in _columns(report)]
    columns = [column for column in columns if column[2]]
    has_map = any(stage == "after" for _, stage, _ in columns)
    header = [f"{SPLITS[split]}{', ' + stage if has_map else ''}" for split, stage, _ in columns]
    lines = [_line(term, [c[term.key] for *_, c in columns], header) for term in terms]
    if overlaps:
        lines += _overlap_lines([c for *_, c in columns], header)
    return header, lines


def _overlap_lines(comparisons: Sequence[Json], header: Sequence[str]) -> list[Line]:
    lines = []
    for place in range(min(len(c["overlaps"]) for c in comparisons)):
        numbers = [c["overlaps"][place] for c in comparisons]
        size = numbers[0]["size"]
        text = "Shared part of that many leading directions." if place == 0 else ""
        lines.append(_line(Term("", f"O_q, q = {size}", text, "random"), numbers, header))
    return lines


def _clouds(report: Json) -> tuple[list[str], list[Line]]:
    columns = [
        (f"{SPLITS[split]} {CLOUD_NAMES[name]}", cloud)
        for split in SPLITS
        if report[split]
        for name, cloud in report[split]["clouds"].items()
    ]
    header = [name for name, _ in columns]
    missing = {"value": None, "low": None, "high": None, "null": None}
    lines = [_line(term, [c.get(term.key, missing) for _, c in columns], header) for term in CLOUD]
    return header, lines


def _kept(report: Json) -> tuple[list[str], list[Line]]:
    columns = [(SPLITS[s], report[s]["preservation"]) for s in SPLITS if report[s]]
    columns = [(name, kept) for name, kept in columns if kept]
    header = [name for name, _ in columns]
    return header, [
        _line(term, [kept[term.key] for _, kept in columns], header) for term in PRESERVATION
    ]


def _line(term: Term, numbers: Sequence[Json], header: Sequence[str]) -> Line:
    cells = []
    for number, column in zip(numbers, header, strict=True):
        null = (
            f"{term.null} {shown(number['null'])}"
            if term.null and number["null"] is not None
            else ""
        )
        interval = shown_interval(number)
        hover = f"{term.name}, {column}: {number['value']}. {term.text}"
        cells.append(Cell(shown(number["value"]), interval, null, hover))
    return Line(term.name, term.text, cells)


def _facts(report: Json) -> dict[str, str]:
    options, card = report["options"], report["alignment"]
    facts = {SIDES[side]: path for side, path in report["sets"].items()}
    if card:
        settings = ", ".join(f"{key} = {value}" for key, value in card["options"].items())
        facts["map"] = card["name"] + (f" ({settings})" if settings else "")
        counts = f"{card['num_source']:,} texts, {card['num_target']:,} images"
        facts["fitted on"] = counts
    facts["sample"] = (
        f"up to {options['num_rows']:,} rows of each set at even distances; kNN searches on up to "
        f"{options['neighbour_rows']:,} of each, exact"
    )
    facts["intervals"] = (
        f"95 %; {options['bootstrap']} bootstrap draws of rows (pairs together), their bias taken "
        f"off, seed {options['seed']}; spectra and residuals: jackknife over ten groups of rows"
    )
    return facts
