"""The peak of memory that a call adds, measured in a process of its own.

On a CPU this is resident memory, so it counts everything that the call touches: activations, the
gradients that it leaves (of weights and of its inputs), and what libraries hold for a moment. On a
GPU it is what torch's allocator gave out.
"""

import ctypes
import logging
import multiprocessing
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.figures import Pairs, paired


def peak_memory(call: Callable[[], object], device: str) -> float:
    """Peak MiB of a call above what was held before it."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated()
        call()
        return (torch.cuda.max_memory_allocated() - held) / 2**20
    # Linux only. What was freed goes back first, or the call would fill it unseen.
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts from here
    held = _status("VmRSS")
    call()
    return (_status("VmHWM") - held) / 2**10


def compare_memory(measure: Callable[..., float], ours: tuple, peer: tuple, repeats: int) -> Pairs:
    """Measure in turn, each time in a new process.

    Args:
        measure: a function of a module; returns a `peak_memory`.
        ours: its arguments.
        peer: likewise.
        repeats: how many pairs.
    """
    # Every process is a fork of one that has imported this much and run nothing.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["model.build"])

    def in_new_process(work: tuple) -> float:
        with context.Pool(1, logging.disable, (logging.WARNING,)) as pool:
            return pool.apply(measure, work)

    return paired(
        lambda: in_new_process(ours), lambda: in_new_process(peer), repeats, warm_up=False
    )


def _status(name: str) -> int:
    """A field of the process in KiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name + ":"))
