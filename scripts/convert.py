"""Convert foreign features to a feature set (direction=import) or back (direction=export).

python scripts/convert.py format=revision_pkl input=<dir of public pickles> output_dir=<shards>
python scripts/convert.py format=revision_pkl direction=export input=<shards> output_dir=<dir>
python scripts/convert.py format=clip_retrieval input=<output folder> output_dir=<dir>
"""

import sys
from pathlib import Path

from omegaconf import DictConfig

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from revision.config import entry
from revision.conversion import export_pickles, import_clip_retrieval, import_pickles

ROUTES = (("revision_pkl", "import"), ("revision_pkl", "export"), ("clip_retrieval", "import"))


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
    shared = {"encoder": cfg.encoder_name, "rows_per_shard": cfg.rows_per_shard}
    if cfg.format == "clip_retrieval":
        headers = import_clip_retrieval(source, output_dir, **shared)
    else:
        header = import_pickles(source, output_dir, kind=cfg.kind, aligned=cfg.aligned, **shared)
        headers = [header]
    for header in headers:
        print(
            f"{output_dir}: {header.num_rows} {header.kind} rows of width {header.dim}, "
            f"{header.num_rejected} rejected (quarantine.jsonl)"
        )
    return output_dir


main = entry(run, "convert")

if __name__ == "__main__":
    main()
