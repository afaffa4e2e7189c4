"""Which job a stage is, by what it leaves in the run directory."""

from typing import Any

from revision.training.contrastive_job import contrastive_job
from revision.training.jobs import Build, Job
from revision.training.visual_job import visual_job


def make_job(cfg: Any, build: Build) -> Job:
    """The job of `cfg.stage`.

    Raises:
        ValueError: noise for a stage that has no text features to disturb.
    """
    if cfg.stage.result != "encoder":
        return visual_job(cfg, build)
    if cfg.get("noise"):
        raise ValueError(
            "noise= disturbs the text features of pretrain and its kin; a stage that trains "
            "an encoder has no use for it: leave it out"
        )
    return contrastive_job(cfg, build)
