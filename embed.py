"""Embed pictures and texts: records in, unit rows in feature shards out.

    python embed.py encoder=clip_l14_336 input=data.json image_root=images output_dir=runs/features

writes `<output_dir>/images` and `<output_dir>/texts`. Run it again to continue after an
interruption; what cannot be embedded is listed in `quarantine.jsonl` beside the shards.
"""

from pathlib import Path

from omegaconf import DictConfig

from revision.config import build, entry


def run(cfg: DictConfig) -> Path:
    """Embed as `conf/embed.yaml` says; returns the output directory."""
    # torch and transformers take seconds to import: not before the config has been composed.
    from revision.encoders.embedding import embed_records

    embed_records(
        build(cfg.encoder),
        input=cfg.input,
        image_root=cfg.image_root,
        output_dir=cfg.output_dir,
        modality=cfg.modality,
        format=cfg.format,
        batch_size=cfg.batch_size,
        rows_per_shard=cfg.rows_per_shard,
        dtype=cfg.dtype,
        num_workers=cfg.num_workers,
        accelerator=cfg.accelerator,
        devices=cfg.devices,
        num_nodes=cfg.num_nodes,
    )
    return Path(cfg.output_dir)


main = entry(run, "embed")

if __name__ == "__main__":
    main()
