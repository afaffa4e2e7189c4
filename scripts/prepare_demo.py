"""Unpack the shipped pictures and write the demo's conversations and unpaired records.

python scripts/prepare_demo.py output_dir=runs/data
"""

from pathlib import Path

from omegaconf import DictConfig

from revision.config import entry


def run(cfg: DictConfig) -> Path:
    """Prepare as `conf/prepare_demo.yaml` says; returns the output directory."""
    from revision.demo_data import prepare

    output_dir = Path(cfg.output_dir)
    prepare(Path(cfg.data_dir), output_dir)
    print(f"{output_dir}: {', '.join(sorted(p.name for p in output_dir.glob('*.json')))}, images/")
    return output_dir


main = entry(run, "prepare_demo")

if __name__ == "__main__":
    main()
