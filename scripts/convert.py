"""Convert foreign features to a feature set (direction=import) or back (direction=export).

python scripts/convert.py format=revision_pkl input=<dir of public pickles> output_dir=<shards>
python scripts/convert.py format=revision_pkl direction=export input=<shards> output_dir=<dir>
python scripts/convert.py format=clip_retrieval input=<output folder> output_dir=<dir>
python scripts/convert.py format=llm2clip_tar encoder=llm2clip_l14_336 encoder.with_text=false \\
    input=<dir of tars> output_dir=<shards>
"""

import sys
from pathlib import Path

from omegaconf import DictConfig

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from revision.config import build, entry
from revision.conversion import (
    export_pickles,
    import_clip_retrieval,
    import_llm2clip_tars,
    import_pickles,
)
from revision.shards import Header

ROUTES = (
    ("revision_pkl", "import"),
    ("revision_pkl", "export"),
    ("clip_retrieval", "import"),
    ("llm2clip_tar", "import"),
)


def run(cfg: DictConfig) -> Path:
    """Convert as `cfg` says; returns the output directory."""
    if (cfg.format, cfg.direction) not in ROUTES:
        known = ", ".join(f"{direction} {format}" for format, direction in ROUTES)
        raise ValueError(f"cannot {cfg.direction} format {cfg.format!r}; this script can {known}")
    source, output_dir = Path(cfg.input), Path(cfg.output_dir)
    if cfg.direction == "export":
        paths = export_pickles(source, output_dir, records_per_file=cfg.records_per_file)
        print(f"{output_dir}: {len(paths)} pickles")
        return output_dir
    if cfg.format == "llm2clip_tar":
        headers = [_import_llm2clip(cfg, source, output_dir)]
    else:
        headers = _import_named(cfg, source, output_dir)
    for header in headers:
        print(
            f"{output_dir}: {header.num_rows} {header.kind} rows of width {header.dim}, "
            f"{header.num_rejected} rejected (quarantine.jsonl)"
        )
    return output_dir


def _import_llm2clip(cfg: DictConfig, source: Path, output_dir: Path) -> Header:
    if cfg.get("encoder") is None:
        raise ValueError(
            "format=llm2clip_tar needs the encoder whose adapter the vectors go through; add "
            "encoder=llm2clip_l14_336 encoder.with_text=false"
        )
    return import_llm2clip_tars(
        source,
        output_dir,
        encoder=build(cfg.encoder),
        field=cfg.field,
        rows_per_shard=cfg.rows_per_shard,
    )


def _import_named(cfg: DictConfig, source: Path, output_dir: Path) -> list[Header]:
    """Rows that are taken as they are, under the name that the command gives their encoder."""
    shared = {"encoder": cfg.encoder_name, "rows_per_shard": cfg.rows_per_shard}
    if cfg.format == "clip_retrieval":
        return import_clip_retrieval(source, output_dir, **shared)
    return [import_pickles(source, output_dir, kind=cfg.kind, aligned=cfg.aligned, **shared)]


main = entry(run, "convert")

if __name__ == "__main__":
    main()
