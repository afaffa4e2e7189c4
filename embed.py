"""Embed pictures and texts: records in, unit rows in feature shards out.

    python embed.py encoder=clip_l14_336 input=data.json image_root=images output_dir=runs/features

writes `<output_dir>/images` and `<output_dir>/texts`. Run it again to continue after an
interruption; what cannot be embedded is listed in `quarantine.jsonl` beside the shards. A sweep,

    python embed.py -m data.caption_length=short,medium,long input=... \\
        'output_dir=runs/lengths/${data.caption_length}'

writes each job where its `output_dir` says, and below `<output_dir>/data.caption_length=short` and
so on where that says the same for all.
"""

from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from revision.config import build, entry, job_directory


def run(cfg: DictConfig) -> Path:
    """Embed as `conf/embed.yaml` says; returns the output directory."""
    # torch and transformers take seconds to import: not before the config has been composed.
    from revision.training.launch import in_own_processes, needs_own_processes, num_local_processes

    if not OmegaConf.is_interpolation(cfg, "output_dir"):
        cfg.output_dir = str(job_directory(Path(cfg.output_dir), named_by="output_dir"))
    num_processes = num_local_processes(cfg.accelerator, cfg.devices)
    is_sweep = HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN
    if needs_own_processes(num_processes, is_sweep=is_sweep, script=__file__):
        in_own_processes(__file__, OmegaConf.to_yaml(cfg, resolve=True))
    else:
        _embed(cfg)
    return Path(cfg.output_dir)


def _embed(cfg: DictConfig) -> None:
    from revision.encoders.embedding import embed_records

    embed_records(
        build(cfg.encoder),
        input=cfg.input,
        image_root=cfg.image_root,
        output_dir=cfg.output_dir,
        modality=cfg.modality,
        format=cfg.format,
        batch_size=cfg.batch_size,
        text_tokens=cfg.text_tokens,
        compile=cfg.compile,
        rows_per_shard=cfg.rows_per_shard,
        dtype=cfg.dtype,
        num_workers=cfg.num_workers,
        accelerator=cfg.accelerator,
        devices=cfg.devices,
        num_nodes=cfg.num_nodes,
        controls=build(cfg.data),
    )


main = entry(run, "embed")

if __name__ == "__main__":
    main()
