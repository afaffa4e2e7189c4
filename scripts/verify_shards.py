"""Read every byte of a feature set, say what is wrong with it, and make again what is broken.

    python scripts/verify_shards.py input=runs/features/images
    python scripts/verify_shards.py input=runs/features/images repair=true encoder=clip_l14_336

prints one line per problem and ends with exit status 1, or prints one line that all is well:
digests, counts, stored moments, rows that no direction can be read from, ids that occur twice, and
with `check_input=true` ids of the input that are nowhere. `repair=true` sets broken shards aside,
makes only these again (`revision/shards/repair.py`), and looks at everything once more.
"""

from collections import Counter
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from revision.config import build, entry


def run(cfg: DictConfig) -> None:
    """Verify `cfg.input` and repair it if asked; raises ValueError when a problem remains."""
    from revision.shards import read_header
    from revision.shards.verify import find_damage

    directory = Path(cfg.input)
    damage = find_damage(directory)
    for problem in damage.lines():
        print(problem)
    if cfg.repair and (damage.shards or damage.header):
        _repair(directory, damage, cfg)
        damage = find_damage(directory)
        for problem in damage.lines():
            print(f"still: {problem}")
    problems = damage.lines()
    if cfg.check_input and not damage.shards:
        problems += _against_input(directory, cfg)
    if problems:
        hint = "" if cfg.repair else "; repair=true makes broken shards again"
        raise ValueError(f"{directory}: {len(problems)} problems; see the lines above{hint}")
    header = read_header(directory)
    print(
        f"{directory}: fine; {header.num_rows} {header.kind} rows of width {header.dim} in "
        f"{len(header.shards)} shards, {header.num_rejected} records in quarantine"
    )
    _tell_quarantine(directory)


def _repair(directory: Path, damage: Any, cfg: DictConfig) -> None:
    from revision.shards import read_header
    from revision.shards.repair import convert_command, made_by, repair

    header, (maker, plan) = read_header(directory), made_by(directory)
    if maker == "scripts/convert.py" and damage.shards:
        raise ValueError(
            f"{directory}: was converted; delete {', '.join(damage.shards)} and run "
            f"`{convert_command(directory, header, plan)}`, which makes only these again"
        )
    make = {
        "embed.py": lambda: _embed_missing(directory, header, plan, cfg),
        "align.py": lambda: _align_missing(directory, cfg),
        "scripts/convert.py": lambda: None,
    }
    for line in repair(directory, damage, make[maker]):
        print(line)


def _embed_missing(directory: Path, header: Any, plan: dict[str, Any], cfg: DictConfig) -> None:
    from revision.encoders.embedding import SETS, embed_records

    if cfg.get("encoder") is None:
        raise ValueError(
            f"{directory}: give encoder=<name>, the one that made the set: {header.encoder}"
        )
    if directory.name != SETS[header.kind]:
        raise ValueError(
            f"{directory}: embed.py writes {header.kind} rows to a folder {SETS[header.kind]!r}; "
            "rename it so while it is repaired"
        )
    source, encoder = _source(directory, header, cfg), build(cfg.encoder)
    if encoder.identity() != header.encoder:
        raise ValueError(
            f"{directory} was made by another encoder than encoder={cfg.encoder.get('path', '')}: "
            f"{header.encoder}, given {encoder.identity()}; give the one that made the set"
        )
    patches = 1 if header.kind == "text" else encoder.rows_per_image
    embed_records(
        encoder,
        input=source.path,
        image_root=source.image_root,
        output_dir=directory.parent,
        modality=header.kind,
        format=source.format,
        rows_per_shard=plan["fingerprint"]["rows_per_shard"] * patches,
        dtype=header.dtype,
        batch_size=cfg.batch_size,
        text_tokens=cfg.text_tokens,
        num_workers=cfg.num_workers,
        accelerator=cfg.accelerator,
        devices=cfg.devices,
        controls=source.selection.controls if source.selection else None,
    )


def _align_missing(directory: Path, cfg: DictConfig) -> None:
    from revision.alignment import apply_alignment, load_alignment

    if cfg.source is None:
        raise ValueError(
            f"{directory}: give source=<text shards>, the set whose rows were aligned; "
            "the map is read from map_dir"
        )
    alignment = load_alignment(Path(cfg.map_dir or directory.parent / "alignment"))
    apply_alignment(alignment, Path(cfg.source), directory)


def _source(directory: Path, header: Any, cfg: DictConfig) -> Any:
    """The input that the set was made from, and what was chosen of it."""
    from revision.captions import Selection
    from revision.encoders.plan import Source

    root = cfg.image_root or header.source.get("image_root")
    return Source(
        str(cfg.records or header.source["input"]),
        header.kind,
        None if root is None else Path(root),
        cfg.format,
        Selection.read(directory) if "selection" in header.source else None,
    )


def _against_input(directory: Path, cfg: DictConfig) -> list[str]:
    """Print and return which ids of the input are nowhere in the set."""
    from revision.shards import read_header
    from revision.shards.repair import made_by
    from revision.shards.verify import missing_ids

    header, (maker, plan) = read_header(directory), made_by(directory)
    if maker != "embed.py":
        raise ValueError(f"{directory}: check_input is for sets of embed.py, {maker} wrote this")
    source = _source(directory, header, cfg)
    if source.digest() != header.source["input_sha256"]:
        problems = [f"{source.path}: is not what {directory} was made from any more (sha256)"]
    else:
        ids = (entry.id for entry in source.entries())
        size = plan["fingerprint"]["rows_per_shard"]
        problems = missing_ids(directory, header, ids, size)
    for problem in problems:
        print(problem)
    return problems


def _tell_quarantine(directory: Path) -> None:
    """Say why records were rejected, the most frequent reasons first."""
    import json

    from revision.records.inspection import reason_kind

    reasons: Counter[str] = Counter()
    with (directory / "quarantine.jsonl").open() as lines:
        for fields in map(json.loads, lines):
            named = f"{fields['address']}: "
            reasons[reason_kind(fields["reason"].removeprefix(named))] += 1
    for reason, count in reasons.most_common(10):
        print(f"  {count} rejected: {reason}")


main = entry(run, "verify_shards")

if __name__ == "__main__":
    main()
