"""One job of a gap study: draw rows as its config says, fit, measure, and make a reading of it.

Texts and images are drawn independently of each other: a fit is unpaired even where its sets hold
pairs. With two `domains`, `mix` is the share of the second one among the fitting rows, and the
unseen rows are those of the domain `evaluated`. The `trial` is the seed of every draw.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from revision.alignment.base import AlignmentMap
from revision.alignment.storage import feature_set_card
from revision.studies.measure import Sample, fit, numbers_of
from revision.studies.sample import Domain, Pool, good_rows, mean_words
from revision.studies.table import Reading

SETS = ("source", "target", "holdout_source", "holdout_target")
TEXT, IMAGE, UNSEEN = range(3)  # which draw of a trial: a seed of its own each


def run_job(config: Mapping[str, Any], alignment: AlignmentMap, number: int) -> Reading:
    """The reading of the job that `config` (conf/gap_study.yaml) describes."""
    domains = domains_of(config)
    source, target = samples_of(config, domains)
    pools = domains[config["evaluated"] or next(iter(domains))].unseen()
    text, image, paired = _unseen(pools, config["holdout_rows"], config["trial"])
    fitted = fit(alignment, source, target, config["accumulator"])
    rows = good_rows(text, image, paired=paired)
    numbers = numbers_of(fitted, *rows, paired=paired)
    if (words := mean_words(text)) is not None:
        numbers["words"] = words
    return Reading(
        name=config["name"],
        labels=dict(config["labels"]),
        trial=config["trial"],
        job=number,
        columns=list(config["columns"]),
        figure=dict(config["figure"]),
        numbers=numbers,
        inputs=_inputs(domains),
    )


def domains_of(config: Mapping[str, Any]) -> dict[str, Domain]:
    """The named domains, or one of all rows; what a domain does not name is the study's.

    Raises:
        ValueError: not one or two domains, or `mix` and `evaluated` that do not fit them.
    """
    shared = {name: config[name] for name in SETS}
    described = config["domains"] or {"all": {}}
    if len(described) > 2:
        raise ValueError(f"{len(described)} domains; a study mixes two, or has none")
    if len(described) == 1 and config["mix"]:
        raise ValueError(f"mix={config['mix']} of one domain; name two in domains=, or leave it 0")
    if not 0.0 <= config["mix"] <= 1.0:
        raise ValueError(f"mix={config['mix']} is no share; it lies between 0 and 1")
    if config["evaluated"] not in (None, *described):
        raise ValueError(f"evaluated={config['evaluated']!r} is none of {', '.join(described)}")
    return {name: _domain(shared | dict(own)) for name, own in described.items()}


def _domain(described: dict[str, Any]) -> Domain:
    if unknown := described.keys() - {*SETS, "ids"}:
        raise ValueError(f"a domain has {', '.join(SETS)} and ids, not {sorted(unknown)}")
    paths = {name: None if (p := described[name]) is None else Path(p) for name in SETS}
    return Domain(**paths, ids=described.get("ids"))  # type: ignore[arg-type]


def samples_of(config: Mapping[str, Any], domains: Mapping[str, Domain]) -> tuple[Sample, Sample]:
    """Texts and images to fit on, `rows` of each.

    Raises:
        ValueError: `rows` is missing where domains are mixed, or larger than what there is.
    """
    rows, shares = config["rows"], [1.0]
    if len(domains) == 2:
        if rows is None:
            raise ValueError("domains are mixed at a fixed number of rows; give rows=")
        second = round(rows * config["mix"])
        shares = [(rows - second) / rows, second / rows]
    chosen = [
        (domain.fitting(), share)
        for domain, share in zip(domains.values(), shares, strict=True)
        if share > 0
    ]
    sides = []
    for side in (TEXT, IMAGE):
        pools = [
            _drawn(pools[side], None if rows is None else round(rows * share), config, (side, i))
            for i, (pools, share) in enumerate(chosen)
        ]
        sides.append(Sample(tuple(pools), config["storage"]))
    return sides[TEXT], sides[IMAGE]


def _drawn(
    pool: Pool, count: int | None, config: Mapping[str, Any], which: tuple[int, int]
) -> Pool:
    if count is None:
        return pool
    return pool.draw(count, (config["trial"], *which), repeat=config["resample"])


def _unseen(pools: tuple[Pool, Pool], count: int | None, trial: int) -> tuple[Pool, Pool, bool]:
    """Held-out texts and images, and whether row i of both is one record."""
    text, image = pools
    paired = len(text) == len(image) and text.ids() == image.ids()
    text, image = (
        pool.draw(min(count or len(pool), len(pool)), (trial, UNSEEN)) for pool in (text, image)
    )
    return text, image, paired


def _inputs(domains: Mapping[str, Domain]) -> dict[str, Any]:
    """Digests of the shards of every set, by domain and side."""
    found: dict[str, Any] = {}
    for name, domain in domains.items():
        for part, pools in (("fitted", domain.fitting()), ("unseen", domain.unseen())):
            for side, pool in zip(("text", "image"), pools, strict=True):
                found[f"{name} {part} {side}"] = feature_set_card(pool.reader.header)["shards"]
    return found
