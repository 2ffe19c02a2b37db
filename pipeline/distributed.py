"""The process group: who this process is, and the few things all ranks must agree on."""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from types import ModuleType
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from data_prep.ports import held_port

T = TypeVar("T")


@dataclass(frozen=True)
class DistInfo:
    """rank of world_size processes; device is cuda:<local_rank> where there is a GPU, else cpu."""

    rank: int
    world_size: int
    device: torch.device

    @classmethod
    def one(cls) -> "DistInfo":
        """One process without a group, on the GPU if there is one."""
        return cls(0, 1, torch.device("cuda" if torch.cuda.is_available() else "cpu"))

    @classmethod
    def alone(cls) -> "DistInfo":
        """One process without a group."""
        return cls(0, 1, torch.device("cpu"))

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def share(self, value: T) -> T:
        """The main rank's value, on all ranks; every rank must call it."""
        if self.world_size == 1:
            return value
        shared = [value]
        dist.broadcast_object_list(shared, src=0, device=self.device)
        return shared[0]

    def barrier(self) -> None:
        """Wait for all ranks."""
        if self.world_size > 1:
            dist.barrier()


def world_size_from_env() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank_from_env() -> int:
    """This process among those that the launcher started; 0 without one."""
    return int(os.environ.get("RANK", "0"))


def start_group(timeout_seconds: float = 1800.0) -> DistInfo:
    """Join (or be) the process group named by RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT.

    Args:
        timeout_seconds: of a collective.
    """
    for key, value in {
        "RANK": "0",
        "LOCAL_RANK": "0",
        "WORLD_SIZE": "1",
        "MASTER_ADDR": "127.0.0.1",
    }.items():
        os.environ.setdefault(key, value)
    with ExitStack() as until_joined:
        if "MASTER_PORT" not in os.environ:
            os.environ["MASTER_PORT"] = str(until_joined.enter_context(held_port()))
        return _join(timedelta(seconds=timeout_seconds))


def _join(timeout: timedelta) -> DistInfo:
    cuda = torch.cuda.is_available()
    if not cuda:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    local_rank = int(os.environ["LOCAL_RANK"])
    if cuda:
        torch.cuda.set_device(local_rank)
    deepspeed = load_deepspeed()
    if not cuda:
        # A shared-memory collective that DeepSpeed compiles at start: half a minute and a C++ compiler
        # for calls we never make.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    backend = "nccl" if cuda else "gloo"
    deepspeed.init_distributed(dist_backend=backend, timeout=timeout, verbose=False)
    device = torch.device("cuda", local_rank) if cuda else torch.device("cpu")
    return DistInfo(dist.get_rank(), dist.get_world_size(), device)


def load_deepspeed() -> ModuleType:
    """DeepSpeed, which takes seconds: only a training process needs it."""
    with _without_mlflow():
        import deepspeed

    return deepspeed


@contextmanager
def _without_mlflow() -> Iterator[None]:
    """DeepSpeed's autotuner, which we do not use, loads MLflow where it can: seconds on every rank."""
    if "mlflow" in sys.modules:
        yield
        return
    sys.modules["mlflow"] = None  # Python's own way to say that there is none
    try:
        yield
    finally:
        del sys.modules["mlflow"]


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


def sum_tensor(value: Tensor, info: DistInfo) -> Tensor:
    """Sum of a CPU tensor over all ranks; every rank must call it."""
    if info.world_size > 1:
        on_device = value.to(info.device)
        dist.all_reduce(on_device)
        value.copy_(on_device)
    return value


class StopRequest:
    """A wish to stop early, by SIGUSR1, SIGTERM or the file named by ROSEATE_STOP_FILE.

    A signal only sets a flag; the loop looks at it between steps, where all ranks decide together.
    """

    def __init__(self) -> None:
        self._flag = False
        self._file = os.environ.get("ROSEATE_STOP_FILE")
        for number in (signal.SIGUSR1, signal.SIGTERM):
            signal.signal(number, self._set)

    def _set(self, *_: object) -> None:
        self._flag = True

    @property
    def asked(self) -> bool:
        """Whether this rank was asked to stop."""
        return self._flag or (self._file is not None and Path(self._file).exists())
