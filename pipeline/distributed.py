"""The process group: who this process is, and the few things all ranks must agree on."""

import os
import signal
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist

from pipeline.launch import free_port


@dataclass(frozen=True)
class DistInfo:
    """rank of world_size processes; device is cuda:<local_rank> where there is a GPU, else cpu."""

    rank: int
    world_size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        return self.rank == 0


def world_size_from_env() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def start_group() -> DistInfo:
    """Join (or be) the process group named by RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT."""
    for key, value in {
        "RANK": "0",
        "LOCAL_RANK": "0",
        "WORLD_SIZE": "1",
        "MASTER_ADDR": "127.0.0.1",
    }.items():
        os.environ.setdefault(key, value)
    if "MASTER_PORT" not in os.environ:
        os.environ["MASTER_PORT"] = str(free_port())
    cuda = torch.cuda.is_available()
    if not cuda:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    local_rank = int(os.environ["LOCAL_RANK"])
    if cuda:
        torch.cuda.set_device(local_rank)
    import deepspeed  # slow: only a training process needs it

    if not cuda:
        # A shared-memory collective that DeepSpeed compiles at start: half a minute and a C++ compiler
        # for calls we never make.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(dist_backend="nccl" if cuda else "gloo", verbose=False)
    device = torch.device("cuda", local_rank) if cuda else torch.device("cpu")
    return DistInfo(dist.get_rank(), dist.get_world_size(), device)


def stop_group() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def sum_over_ranks(value: float | list[float], info: DistInfo) -> float | list[float]:
    """Sum of one number, or of each of some, over all ranks; every rank must call it."""
    if info.world_size == 1:
        return value
    tensor = torch.tensor(value, dtype=torch.float64, device=info.device)
    dist.all_reduce(tensor)
    return tensor.tolist()


class StopRequest:
    """A wish to stop early, by SIGUSR1, SIGTERM or the file named by ROSEATE_STOP_FILE.

    A signal only sets a flag; the loop asks `agreed` between steps, where all ranks decide together.
    """

    def __init__(self, info: DistInfo):
        self._info = info
        self._flag = False
        self._file = os.environ.get("ROSEATE_STOP_FILE")
        for number in (signal.SIGUSR1, signal.SIGTERM):
            signal.signal(number, self._set)

    def _set(self, *_: object) -> None:
        self._flag = True

    def agreed(self) -> bool:
        asked = self._flag or (self._file is not None and Path(self._file).exists())
        return sum_over_ranks(float(asked), self._info) > 0
