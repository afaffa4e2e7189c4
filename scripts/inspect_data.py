"""Say what is in a data set before anything is computed from it.

    python scripts/inspect_data.py input=pairs.tar
    python scripts/inspect_data.py input=chat.json image_root=images output_dir=runs/inspect
    python scripts/inspect_data.py "input='s3://bucket/{00000..00009}.tar'" num_images=100
    python scripts/inspect_data.py "input='pipe:zstd -dc chats.jsonl.zst'"

Counts, metadata, lengths, `<image>` marks, picture sizes and modes, and what is broken, with
addresses. It reads the input once and ends with status 1 if that cannot be read to its end.
"""

import json
import sys
from pathlib import Path

from omegaconf import DictConfig

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from revision.config import entry


def run(cfg: DictConfig) -> dict:
    """Inspect as `conf/inspect_data.yaml` says; returns what was found."""
    from revision.files import write_bytes
    from revision.records.inspection import inspect_records
    from revision.records.inspection_text import as_text

    found = inspect_records(
        cfg.input,
        image_root=cfg.image_root,
        format=cfg.format,
        num_images=cfg.num_images,
        num_samples=cfg.num_samples,
        seed=cfg.seed,
    )
    print(as_text(found))
    if cfg.output_dir:
        path = Path(cfg.output_dir) / "inspect.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, json.dumps(found, indent=1).encode())
        print(f"{path}: written")
    if found["stopped"]:
        raise ValueError(f"not read to its end: {found['stopped']}")
    return found


main = entry(run, "inspect_data")

if __name__ == "__main__":
    main()
