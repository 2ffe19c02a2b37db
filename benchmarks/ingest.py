"""Ingesting, beside img2dataset: images a second, memory of a worker, and what planning and safety cost.

    python -m benchmarks.ingest [--quick] [--json PATH] [--markdown PATH]

nginx serves the drawings of OpenClipart on loopback. Ours (`roseate ingest`), ours with img2dataset as
its engine, and img2dataset itself with its multiprocessing and its ray distributor fetch those under 4
megapixels in turn, each as a command of its own with 2 processes, into shards of the same size with the
same settings of the images. Planning, safety and decoding have scripts of their own, which are run too.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

from benchmarks.figures import Figure, Pairs, machine, parser, write
from benchmarks.ingest_runs import ENGINE, MULTIPROCESSING, OURS, PROCESSES, RAY, Result, run
from benchmarks.ingest_web import spread_rows, write_tables
from benchmarks.loader_measure import OthersWork
from data_prep.examples.openclipart import OpenClipartWeb

GOAL = 1 / 2.5  # of the time per image
MEMORY_LIMIT_BYTES = 1e9
SHARD_ROWS = 1000
THREADS = (16, 64, 256)
TUNING_ROWS, QUICK_ROWS, QUICK_SHARD_ROWS = 2000, 600, 100
# What an image takes, by attribute of a result.
TAKEN = {
    "download": "download_seconds",
    "whole command": "seconds",
    "processor time": "cpu_seconds",
}
# What else there may be, each with --quick and --json like this one.
SCRIPTS = ("ingest_plan", "ingest_fetch", "ingest_decode")
# All drawings, as set by default and with the largest ones let through to the decoder.
MEMORY_CASES = {
    "limit of pixels as by default": (),
    "no limit of pixels": ("ingest.filter.max_pixels=1000000000",),
}
_BODIES = ("ingest.download.max_bytes=200000000", "ingest.download.timeout_seconds=120")

NOTES = """
- `download`: from the begin of the first shard to the end of the last one, as each tool says itself,
  without the start of its processes. `whole command`: with imports, tables and the start of the
  processes or of a local Ray, for all. `processor time`: of all processes of the command, nginx left out.
- The same for all: {processes} processes, rows per shard, longer side at most 256 pixels, jpg of quality
  95, sha256 of each file, tars. img2dataset: {threads}; no EXIF column; its packages' questions to the
  network at each start are switched off. Ours has all of its checks and robots.txt; with img2dataset as
  engine all but robots.txt and limits per host, which that cannot do.
- nginx runs on the same cores.
- Memory: a worker and the processes that it has started, resident, the highest of samples every 0.2 s.
"""


class Race:
    """Ingests of one table, in turn.

    Args:
        table: of drawings under 4 megapixels.
        folder: where the runs work.
        settings: shard_rows, and threads of img2dataset.
    """

    def __init__(self, table: Path, folder: Path, **settings: int) -> None:
        self.results: dict[str, list[Result]] = {}
        self._table, self._folder, self._settings = table, folder, settings

    def run(self, names: list[str], rounds: int) -> None:
        """Runs all once a round; who goes first moves on from round to round."""
        for index in range(rounds):
            first = index % len(names)
            for name in names[first:] + names[:first]:
                result = run(name, self._table, self._folder, **self._settings)
                self.results.setdefault(name, []).append(result)
                _tell(f"{name}: {_speeds([result])}")

    def figures(self) -> list[Figure]:
        """Time per image of everyone against each of img2dataset's distributors."""
        wanted = {(r.rows, r.ok) for results in self.results.values() for r in results}
        if len(wanted) != 1:
            raise RuntimeError(f"not all have stored the same number of images: {self.results}")
        found = []
        for what, attribute in TAKEN.items():
            for ours in (OURS, ENGINE):
                for peer in (MULTIPROCESSING, RAY):
                    if ours in self.results and peer in self.results:
                        pairs = Pairs(*(self._taken(name, attribute) for name in (ours, peer)))
                        goal = GOAL if ours == OURS and what == "download" else None
                        found.append(pairs.figure(f"{what}, {ours} / {peer}", "ms per image", goal))
        return found

    def _taken(self, name: str, attribute: str) -> list[float]:
        return [1e3 * getattr(result, attribute) / result.rows for result in self.results[name]]


def tune(table: Path, folder: Path) -> int:
    """The number of threads that img2dataset is fastest with, of those tried."""
    table = spread_rows(table, TUNING_ROWS)
    took = {}
    for threads in THREADS:
        result = run(MULTIPROCESSING, table, folder, shard_rows=SHARD_ROWS, threads=threads)
        took[threads] = result.download_seconds
        _tell(f"{MULTIPROCESSING}, {threads} threads: {_speeds([result])}")
    return min(took, key=took.get)


def memory(everything: Path, small: Path, folder: Path, threads: int) -> list[Figure]:
    """Peak memory of a worker on all drawings, against the limit; and on the small ones, img2dataset's."""
    found = []
    for case, settings in MEMORY_CASES.items():
        settings = (*settings, *_BODIES)
        result = run(OURS, everything, folder, shard_rows=SHARD_ROWS, settings=settings)
        _tell(f"all drawings, {case}: {result.statuses}")
        peak = Pairs([result.peak_bytes / 1e6], [MEMORY_LIMIT_BYTES / 1e6])
        name = f"memory of a worker, all {result.rows:,} drawings, {case} / limit"
        found.append(peak.figure(name, "MB", 1.0))
    ours, peer = (
        run(name, small, folder, shard_rows=SHARD_ROWS, threads=threads)
        for name in (OURS, MULTIPROCESSING)
    )
    peak = Pairs([ours.peak_bytes / 1e6], [peer.peak_bytes / 1e6])
    name = f"memory of a worker, drawings under 4 megapixels, {OURS} / {MULTIPROCESSING}"
    return [*found, peak.figure(name, "MB")]


def others(folder: Path) -> list[Figure]:
    """What the scripts beside this one measure."""
    found = []
    for name in SCRIPTS:
        if not Path(__file__).with_name(f"{name}.py").exists():
            continue
        _tell(f"benchmarks.{name}")
        path = folder / f"{name}.json"
        command = [sys.executable, "-m", f"benchmarks.{name}", "--json", str(path)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        found += [Figure(**figure) for figure in json.loads(path.read_text())]
    return found


def notes(race: Race, threads: int, quick: bool, work: OthersWork) -> str:
    """What the table does not say."""
    rounds, rows = len(race.results[OURS]), race.results[OURS][0].rows
    versions = ("img2dataset", "opencv-python-headless", "pillow", "aiohttp", "ray")
    best = "" if quick else f", the best of {', '.join(map(str, THREADS))}"
    return "\n".join(
        [
            f"- {rows:,} drawings under 4 megapixels by their header, rounds: {rounds}, who goes first "
            "changes. Medians, images a second:",
            *(f"  - {name}: {_speeds(results)}" for name, results in race.results.items()),
            NOTES.format(processes=PROCESSES, threads=f"{threads} threads{best}").strip(),
            f"- {', '.join(f'{name} {version(name)}' for name in versions)}. Other work on the machine, nginx "
            f"and processes that left their command among it, kept {work.cores():.2f} cores busy.",
        ]
    )


def beside_img2dataset(folder: Path, args: argparse.Namespace) -> tuple[list[Figure], str]:
    """Figures of speed and memory, and the notes on them."""
    figures, text, work = [], "", OthersWork()
    with OpenClipartWeb(folder / "nginx") as web:
        everything, small = write_tables(folder / "tables", web.base_url)
        if args.quick:
            table, threads, names = spread_rows(small, QUICK_ROWS), 64, [OURS, MULTIPROCESSING]
        else:
            table, threads, names = small, tune(small, folder), args.tools
        if "speed" in args.parts:
            shard_rows = QUICK_SHARD_ROWS if args.quick else SHARD_ROWS
            race = Race(table, folder, shard_rows=shard_rows, threads=threads)
            race.run(names, 1 if args.quick else args.pairs)
            figures, text = race.figures(), notes(race, threads, args.quick, work)
        if "memory" in args.parts and not args.quick:
            figures += memory(everything, small, folder, threads)
    return figures, text


def _speeds(results: list[Result]) -> str:
    download, whole = (
        statistics.median(r.rows / getattr(r, k) for r in results)
        for k in ("download_seconds", "seconds")
    )
    return f"{download:.0f} in the download, {whole:.0f} over the whole command"


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> None:
    """Measure and write."""
    command = parser("ingesting, beside img2dataset")
    command.add_argument("--pairs", type=int, default=5, help="rounds (default: 5)")
    tools = [OURS, ENGINE, MULTIPROCESSING, RAY]
    command.add_argument("--tools", nargs="+", choices=tools, default=tools, help="default: all")
    command.add_argument(
        "--parts",
        nargs="+",
        choices=["speed", "memory", "others"],
        default=["speed", "memory", "others"],
        help="default: all",
    )
    args = command.parse_args()
    figures, text = [], ""
    with tempfile.TemporaryDirectory(prefix="roseate-ingest-") as name:
        folder = Path(name)
        if {"speed", "memory"} & {*args.parts}:
            figures, text = beside_img2dataset(folder, args)
        if "others" in args.parts and not args.quick:
            figures += others(folder)
    write(figures, args)
    print(f"\n{text}")
    if args.markdown:
        head = machine(args)
        table = args.markdown.read_text().replace(head, f"{PROCESSES} cores of {head}", 1)
        args.markdown.write_text(f"{table}\n{text}\n")


if __name__ == "__main__":
    main()
