"""Run a function on N gloo processes and hand back what each returned."""

import os
import pickle
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path

from tests.helpers.forks import fork_group


def run_processes(function: Callable, processes: int, *arguments: object) -> list:
    """`function(info, *arguments)` on every rank; the results by rank.

    Raises:
        RuntimeError: with the exit code of a rank that died, or the traceback of the first that failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        codes = fork_group(_rank, processes, Path(folder), function, arguments)
        told = {int(p.name): pickle.loads(p.read_bytes()) for p in Path(folder).glob("[0-9]*")}
    # One that dies makes the others fail, and those that still wait then are killed.
    for rank in sorted(codes, key=lambda rank: rank in told):
        if rank not in told and codes[rank] != -signal.SIGKILL:
            raise RuntimeError(f"rank {rank} ended with exit code {codes[rank]}")
        if rank in told and told[rank][0]:
            raise RuntimeError(f"rank {rank}:\n{told[rank][0]}")
    if missing := [rank for rank in range(processes) if rank not in told]:
        raise RuntimeError(f"rank {missing[0]} ended with exit code {codes[missing[0]]}")
    return [told[rank][1] for rank in range(processes)]


def _rank(folder: Path, function: Callable, arguments: tuple) -> None:
    from pipeline.distributed import start_group, stop_group

    try:
        told = (None, function(start_group(), *arguments))
    except BaseException:
        told = (traceback.format_exc(), None)
    unfinished = folder / "unfinished" / os.environ["RANK"]
    unfinished.parent.mkdir(exist_ok=True)
    unfinished.write_bytes(pickle.dumps(told))
    unfinished.rename(folder / unfinished.name)
    stop_group()
    if told[0]:
        sys.exit(1)
