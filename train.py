"""Train one stage: `python train.py stage=<stage> data.<...>=<...> name=<run>`.

    stage=contrastive  data.images=.. data.texts=..    -> <run>/encoder   heads on two towers
    stage=pretrain     data.shards=<aligned shards>    -> <run>/model     projector, text only
    stage=sft          data.input=<conversations>      -> <run>/model     projector and LLM
                       start_from=<run>/model

The same command again continues a run that was killed, or says that it is done.
"""

from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from revision.config import RECORD_NAME, build, claim_directory, entry, run_directory
from revision.training.launch import (
    in_own_processes,
    is_first_process,
    needs_own_processes,
    num_local_processes,
)
from revision.training.leftovers import CHECKPOINTS, finish, remove_unfinished

NEUTRAL = tuple(  # may differ between a run and its continuation
    "name run_root group logger progress log_every num_answers accelerator devices num_nodes "
    "checkpoint_steps checkpoint_minutes data.num_workers data.index_root data.tokens "
    "data.token_root".split()
)
RESIZABLE = ("stage.batch_size", "stage.accumulate")  # while the run has a checkpoint
INPUTS = (
    *("data.shards", "data.input", "data.val_shards", "data.val_input", "data.alignment"),
    *("data.images", "data.texts", "data.val_images", "data.val_texts", "start_from"),
)


def run(cfg: DictConfig) -> Path:
    """Train as `conf/train.yaml` says; returns the run directory."""
    run_dir = run_directory(cfg)
    if (run_dir / RECORD_NAME).exists():
        claim_directory(run_dir, cfg, neutral=_neutral(run_dir))
    if (run_dir / cfg.stage.result / "config.json").exists():
        if is_first_process():
            finish(run_dir, cfg.stage.result)
            print(f"{run_dir} is done: {run_dir / cfg.stage.result}")
        return run_dir
    num_processes = num_local_processes(cfg.accelerator, cfg.devices)
    is_sweep = HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN
    if needs_own_processes(num_processes, is_sweep=is_sweep, script=__file__):
        alone = OmegaConf.merge(cfg, {"run_root": str(run_dir.parent), "name": run_dir.name})
        in_own_processes(__file__, OmegaConf.to_yaml(alone, resolve=True))
    else:
        _train(cfg, run_dir, world_size=num_processes * cfg.num_nodes)
    return run_dir


def _train(cfg: DictConfig, run_dir: Path, world_size: int) -> None:
    # torch, transformers and Lightning take seconds to import: not before they are needed.
    import lightning as L
    import torch

    from revision.data.datamodule import tell
    from revision.training.loggers import close
    from revision.training.make_job import make_job
    from revision.training.module import TrainingModule
    from revision.training.optim import OptimizerSettings
    from revision.training.provenance import claim_inputs, input_digests, provenance
    from revision.training.resume import continue_data
    from revision.training.run import RunSettings, fit, make_trainer
    from revision.training.trainable import describe_trainable

    digests = input_digests({key: OmegaConf.select(cfg, key) for key in (*INPUTS, *_mixed(cfg))})
    L.seed_everything(cfg.seed, verbose=False)
    job = make_job(cfg, build)
    continue_data(job.data, run_dir)
    optimizer = OptimizerSettings(**cfg.stage.optimizer)
    module = TrainingModule(
        job.model,
        trainable=list(cfg.stage.trainable),
        optimizer=optimizer,
        total_steps=job.data.num_steps(world_size),
        seed=cfg.seed,
        prepare=job.prepare,
    )
    settings = RunSettings.of(cfg)
    if settings.resolved_precision == "bf16-mixed":
        job.lower_frozen(torch.bfloat16)
    tell(f"{run_dir}: {module.total_steps} steps\n{describe_trainable(job.model)}")

    if is_first_process():
        claim_directory(run_dir, cfg, neutral=_neutral(run_dir))
        claim_inputs(run_dir, digests)
        remove_unfinished(run_dir, cfg.stage.result)
    config = OmegaConf.to_container(cfg, resolve=True)
    trainer = make_trainer(
        run_dir,
        settings,
        total_steps=module.total_steps,
        strategy=build(cfg.strategy),
        loggers=build(cfg.logger, run_dir=run_dir, group=cfg.group or cfg.name, config=config),
        callbacks=job.callbacks,
    )
    weights = fit(trainer, module, job.data, run_dir)
    if trainer.is_global_zero:
        result = run_dir / cfg.stage.result
        job.save(weights, result, provenance(config, digests), trainer.loggers)
        finish(run_dir, cfg.stage.result)
        close(trainer.loggers)
        tell(f"{run_dir} is done: {result}")


def _neutral(run_dir: Path) -> tuple[str, ...]:
    """The keys that may change now: while a run has a checkpoint, also how its steps are cut."""
    return NEUTRAL + (RESIZABLE if (run_dir / CHECKPOINTS).is_dir() else ())


def _mixed(cfg: DictConfig) -> list[str]:
    """The keys of the inputs in `data.mixture`."""
    parts = range(len(cfg.data.get("mixture") or ()))
    return [f"data.mixture[{part}].{key}" for part in parts for key in ("shards", "input")]


main = entry(run, "train")

if __name__ == "__main__":
    main()
