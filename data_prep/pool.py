"""Processes that work on many files of a folder and end with whoever started them."""

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from multiprocessing import get_context, parent_process
from threading import Thread
from typing import TypeVar

K = TypeVar("K")


def run_jobs(
    workers: int | None, function: Callable, jobs: Iterable[tuple[K, tuple]]
) -> Iterator[tuple[K, Future]]:
    """Call a function with the arguments of each job; the key of each and its ended task, as they end.

    Never more are handed out than there is work for. The processes also end when this one is killed.

    Args:
        workers: processes, by default one for each CPU.

    Raises:
        concurrent.futures.process.BrokenProcessPool: one of them was killed.
    """
    workers = workers or len(os.sched_getaffinity(0))
    context, running = get_context("forkserver"), {}
    with ProcessPoolExecutor(workers, context, initializer=_end_with_parent) as pool:
        for key, arguments in jobs:
            while len(running) > workers:
                yield from _take_ended(running)
            running[pool.submit(function, *arguments)] = key
        while running:
            yield from _take_ended(running)


def _take_ended(running: dict[Future, K]) -> list[tuple[K, Future]]:
    ended, _ = wait(running, return_when=FIRST_COMPLETED)
    return [(running.pop(task), task) for task in ended]


def _end_with_parent() -> None:
    """A pool whose owner is killed would wait for work for ever."""
    Thread(target=lambda: (parent_process().join(), os._exit(1)), daemon=True).start()
