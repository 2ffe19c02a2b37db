"""Whole ingests as commands: ours, ours with img2dataset as its engine, and img2dataset itself."""

import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks.ingest_peer import ENVIRONMENT, QUALITY, SIZE, read_stats
from benchmarks.ingest_watch import Watch

PROCESSES = 2
ENGINE_THREADS = 64
OURS, ENGINE = "ours", "ours, engine=img2dataset"
MULTIPROCESSING, RAY = "img2dataset multiprocessing", "img2dataset ray"
_LIMIT_SECONDS = 1800.0


@dataclass(frozen=True)
class Result:
    """One ingest of a table.

    Attributes:
        ok: images stored.
        download_seconds: of the download itself, as the tool measures it.
        seconds: of the whole command, with its start and end.
        cpu_seconds: processor time of all of its processes.
        peak_bytes: the most memory that one worker held, its own processes included.
        statuses: rows by status.
    """

    rows: int
    ok: int
    download_seconds: float
    seconds: float
    cpu_seconds: float
    peak_bytes: int
    statuses: dict[str, int] | None = None


def run(
    name: str,
    table: Path,
    folder: Path,
    *,
    shard_rows: int,
    threads: int = ENGINE_THREADS,
    settings: tuple[str, ...] = (),
) -> Result:
    """Ingest a table into a folder that is deleted afterwards.

    Args:
        name: OURS, ENGINE, MULTIPROCESSING or RAY.
        shard_rows: rows per shard.
        threads: img2dataset's thread_count.
        settings: more of ours.

    Raises:
        RuntimeError: the command failed.
    """
    output = folder / "out"
    shutil.rmtree(output, ignore_errors=True)
    output.mkdir(parents=True)
    try:
        if name in (OURS, ENGINE):
            command = _ours(name, table, output, shard_rows, settings)
        else:
            command = [sys.executable, "-m", "benchmarks.ingest_peer", str(table), str(output)]
            command += ["--distributor", name.split()[1], "--processes", str(PROCESSES)]
            command += ["--threads", str(threads), "--shard-rows", str(shard_rows)]
        seconds, watch = _timed(command, folder / "log")
        taken = (seconds, watch.cpu_seconds, watch.peak_bytes)
        if name in (OURS, ENGINE):
            summary = json.loads((output / "summary.json").read_text())
            source = summary["sources"]["clip"]
            taken = (summary["seconds"], *taken)
            return Result(source["rows"], source["ok"], *taken, source["statuses"])
        return Result(*read_stats(output), *taken)
    finally:
        shutil.rmtree(output, ignore_errors=True)


def _ours(
    name: str, table: Path, output: Path, shard_rows: int, settings: tuple[str, ...]
) -> list[str]:
    download = {"allow_private_hosts": ["127.0.0.1"], "contact": "benchmark@example.org"}
    if name == ENGINE:
        download |= {"engine": "img2dataset", "robots": "ignore"}
        download |= {"concurrency": ENGINE_THREADS, "per_host": ENGINE_THREADS}
    ingest = {
        "output": f"{output}/data",
        "sources": {"clip": {"table": str(table)}},
        "shard_rows": shard_rows,
        "image": {"size": SIZE, "mode": "keep_ratio", "format": "jpg", "quality": QUALITY},
        "download": download,
        "ray": {"num_workers": PROCESSES},
    }
    config = output / "ingest.yaml"
    config.write_text(json.dumps({"ingest": ingest, "tracking": {"uri": ""}}))  # JSON is YAML
    command = [sys.executable, "-m", "pipeline", "ingest", str(config), *settings]
    return [*command, "--json", f"{output}/summary.json"]


def _timed(command: list[str], log: Path) -> tuple[float, Watch]:
    with log.open("wb") as file:
        began = time.perf_counter()
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            env=os.environ | ENVIRONMENT,
        )
        try:
            with Watch(process.pid, _is_worker) as watch:
                process.wait(_LIMIT_SECONDS)
        finally:
            process.kill()
        seconds = time.perf_counter() - began
    if process.returncode:
        last = log.read_text(errors="replace").strip().splitlines()[-20:]
        raise RuntimeError("\n".join([f"{command} ended with {process.returncode}", *last]))
    return seconds, watch


def _is_worker(command_line: str) -> bool:
    return command_line.startswith("ray::") or "--multiprocessing-fork" in command_line
