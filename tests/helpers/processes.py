"""Run a function on N gloo processes and hand back what each returned."""

import os
import time
import traceback
from collections.abc import Callable

import torch.multiprocessing as mp

from data_prep.ports import held_port


def run_processes(function: Callable, processes: int, *arguments: object) -> list:
    """`function(info, *arguments)` on every rank; the results by rank.

    Raises:
        RuntimeError: with the traceback of the first rank that failed, or its exit code.
    """
    with held_port() as port:
        return _run(function, processes, port, arguments)


def _run(function: Callable, processes: int, port: int, arguments: tuple) -> list:
    context = mp.get_context("spawn")
    queue = context.SimpleQueue()
    group = [
        context.Process(target=_enter, args=(rank, processes, port, function, arguments, queue))
        for rank in range(processes)
    ]
    for process in group:
        process.start()
    try:
        results: dict[int, object] = {}
        for _ in range(processes):
            _wait(queue, group)
            rank, failure, value = queue.get()
            if failure:
                raise RuntimeError(f"rank {rank}:\n{failure}")
            results[rank] = value
        return [results[r] for r in range(processes)]
    finally:
        for process in group:
            process.join(timeout=20)
            if process.is_alive():
                process.kill()


def _wait(queue, group) -> None:
    """Wait for a result; a process that died before it could tell anything is an error at once."""
    while queue.empty():
        dead = [(r, p.exitcode) for r, p in enumerate(group) if p.exitcode]
        if dead and queue.empty():
            raise RuntimeError(f"rank {dead[0][0]} ended with exit code {dead[0][1]}")
        time.sleep(0.02)


def _enter(rank, processes, port, function, arguments, queue) -> None:
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(processes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }
    from pipeline.distributed import start_group, stop_group

    try:
        value = function(start_group(), *arguments)
        queue.put((rank, None, value))
    except BaseException:
        queue.put((rank, traceback.format_exc(), None))
    finally:
        stop_group()
