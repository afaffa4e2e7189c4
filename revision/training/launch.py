"""How many processes a run has here, and a start in processes of its own where it needs that.

Lightning starts the other processes of a run by repeating the command line. That is right for
`python train.py ...` alone; a job of a sweep, or a run that another script asks for, would repeat
the sweep or the script. Such a run is started as one `train.py` command with its whole config.
"""

import atexit
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from revision.training.stopping import StopRequest

_RANKS = ("RANK", "LOCAL_RANK", "SLURM_PROCID", "OMPI_COMM_WORLD_RANK")  # most specific first
_OUTSIDE = ("LOCAL_RANK", "SLURM_PROCID", "OMPI_COMM_WORLD_RANK")  # somebody started all processes
_PLAIN_HYDRA = (
    *("hydra.output_subdir=null", "hydra.run.dir=."),
    *("hydra/job_logging=none", "hydra/hydra_logging=none"),
)


def uses_gpu(accelerator: str) -> bool:
    """Whether `accelerator` puts a run on a GPU of this machine."""
    import torch  # takes seconds: not for a run that is done

    return accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()


def num_local_processes(accelerator: str, devices: int | str | Sequence[int]) -> int:
    """The devices on this machine that `accelerator` and `devices` select."""
    if devices in ("auto", -1, "-1"):
        import torch

        return torch.cuda.device_count() if uses_gpu(accelerator) else 1
    if isinstance(devices, str):
        parts = [part for part in devices.split(",") if part]
        return len(parts) if "," in devices else int(devices)
    return devices if isinstance(devices, int) else len(devices)


def is_first_process() -> bool:
    """Whether this is the one process of a run that writes; known before the run has a trainer."""
    rank = next((os.environ[name] for name in _RANKS if name in os.environ), "0")
    return int(rank) == 0 and int(os.environ.get("NODE_RANK", "0")) == 0


def needs_own_processes(num_processes: int, *, is_sweep: bool, script: str) -> bool:
    """Whether repeating this command line would start something else than this run."""
    if num_processes == 1 or any(name in os.environ for name in _OUTSIDE):
        return False
    main = getattr(sys.modules["__main__"], "__file__", None)
    return is_sweep or main is None or not Path(main).samefile(script)


def in_own_processes(script: str, config_yaml: str) -> None:
    """Run `script` with the config and wait for it; a SIGTERM is handed on.

    Raises:
        ValueError: it failed; its own message stands above.
    """
    with tempfile.TemporaryDirectory() as directory:
        Path(directory, "job.yaml").write_text(config_yaml)
        where = ["--config-dir", directory, "--config-name", "job"]
        process = subprocess.Popen([sys.executable, script, *where, *_PLAIN_HYDRA])
        stop = StopRequest(tell=process.terminate)
        stop.listen()
        status = process.wait()
        stop.forget()
    if stop.is_made:
        raise SystemExit(status)
    if status:
        raise ValueError(f"the run failed with exit status {status}; see above")


def leave_process_group_at_exit() -> None:
    """Leave the group of processes while Python still runs.

    Threads that gloo leaves behind abort the process after its result was written, with
    `terminate called without an active exception` and status -6 (pytorch/pytorch#190489).
    Lightning leaves the group by itself only under NCCL.
    """
    atexit.register(_leave_process_group)


def _leave_process_group() -> None:
    import torch

    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
