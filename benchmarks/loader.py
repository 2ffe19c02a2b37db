"""Reading samples: ours against webdataset, mosaicml-streaming and litdata, from disk and from S3; and
what else the data path promises: padding, the order of 400 million samples, steps that do not wait.

    python -m benchmarks.loader [--quick] [--data PATH] [--parts disk s3 packing order]
        [--loaders NAME ...] [--pairs N] [--demo ROOT] [--clock cpu|wall] [--json PATH] [--markdown PATH]

The same JPEGs and captions in every loader's own format, one decode function for all, batches of 64.
`bytes only` hands the JPEGs on as they are, so that the loader itself shows; `decoded` is what
training pays. A core's time is that of the loading process and all its children.

From disk (that is, from the page cache: every round reads the same files): one process for each
loader goes on for ever with full buffers, and the loaders take turns for some seconds at a time,
with one thread in torch. From S3: a server on this machine's loopback, so what a loader spends
shows and not how it hides a slow network; each measurement is one whole pass with an empty cache,
from the making of the dataset to the last batch, imports left out.

`--quick` leaves out S3 and worker processes, and reads 2,000 samples for 0.3 s at a time: it
shows that all runs; a pass is so short that its start weighs in streaming's figures. Peers are optional:
one that is not installed is named and left out (see loader_peers.py).
"""

import argparse
import json
import multiprocessing
import shutil
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

from benchmarks.figures import Figure, Pairs, machine, parser, write
from benchmarks.loader_data import COPIES, Place, prepare, statistics
from benchmarks.loader_measure import CASES, Case, Cost, OthersWork, in_turn, reading, whole_pass
from benchmarks.loader_order import order_figures
from benchmarks.loader_packing import packing_figures
from benchmarks.loader_peers import PEERS, missing
from benchmarks.loader_s3 import serving

# Who is compared with whom, and the most that time of a core per sample may be in ratio: webdataset's
# samples 1.5 times.
COMPARISONS = (
    ("ours", "webdataset", 1 / 1.5),
    ("ours", "streaming", 1.0),
    ("ours", "litdata", 1.0),
    ("decoding alone", "webdataset", None),
    ("ours", "webdataset's own decoding", None),
    ("ours by ranges", "ours", None),
)
DEMO_RUN, WAIT_LIMIT = "flamingo", 0.02
QUIET_CORES = 0.1
NOTES = """\
- `decoding alone / webdataset` is about what a loader that costs nothing would reach with this decode
  function (within the spread: loaders also differ by some per cent in how often freed memory goes back
  to the system), so that a goal far below it cannot be met on decoded rows.
- `webdataset's own decoding` is `.decode("pil")` and the operations of torchvision's Resize, CenterCrop,
  ToTensor and Normalize, as people run it: what changing to ours gives. Ours leaves the normalising to
  the device.
- litdata from disk maps its chunks into memory and decodes windows of 256 neighbours at once, one window
  after another and shuffled within. Of 20,000 samples the 64 of a batch span 252 in the median; ours,
  with one read for each, 19,684; streaming's 19,464, webdataset's 17,866.
- litdata from S3 with 2 workers: a chunk that two workers share is not mapped; it is read whole, 64 MB,
  for every window of 256. Here one chunk of three is shared; in a large set it would be one for each
  worker.
- `ours` from S3 keeps whole shards in a cache that is empty at first (`data.remote.read=shards`);
  `ours by ranges` asks for single samples and keeps nothing, which is for reading a small part.
"""


def disk(args: argparse.Namespace, names: list[str]) -> list[Figure]:
    """From disk, steady state."""
    place = Place(prepare(args.data, 2_000 if args.quick else 20_000, copies(names)))
    print(statistics(place.data), file=sys.stderr)
    figures, seconds = [], 0.3 if args.quick else 3.0
    for case in CASES[::2] if args.quick else CASES:
        wanted = list(names)
        if case.decode and "webdataset" in names:
            wanted += ["webdataset's own decoding"]
            wanted += ["decoding alone"] if case.num_workers == 0 else []
        with reading(wanted, place, case) as readers:
            measures = {name: partial(read, seconds) for name, read in readers.items()}
            figures += compare(f"disk, {case.name}", in_turn(measures, args.pairs), args)
    return figures


def s3(args: argparse.Namespace, names: list[str]) -> list[Figure]:
    """From an S3 server on loopback, whole passes with an empty cache."""
    place = Place(prepare(args.data, 6_000, copies(names)))
    figures = []
    with serving(place) as remote, tempfile.TemporaryDirectory(dir=place.data) as folder:

        def measure(name: str, case: Case) -> Cost:
            cache = Path(folder) / name
            work = replace(remote, cache=cache)
            context = multiprocessing.get_context("spawn")
            try:
                with ProcessPoolExecutor(1, context) as pool:
                    return pool.submit(whole_pass, name, work, case).result()
            finally:
                shutil.rmtree(cache, ignore_errors=True)

        for case in CASES:
            by_ranges = "ours" in names and case == CASES[0]
            wanted = [*names, "ours by ranges"] if by_ranges else names
            measures = {name: partial(measure, name, case) for name in wanted}
            figures += compare(f"S3, {case.name}", in_turn(measures, args.pairs), args)
    return figures


def compare(name: str, costs: dict[str, list[Cost]], args: argparse.Namespace) -> list[Figure]:
    """Tell every loader's samples a second, and make a figure of each comparison."""
    for loader, found in costs.items():
        wall, cpu = (sorted(getattr(c, k) for c in found)[len(found) // 2] for k in ("wall", "cpu"))
        rates = f"{1 / cpu:8,.0f} samples/s per core, {1 / wall:8,.0f} samples/s"
        print(f"{name}, {loader}: {rates}", file=sys.stderr, flush=True)
    taken = {
        loader: [getattr(cost, args.clock) * 1e6 for cost in found]
        for loader, found in costs.items()
    }
    return [
        Pairs(taken[one], taken[other]).figure(f"{name}, {one} / {other}", "us per sample", goal)
        for one, other, goal in COMPARISONS
        if one in taken and other in taken
    ]


def copies(names: list[str]) -> tuple[str, ...]:
    """The formats that these loaders read."""
    return tuple(c for c in COPIES if {"mds": "streaming"}.get(c, c) in ("dataset", *names))


def step_wait(root: Path) -> Figure:
    """Share of the demo's training that waited for data, as its summary tells."""
    summary = json.loads((root / DEMO_RUN / "summary.json").read_text())
    measured = Pairs([summary["step_wait_ratio"]], [WAIT_LIMIT])
    return measured.figure("demo, share of time that steps wait for data / limit", "share", 1.0)


PARTS: dict[str, Callable[[argparse.Namespace, list[str]], list[Figure]]] = {
    "disk": disk,
    "s3": s3,
    "packing": lambda args, names: packing_figures(),
    "order": lambda args, names: order_figures(args.data, args),
}


def main() -> None:
    """Measure what is asked for and write it."""
    command = parser("reading samples, against webdataset, mosaicml-streaming and litdata")
    command.set_defaults(clock="cpu")
    command.add_argument(
        "--data",
        type=Path,
        default=Path(tempfile.gettempdir()) / "roseate-loader-samples",
        help="folder of the samples, made if not there, 2 GB (default: %(default)s)",
    )
    command.add_argument(
        "--parts", nargs="+", choices=PARTS, default=list(PARTS), help="default: all"
    )
    names = ["ours", *PEERS]
    command.add_argument("--loaders", nargs="+", choices=names, default=names)
    command.add_argument("--pairs", type=int, default=5, help="rounds (default: 5)")
    command.add_argument(
        "--demo", type=Path, metavar="ROOT", help="root of a demo that has been run: its step wait"
    )
    args = command.parse_args()
    if args.demo and not (args.demo / DEMO_RUN / "summary.json").exists():
        command.error(
            f"--demo: {args.demo} holds no {DEMO_RUN}/summary.json; run the demo to its end"
        )
    absent, parts = missing(), [part for part in PARTS if part in args.parts]
    if args.quick or "moto" in absent:
        parts = [part for part in parts if part != "s3"]
    for name in [*args.loaders, *(["moto"] if "s3" in args.parts and not args.quick else [])]:
        if name in absent:
            print(absent[name], file=sys.stderr)
    names = [name for name in args.loaders if name not in absent]
    figures, others = [], []
    for part in parts:
        work = OthersWork()
        figures += PARTS[part](args, names)
        others.append(f"{part} {work.cores():.2f}")
        if work.cores() > QUIET_CORES:
            others[-1] += " (not quiet)"
    if args.demo:
        figures.append(step_wait(args.demo))
    write(figures, args)
    head = f"Cores that other processes kept busy meanwhile, of all: {', '.join(others)}."
    print(f"\n{head}")
    if args.markdown:
        text = args.markdown.read_text().replace(machine(args), f"{machine(args)}\n\n{head}", 1)
        args.markdown.write_text(f"{text}\n{NOTES}")


if __name__ == "__main__":
    main()
