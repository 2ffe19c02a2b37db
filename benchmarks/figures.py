"""What the benchmarks share: pairs of measurements, figures with goals, and how they are written.

A figure compares ours with a peer, measured in turn in one run, so that a machine that is busy for a
while slows both down. Every figure is of the kind where less is better, and every goal is the most
that ours / peer may be.
"""

import argparse
import json
import math
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch


@dataclass(frozen=True)
class Figure:
    """One comparison.

    Attributes:
        figure: what was measured.
        ours: median.
        peer: median.
        unit: of both.
        ratio: median over the pairs of ours / peer.
        spread: distance between the quartiles of these ratios.
        low, high: where the median of endlessly many pairs lies, at 95 %; of fewer than 6 all of them.
        goal: largest ratio that is good enough; None where a figure is there to be known.
        met: whether it is; None without a goal.
    """

    figure: str
    ours: float
    peer: float
    unit: str
    ratio: float
    spread: float
    low: float
    high: float
    goal: float | None
    met: bool | None


@dataclass(frozen=True)
class Pairs:
    """Measurements in turn: ``ours[i]`` and ``peer[i]`` belong together."""

    ours: list[float]
    peer: list[float]

    def figure(self, name: str, unit: str, goal: float | None = None) -> Figure:
        """Sum up by medians; say so on stderr, since a whole benchmark takes minutes."""
        ratios = [ours / peer for ours, peer in zip(self.ours, self.peer, strict=True)]
        ratio, spread = statistics.median(ratios), 0.0
        if len(ratios) > 1:
            low, _, high = statistics.quantiles(ratios, n=4, method="inclusive")
            spread = high - low
        met = None if goal is None else ratio <= goal
        low, high = interval(ratios)
        ours, peer = statistics.median(self.ours), statistics.median(self.peer)
        print(f"{name}: {ratio:.3f} ({low:.3f} to {high:.3f})", file=sys.stderr, flush=True)
        return Figure(name, ours, peer, unit, ratio, spread, low, high, goal, met)


def interval(values: list[float]) -> tuple[float, float]:
    """The 95 % interval of a median by order statistics: no shape of the distribution is assumed."""
    ranked, count = sorted(values), len(values)
    outside, below = 0, 0.0  # values left out on each side, and how likely the median is among them
    while (below := below + math.comb(count, outside) / 2**count) <= 0.025:
        outside += 1
    outside = max(0, outside - 1)
    return ranked[outside], ranked[count - 1 - outside]


def paired(
    ours: Callable[[], float], peer: Callable[[], float], pairs: int, *, warm_up: bool = True
) -> Pairs:
    """Measure in turn.

    Args:
        ours: returns one measurement, such as `seconds` of a call.
        peer: likewise.
        pairs: how many; who goes first changes from pair to pair.
        warm_up: first measure each once more, which does not count.
    """
    if warm_up:
        ours(), peer()
    measured: tuple[list[float], list[float]] = ([], [])
    for index in range(pairs):
        for side in (0, 1) if index % 2 == 0 else (1, 0):
            measured[side].append((ours, peer)[side]())
    return Pairs(*measured)


def seconds(call: Callable[[], object], args: argparse.Namespace) -> float:
    """Time of one call by the chosen clock, work queued on a GPU included."""
    clock = time.process_time if args.clock == "cpu" else time.perf_counter
    if args.device == "cuda":
        torch.cuda.synchronize()
    start = clock()
    call()
    if args.device == "cuda":
        torch.cuda.synchronize()
    return clock() - start


def parser(description: str) -> argparse.ArgumentParser:
    """Build the command line that every benchmark has; a benchmark may add to it."""
    result = argparse.ArgumentParser(description=description)
    result.add_argument("--quick", action="store_true", help="small sizes, under a minute")
    result.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="default: cpu")
    result.add_argument(
        "--clock",
        choices=["wall", "cpu"],
        default="wall",
        help="cpu: processor time of all threads, for a machine that is busy with other work; set "
        "OMP_WAIT_POLICY=passive with it, so that waiting does not count (default: wall)",
    )
    result.add_argument("--json", type=Path, metavar="PATH", help="write the figures here")
    result.add_argument("--markdown", type=Path, metavar="PATH", help="write a table here")
    return result


def write(figures: list[Figure], args: argparse.Namespace) -> None:
    """Print a table; write JSON and Markdown where the command line asks for them."""
    table = markdown_table(figures)
    print(f"{machine(args)}\n\n{table}")
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps([asdict(figure) for figure in figures], indent=1) + "\n")
    if args.markdown:
        args.markdown.parent.mkdir(parents=True, exist_ok=True)
        title = args.markdown.stem
        args.markdown.write_text(f"# {title}\n\n{machine(args)}\n\n{table}\n")


def markdown_table(figures: list[Figure]) -> str:
    """One row per figure, columns padded to be read as plain text."""
    rows = [["figure", "ours", "peer", "unit", "ours / peer", "95 %", "spread", "goal", "met"]]
    for figure in figures:
        goal = "" if figure.goal is None else f"<= {figure.goal:.3g}"
        met = {None: "", True: "yes", False: "no"}[figure.met]
        numbers = [f"{value:.4g}" for value in (figure.ours, figure.peer)]
        likely = f"{figure.low:.3f} to {figure.high:.3f}"
        ratios = [f"{figure.ratio:.3f}", likely, f"{figure.spread:.3f}"]
        rows.append([figure.figure, *numbers, figure.unit, *ratios, goal, met])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
        for row in rows
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def machine(args: argparse.Namespace) -> str:
    """Say what ran this: processor or GPU, threads, torch, clock."""
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        models = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        name = models[0].split(":", 1)[1].strip() if models else name
    if args.device == "cuda":
        name = f"{torch.cuda.get_device_name()}, {name}"
    clock = {"wall": "wall time", "cpu": "processor time of all threads"}[args.clock]
    return f"{name}, {torch.get_num_threads()} threads, torch {torch.__version__}, {clock}"
