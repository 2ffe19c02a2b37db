"""What MLflow costs a training step: server fine, slow, refusing, and what a point of the curves costs.

    python -m benchmarks.tracking [--quick] [--clock cpu] [--json PATH] [--markdown PATH]

The same small model twice, two steps each in turns: one tells every step to MLflow, the other to nobody. The
server is a real `mlflow server` on loopback, behind a line that delays every request by 10 seconds or refuses
connections. Both look at every step (gradient norms by part, routers, gates); that is a figure of its own,
against a run that looks at one step in a hundred. The sender is a process of its own: on a machine without a
core to spare it takes processor time from the training, which `--clock cpu` leaves out and the wall clock
shows; how much it uses at all is a figure too.
"""

import argparse
import os
import time
from pathlib import Path

import psutil
import torch

from benchmarks.engine import Ours, config_of, small_runs
from benchmarks.figures import Figure, Pairs, paired, parser, seconds, write
from pipeline.healing.watchdog import Watchdog
from tests.helpers.mlflow_server import Line, MlflowServer
from tests.helpers.tracked import begin_run

LIMIT = 1.01
DELAY_SECONDS = 10.0
EVERY = (
    "train={steps: 100000, log_every_steps: 1, validate_every_steps: 100000, precision: fp32, "
    "validate_samples: 16}"
)


def measure(args: argparse.Namespace) -> list[Figure]:
    """All figures."""
    with small_runs() as (root, info, watchdog), MlflowServer(root / "server") as server:
        line = Line(server.port)
        return steps(root, info, watchdog, line, args) + [call(root, server, args)]


def steps(root: Path, info, watchdog: Watchdog, line: Line, args) -> list[Figure]:
    """A tracked step against one that is not, under each mood of the server; and the cost of a look."""
    zero2 = "engine={strategy: zero2, expert_parallel: 1}"
    told = Ours(config_of(root, "told", EVERY, zero2), info, watchdog)
    silent = Ours(config_of(root, "silent", EVERY, zero2), info, watchdog)
    rare = Ours(config_of(root, "rare", zero2), info, watchdog)
    for ours in (told, silent, rare):
        ours.loop.save = lambda *_: None
        ours.steps(3)
    told.loop.tracker = begin_run(config_of(root, "told", EVERY, zero2, f"tracking.uri={line.uri}"))
    count, pairs = (5, 3) if args.quick else (2, 100)
    sender = psutil.Process(told.loop.tracker.sender.process.pid)

    def compare(one: Ours, other: Ours, name: str, limit: float | None) -> Figure:
        measured = paired(
            lambda: seconds(lambda: one.steps(count), args) / count,
            lambda: seconds(lambda: other.steps(count), args) / count,
            pairs,
        )
        return measured.figure(name, "s", limit)

    figures = []
    for name, delay, mode in (
        ("server fine", 0.0, "open"),
        ("10 s a request", DELAY_SECONDS, "open"),
        ("server refusing", 0.0, "refuse"),
    ):
        line.delay, line.mode = delay, mode
        before, step = processor_seconds(sender), told.loop.step
        figures.append(compare(told, silent, f"tracked step / untracked, {name}", LIMIT))
        used = (processor_seconds(sender) - before) / (told.loop.step - step)
        label = f"sender's processor time for a step / step, {name}"
        figures.append(Pairs([used], [figures[-1].peer]).figure(label, "s"))
    line.delay, line.mode = 0.0, "open"
    figures.append(compare(silent, rare, "looking at every step / at none", None))
    told.loop.tracker.end()
    return figures


def processor_seconds(process: psutil.Process) -> float:
    """What a process has used so far, of all its threads."""
    times = process.cpu_times()
    return times.user + times.system


def call(root: Path, server: MlflowServer, args: argparse.Namespace) -> Figure:
    """Seconds of one call with 200 values, which the calling thread pays, against a millisecond."""
    tracker = begin_run(config_of(root, "calls", f"tracking.uri={server.uri}"))
    values = {f"router/block_{i // 8}/expert_{i % 8}": i / 7 for i in range(200)}
    found = []
    for step in range(20 if args.quick else 300):
        began = time.perf_counter()
        tracker.metrics(values, step + 1)
        found.append(time.perf_counter() - began)
    tracker.end()
    middle = sorted(found)[len(found) // 2]
    return Pairs([middle], [1e-3]).figure("a call with 200 values / 1 ms", "s", 1.0)


def main() -> None:
    """Measure and write."""
    args = parser("what MLflow costs a training step").parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    write(measure(args), args)


if __name__ == "__main__":
    main()
