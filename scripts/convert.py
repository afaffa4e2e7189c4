"""Convert foreign features to a feature set (direction=import) or back (direction=export).

python scripts/convert.py format=revision_pkl input=<dir of public pickles> output_dir=<shards>
python scripts/convert.py format=revision_pkl direction=export input=<shards> output_dir=<dir>
"""

import sys
from pathlib import Path

from omegaconf import DictConfig

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from revision.config import entry
from revision.conversion import export_pickles, import_pickles


def run(cfg: DictConfig) -> Path:
    """Convert as `cfg` says; returns the output directory."""
    if cfg.format != "revision_pkl" or cfg.direction not in ("import", "export"):
        raise ValueError(
            f"cannot {cfg.direction} format {cfg.format!r}; format is revision_pkl and direction "
            "is import or export"
        )
    source, output_dir = Path(cfg.input), Path(cfg.output_dir)
    if cfg.direction == "export":
        paths = export_pickles(source, output_dir, records_per_file=cfg.records_per_file)
        print(f"{output_dir}: {len(paths)} pickles")
        return output_dir
    header = import_pickles(
        source,
        output_dir,
        kind=cfg.kind,
        encoder=cfg.encoder,
        rows_per_shard=cfg.rows_per_shard,
    )
    print(
        f"{output_dir}: {header.num_rows} {header.kind} rows of width {header.dim}, "
        f"{header.num_rejected} rejected (quarantine.jsonl)"
    )
    return output_dir


main = entry(run, "convert")

if __name__ == "__main__":
    main()
