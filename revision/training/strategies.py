"""Strategies: how a run is spread over processes, each saving and resuming the trainable set.

`conf/strategy/*.yaml` name the functions of this module. On a GPU they are Lightning's own
strategies; the classes here add what those lack: checkpoints of the trainable set alone under
FSDP2, and DeepSpeed on a CPU (`cpu_deepspeed.py`). `trained_weights` gathers the trained
weights of any strategy into plain float32 tensors for the model directory.
"""

import importlib.util
import os
from pathlib import Path
from typing import Any, Literal

import lightning as L
import torch
from lightning.pytorch.strategies import (
    DDPStrategy,
    DeepSpeedStrategy,
    ModelParallelStrategy,
    Strategy,
)
from torch import Tensor, nn
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

LOOPS_NAME = "loops.pt"


def auto() -> str:
    """One process: no strategy at all; several: plain data parallel."""
    return "auto"


def ddp() -> Strategy:
    """Data parallel: every process holds the whole model."""
    return DDPStrategy()


def fsdp() -> Strategy:
    """FSDP2: parameters, gradients and optimiser state are sharded over all processes."""
    return FullyShardedStrategy()


def deepspeed(*, stage: Literal[1, 2, 3], offload: bool = False) -> Strategy:
    """DeepSpeed ZeRO: shards optimiser state (1), also gradients (2), also parameters (3).

    `offload` keeps the optimiser state, and in stage 3 the parameters, in host memory.

    Raises:
        ValueError: the package is not installed.
    """
    if importlib.util.find_spec("deepspeed") is None:
        raise ValueError(
            f"strategy=deepspeed_zero{stage} needs the package deepspeed, which is not "
            "installed: pip install deepspeed, or choose strategy=fsdp"
        )
    kind: type[DeepSpeedStrategy] = DeepSpeedStrategy
    if not torch.cuda.is_available():
        os.environ["DS_ACCELERATOR"] = "cpu"  # read when deepspeed is first imported
        from revision.training.cpu_deepspeed import CpuDeepSpeedStrategy

        kind = CpuDeepSpeedStrategy
    strategy = kind(
        stage=stage,
        offload_optimizer=offload,
        offload_parameters=offload and stage == 3,
        exclude_frozen_parameters=True,
        logging_batch_size_per_gpu=1,  # used for DeepSpeed's own log lines only
    )
    # The optimiser is torch's AdamW everywhere, so that strategies differ in memory, not in maths.
    assert isinstance(strategy.config, dict)
    strategy.config["zero_force_ds_cpu_optimizer"] = False
    return strategy


class FullyShardedStrategy(ModelParallelStrategy):
    """FSDP2 over all processes, with distributed checkpoints that leave frozen weights out."""

    def __init__(self) -> None:
        super().__init__(tensor_parallel_size=1)

    def setup_environment(self) -> None:
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()

    def shard(self, model: nn.Module) -> None:
        """Shards every element of every `nn.ModuleList` (the layers), then the rest."""
        if getattr(model, "_is_fully_sharded", False):
            return
        mesh = self.device_mesh["data_parallel"]
        mixed = self.precision_plugin.precision == "bf16-mixed"
        policy = MixedPrecisionPolicy(
            param_dtype=torch.bfloat16 if mixed else None, reduce_dtype=torch.float32
        )
        for layer in _layers(model):
            fully_shard(layer, mesh=mesh, mp_policy=policy)
        fully_shard(model, mesh=mesh, mp_policy=policy)
        model._is_fully_sharded = True  # type: ignore[assignment]

    def lightning_module_state_dict(self) -> dict[str, Any]:
        return {}  # saved by `save_checkpoint`, which knows what trains

    def optimizer_state(self, optimizer: Any) -> dict[str, Any]:
        return {}

    def save_checkpoint(
        self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None
    ) -> None:
        directory = Path(self.broadcast(filepath))
        directory.mkdir(parents=True, exist_ok=True)
        dcp.save(self._state(), checkpoint_id=str(directory))
        if self.is_global_zero:
            torch.save(checkpoint, directory / LOOPS_NAME)
        self.barrier()

    def load_checkpoint(self, checkpoint_path: Any, weights_only: Any = None) -> dict[str, Any]:
        directory = Path(self.broadcast(checkpoint_path))
        state = self._state()
        dcp.load(state, checkpoint_id=str(directory))
        model, optimizer = self._trained()
        partial = StateDictOptions(strict=False)
        set_model_state_dict(model, state["model"], options=partial)
        set_optimizer_state_dict(model, optimizer, state["optimizer"])
        rest: dict[str, Any] = torch.load(directory / LOOPS_NAME, weights_only=True)
        del rest["state_dict"]
        return rest

    def _state(self) -> dict[str, Any]:
        model, optimizer = self._trained()
        trained = StateDictOptions(ignore_frozen_params=True)
        return {
            "model": get_model_state_dict(model, options=trained),
            "optimizer": get_optimizer_state_dict(model, optimizer),
        }

    def _trained(self) -> tuple[nn.Module, torch.optim.Optimizer]:
        assert self.model is not None
        return self.model, self.optimizers[0]


def trained_weights(trainer: L.Trainer, model: nn.Module) -> dict[str, Tensor]:
    """The trainable parameters of `model`, gathered, float32, on the CPU.

    Every process calls it; the tensors are complete on process 0 and may be missing elsewhere.
    """
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    gather = _gather_deepspeed if isinstance(trainer.strategy, DeepSpeedStrategy) else _gather
    gathered = {}
    for name, parameter in named:
        whole = gather(parameter)
        if trainer.is_global_zero:
            gathered[name] = whole.detach().to("cpu", torch.float32, copy=True)
    return gathered


def _gather(parameter: nn.Parameter) -> Tensor:
    full = getattr(parameter, "full_tensor", None)  # a DTensor
    return full() if full is not None else parameter


def _gather_deepspeed(parameter: nn.Parameter) -> Tensor:
    from deepspeed.utils import safe_get_full_fp32_param

    return safe_get_full_fp32_param(parameter)


def _layers(model: nn.Module) -> list[nn.Module]:
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    inner = {id(child) for outer in lists for layer in outer for child in layer.modules()}
    return [layer for outer in lists if id(outer) not in inner for layer in outer]
