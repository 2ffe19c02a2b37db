"""Loaders in processes of their own, and what they take: in turn with full buffers, or a whole pass."""

import importlib
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from benchmarks.loader_data import Place
from benchmarks.loader_ours import (
    BATCH_SAMPLES,
    FORMAT,
    Decode,
    decode_alone,
    ours,
    ours_by_ranges,
)
from benchmarks.loader_peers import PEERS, import_streaming, webdataset_alone
from benchmarks.processes import process_stats

DRAINED_BATCHES = 8  # what workers had read ahead while the others were measured
LOADERS: dict[str, Callable] = {
    "ours": ours,
    **PEERS,
    "ours by ranges": ours_by_ranges,
    "webdataset's own decoding": webdataset_alone,
    "decoding alone": decode_alone,
}
# What a loader imports only when it reads from S3.
S3_CLIENTS = {"ours": "s3fs", "streaming": "boto3", "litdata": "obstore"}


@dataclass(frozen=True)
class Cost:
    """What reading took.

    Attributes:
        wall: seconds per sample.
        cpu: seconds per sample of all cores, in the process and its children.
    """

    wall: float
    cpu: float


@dataclass(frozen=True)
class Case:
    """One way of reading that is measured for all loaders."""

    name: str
    decode: Decode | None
    num_workers: int


CASES = [
    Case(f"{what}, {workers} workers", decode, workers)
    for what, decode in (("bytes only", None), ("decoded", FORMAT.decode))
    for workers in (0, 2)
]


def cpu_seconds() -> float:
    """Processor time of this process, its living descendants and those that ended (Linux)."""
    parents, times = {}, {}
    for process, fields in process_stats():
        parents[process] = int(fields[1])
        times[process] = sum(int(ticks) for ticks in fields[11:15])
    family, size = {os.getpid()}, 0
    while len(family) > size:
        size = len(family)
        family |= {child for child, parent in parents.items() if parent in family}
    return sum(times[process] for process in family if process in times) / os.sysconf("SC_CLK_TCK")


def start_as_in_training() -> None:
    """Fork workers, as a script does on Linux; this process was spawned. One thread in torch."""
    multiprocessing.set_start_method("fork", force=True)
    torch.set_num_threads(1)


def serve(pipe: Connection, name: str, place: Place, case: Case) -> None:
    """Body of a loader's process: for each number of seconds received, read and send a `Cost`.

    Before, it sends None once it has a batch.
    """
    start_as_in_training()
    batches = LOADERS[name](place, case.decode, case.num_workers, None)
    next(batches)
    pipe.send(None)
    while (seconds := pipe.recv()) is not None:
        for _ in range(DRAINED_BATCHES if case.num_workers else 1):
            next(batches)
        wall, cpu, num_samples = time.perf_counter(), cpu_seconds(), 0
        while time.perf_counter() < wall + seconds:
            next(batches)
            num_samples += BATCH_SAMPLES
        wall, cpu = time.perf_counter() - wall, cpu_seconds() - cpu
        pipe.send(Cost(wall / num_samples, cpu / num_samples))


@contextmanager
def reading(
    names: list[str], place: Place, case: Case
) -> Iterator[dict[str, Callable[[float], Cost]]]:
    """Start the processes of loaders; yields functions that let each read for some seconds."""
    context = multiprocessing.get_context("spawn")
    processes: dict[str, tuple] = {}

    def measure(name: str, seconds: float) -> Cost:
        _, pipe = processes[name]
        pipe.send(seconds)
        return pipe.recv()

    try:
        for name in names:
            near, far = context.Pipe()
            process = context.Process(target=serve, args=(far, name, place, case))
            process.start()
            far.close()
            processes[name] = process, near
        for _, pipe in processes.values():
            pipe.recv()
        yield {name: partial(measure, name) for name in names}
    finally:
        for _, pipe in processes.values():
            with suppress(OSError):  # it has ended by an error of its own
                pipe.send(None)
        for process, _ in processes.values():
            process.join(20)
            process.kill()  # some loaders leave threads that do not end


def start_server_of_workers(client: str) -> None:
    """Let the process that ours forks its workers from import now what they need: imports are left out."""
    multiprocessing.set_forkserver_preload(["benchmarks.loader", client])
    process = multiprocessing.get_context("forkserver").Process(target=int)
    process.start()
    process.join()


def whole_pass(name: str, place: Place, case: Case) -> Cost:
    """Read everything once; runs in a process of its own."""
    start_as_in_training()
    if name == "streaming":
        import_streaming()
    elif name in PEERS:
        importlib.import_module(name)
    client = S3_CLIENTS.get(name.split()[0])
    if client:
        importlib.import_module(client)
    if name.startswith("ours"):
        start_server_of_workers(client)
    place.cache.mkdir(parents=True)
    wall, cpu, num_samples = time.perf_counter(), cpu_seconds(), 0
    for _, texts in LOADERS[name](place, case.decode, case.num_workers, 1):
        num_samples += len(texts)
    wall, cpu = time.perf_counter() - wall, cpu_seconds() - cpu
    return Cost(wall / num_samples, cpu / num_samples)


def in_turn(measures: dict[str, Callable[[], Cost]], rounds: int) -> dict[str, list[Cost]]:
    """Measure all loaders round by round; who goes first moves on from round to round."""
    costs: dict[str, list[Cost]] = {name: [] for name in measures}
    names = list(measures)
    for index in range(rounds):
        first = index % len(names)
        for name in names[first:] + names[:first]:
            costs[name].append(measures[name]())
    return costs


class OthersWork:
    """How many cores other processes kept busy, from its making on: what makes timings unsteady."""

    def __init__(self) -> None:
        self._began = time.perf_counter(), _busy_seconds(), cpu_seconds()

    def cores(self) -> float:
        """Mean so far."""
        began, busy, own = self._began
        spent = _busy_seconds() - busy - (cpu_seconds() - own)
        return max(0.0, spent / (time.perf_counter() - began))


def _busy_seconds() -> float:
    """Processor time of the whole machine."""
    ticks = [int(t) for t in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]]
    user, nice, system, _, _, interrupts, soft = ticks[:7]
    return (user + nice + system + interrupts + soft) / os.sysconf("SC_CLK_TCK")
