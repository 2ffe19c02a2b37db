"""Figures of a node while a run works on it: `python -m pipeline.tracking.system FOLDER NODE SECONDS`.

A process of its own on every node, so that the training does not pay for it; it ends with its parent, by a
closed standard input. It writes to a file of the run's spool, which is on a disk that all nodes share, and the
run's sender takes it from there. The names are MLflow's own, `system/{node}/...`, which its page shows apart.
"""

import os
import select
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from data_prep.python_path import python_path
from pipeline.tracking.spool import Spool, read_records

MEGABYTE = 1e6


class Node:
    """What one node can tell.

    Args:
        folder: whose disk is looked at.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._network = psutil.net_io_counters()
        self._gpus = _open_gpus()
        psutil.cpu_percent()  # the first call only begins

    def figures(self) -> dict[str, float]:
        """By MLflow's names; of network traffic the megabytes since the first look."""
        memory, disk = psutil.virtual_memory(), psutil.disk_usage(str(self._folder))
        figures = {
            "cpu_utilization_percentage": psutil.cpu_percent(),
            "system_memory_usage_megabytes": memory.used / MEGABYTE,
            "system_memory_usage_percentage": memory.percent,
            "disk_usage_percentage": disk.percent,
            "disk_available_megabytes": disk.free / MEGABYTE,
        }
        if self._network and (now := psutil.net_io_counters()):
            received = now.bytes_recv - self._network.bytes_recv
            sent = now.bytes_sent - self._network.bytes_sent
            figures["network_receive_megabytes"] = received / MEGABYTE
            figures["network_transmit_megabytes"] = sent / MEGABYTE
        for number, look in enumerate(self._gpus):
            figures |= {f"gpu_{number}_{name}": value for name, value in look().items()}
        return figures


def _open_gpus() -> list[Callable[[], dict[str, float]]]:
    try:
        import pynvml

        pynvml.nvmlInit()
        handles = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
    except Exception:  # no package, no driver, no GPU
        return []

    def look(handle: object) -> dict[str, float]:
        memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
        rates = pynvml.nvmlDeviceGetUtilizationRates(handle)
        return {
            "memory_usage_megabytes": memory.used / MEGABYTE,
            "memory_usage_percentage": 100 * memory.used / memory.total,
            "utilization_percentage": float(rates.gpu),
            "power_usage_watts": pynvml.nvmlDeviceGetPowerUsage(handle) / 1000,
        }

    return [lambda handle=handle: look(handle) for handle in handles]


class NodeMonitor:
    """Watches this node while it is open, on the first rank of every node; use as a context manager.

    Args:
        folder: of the run's spool.
        seconds: between two looks; 0 for none.
    """

    def __init__(self, folder: Path, seconds: float) -> None:
        self._folder, self._seconds = folder, seconds
        self._process: subprocess.Popen | None = None

    def __enter__(self) -> "NodeMonitor":
        if self._seconds and os.environ.get("LOCAL_RANK", "0") == "0":
            node = os.environ.get("SLURM_NODEID") or os.environ.get("GROUP_RANK") or "0"
            arguments = [str(self._folder), node, str(self._seconds)]
            self._process = subprocess.Popen(
                [sys.executable, "-m", "pipeline.tracking.system", *arguments],
                env=os.environ | {"PYTHONPATH": python_path()},
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
            )
        return self

    def __exit__(self, *_: object) -> None:
        if self._process:
            self._process.stdin.close()
            self._process.wait()


def watch(folder: Path, node: int, seconds: float) -> None:
    """Write a node's figures until standard input is closed."""
    name = f"node_{node}.jsonl"
    step = sum(1 for _ in read_records(folder / name))
    spool, here = Spool(folder, name), Node(folder)
    began = time.monotonic()
    while True:
        began += seconds
        ready, _, _ = select.select([sys.stdin.buffer], [], [], max(0.0, began - time.monotonic()))
        if ready and not os.read(sys.stdin.fileno(), 1):
            return
        step += 1
        values = {f"system/node_{node}/{k}": v for k, v in here.figures().items()}
        spool.append("metrics", step=step, values=values)


if __name__ == "__main__":
    watch(Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]))
