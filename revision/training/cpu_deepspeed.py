"""DeepSpeed on a CPU: for tests and small machines; used only where there is no GPU.

Lightning's strategy refuses a CPU by three checks and hands DeepSpeed a device index that a CPU
does not have. This subclass removes those checks. `DS_ACCELERATOR=cpu` must be in the
environment before this module is imported.
"""

import argparse
from typing import Any

import deepspeed
from deepspeed.ops import __compatible_ops__ as compatible_ops
from lightning.fabric.utilities.seed import reset_seed
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy

# Otherwise DeepSpeed compiles a shared-memory all-reduce, which takes ninja, g++ and minutes.
compatible_ops["deepspeed_shm_comm"] = False


class CpuDeepSpeedStrategy(DeepSpeedStrategy):
    """`DeepSpeedStrategy` over gloo."""

    def setup_environment(self) -> None:
        DDPStrategy.setup_environment(self)

    def setup_distributed(self) -> None:
        reset_seed()
        self.set_world_ranks()
        self._init_deepspeed_distributed()

    def _setup_model_and_optimizer(
        self, model: Any, optimizer: Any, lr_scheduler: Any = None
    ) -> tuple[Any, Any]:
        engine, wrapped, _, _ = deepspeed.initialize(
            args=argparse.Namespace(device_rank=self.local_rank),
            config=self.config,
            model=model,
            model_parameters=[p for p in model.parameters() if p.requires_grad],
            optimizer=optimizer,
            lr_scheduler=lr_scheduler,
            dist_init_required=False,
        )
        return engine, wrapped
