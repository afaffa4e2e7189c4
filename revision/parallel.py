"""Several threads, several processes: who does what, and results in the order of the work.

Threads share the work of one process: numpy and torch let others run while they compute. Processes
are those of `torchrun` (RANK and WORLD_SIZE in the environment, on any number of nodes), and talk
over gloo. Neither changes a result: parts are always put together in one order.
"""

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist

T = TypeVar("T")
R = TypeVar("R")

WAIT = timedelta(hours=12)  # of one process for a slower one


def in_order(function: Callable[[T], R], items: Iterable[T], num_workers: int) -> Iterator[R]:
    """`map(function, items)` by `num_workers` threads, at most one result ahead of each."""
    if num_workers <= 1:
        yield from map(function, items)
        return
    pending: deque[Future[R]] = deque()
    with ThreadPoolExecutor(num_workers) as pool:
        try:
            for item in items:
                pending.append(pool.submit(function, item))
                if len(pending) > num_workers:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()


def end_with_parent(worker: int = 0) -> None:
    """Let this process, which loads data, end when the one that started it was killed.

    torch's own watch stops the loop and then waits for the pipe to be emptied, which nobody does:
    the processes of a run that was killed would keep their memory for ever.
    """
    threading.Thread(target=_end_after, args=(os.getppid(),), daemon=True).start()


def _end_after(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)


@contextmanager
def joined() -> Iterator[None]:
    """Join the other processes of a `torchrun`, if there are any, and leave them at the end."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        yield
        return
    dist.init_process_group("gloo", timeout=WAIT)
    try:
        yield
    finally:
        dist.destroy_process_group()


def device_of(name: str) -> torch.device:
    """`cpu`, `cuda`, or `auto`: the GPU of this process if there is one.

    Raises:
        ValueError: another name, or no GPU.
    """
    if name not in ("auto", "cpu", "cuda"):
        raise ValueError(f"device is auto, cpu or cuda, not {name!r}")
    found = torch.cuda.device_count()
    if name == "cpu" or (name == "auto" and not found):
        return torch.device("cpu")
    if not found:
        raise ValueError("device=cuda, but torch sees no GPU; use device=cpu or auto")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % found)


def rank() -> int:
    return dist.get_rank() if _is_joined() else 0


def world_size() -> int:
    return dist.get_world_size() if _is_joined() else 1


def barrier() -> None:
    """Wait until every process is here."""
    if _is_joined():
        dist.barrier()


def from_first(value: T) -> T:
    """The value that the first process has."""
    if not _is_joined():
        return value
    box = [value]
    dist.broadcast_object_list(box)
    return box[0]


def collected(own: Iterator[T], count: int) -> Iterator[T]:
    """Items 0 .. count - 1 in order at the first process; item i comes from process i mod size.

    `own` are the items of this process. The other processes get nothing.
    """
    for index in range(count):
        owner = index % world_size()
        if owner == rank():
            item = next(own)
            if rank() == 0:
                yield item
            else:
                dist.send_object_list([item], dst=0)
        elif rank() == 0:
            box: list[T | None] = [None]
            dist.recv_object_list(box, src=owner)
            yield box[0]  # type: ignore[misc]


def _is_joined() -> bool:
    return dist.is_available() and dist.is_initialized()
