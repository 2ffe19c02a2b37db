"""Micro-batches made ahead of their use: by a thread of the rank, or by worker processes.

Workers hold no state: what a micro-batch contains is a function of its position, so that any of them
can make any of them.
"""

import signal
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import forkserver, resource_tracker

import torch
from torch.utils.data import DataLoader

from data_prep.errors import DataBudgetError
from pipeline.batch_plan import BatchPlan
from pipeline.data.batch import Batch

# What ends a run whose data cannot be had; handed to the loop, so that all ranks end together.
DataFailure = DataBudgetError | OSError
STOPPING = (signal.SIGTERM, signal.SIGUSR1)


@dataclass(frozen=True)
class Requests:
    """The (position, micro-step) of every micro-batch of some steps, one after another."""

    plan: BatchPlan
    position: int
    steps: int

    def __len__(self) -> int:
        return self.steps * self.plan.accumulation_steps

    def __iter__(self) -> Iterator[tuple[int, int]]:
        for step in range(self.steps):
            for micro_step in range(self.plan.accumulation_steps):
                yield self.position + step * self.plan.global_size, micro_step


@dataclass
class MicroBatches(torch.utils.data.Dataset):
    """Request to micro-batch: what threads and workers run.

    Attributes:
        make: called with ``position`` and ``micro_step``; goes to worker processes.
    """

    make: Callable[..., Batch]

    def __getitem__(self, request: tuple[int, int]) -> Batch | DataFailure:
        position, micro_step = request
        try:
            return self.make(position=position, micro_step=micro_step)
        except (DataBudgetError, OSError) as error:
            return error


def by_thread(wanted: MicroBatches, requests: Requests) -> Iterator[Batch | DataFailure]:
    """In this process, a step ahead of its use."""
    ahead = requests.plan.accumulation_steps
    with ThreadPoolExecutor(1) as pool:
        coming = deque()
        for request in requests:
            coming.append(pool.submit(wanted.__getitem__, request))
            if len(coming) > ahead:
                yield coming.popleft().result()
        while coming:
            yield coming.popleft().result()


def by_workers(
    wanted: MicroBatches, requests: Requests, workers: int, prefetch_batches: int
) -> Iterator[Batch | DataFailure]:
    """By so many processes, each some micro-batches ahead."""
    loader = DataLoader(
        wanted,
        batch_size=None,
        sampler=requests,
        num_workers=workers,
        prefetch_factor=prefetch_batches,
        collate_fn=_as_it_is,
        pin_memory=torch.cuda.is_available(),
        # Not fork: the parent has threads of the communication library and of the tracker.
        multiprocessing_context="forkserver",
    )
    with _deaf_to_stopping():
        made = iter(loader)
    yield from made


@contextmanager
def _deaf_to_stopping() -> Iterator[None]:
    """Processes started inside do not hear the signals that ask a run to stop.

    A cluster sends them to every process of a job: the rank stops between two steps and saves, and
    until then it needs its workers. They end with it.
    """
    former = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
    try:
        # In this order and with the mask set again: starting the tracker unblocks SIGTERM.
        resource_tracker.ensure_running()
        signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
        # Imported once, by the server that all workers are forked from, and not by each of them.
        forkserver.set_forkserver_preload(["pipeline.data.loader"])
        forkserver.ensure_running()
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, former)


def _as_it_is(batch: Batch) -> Batch:
    return batch
