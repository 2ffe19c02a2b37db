"""Processes that work on many files of a folder and end with whoever started them."""

import os
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context, parent_process
from threading import Thread


def worker_pool(workers: int) -> ProcessPoolExecutor:
    """A pool of so many; they also end when this process is killed."""
    return ProcessPoolExecutor(workers, get_context("forkserver"), initializer=_end_with_parent)


def _end_with_parent() -> None:
    """A pool whose owner is killed would wait for work for ever."""
    Thread(target=lambda: (parent_process().join(), os._exit(1)), daemon=True).start()
