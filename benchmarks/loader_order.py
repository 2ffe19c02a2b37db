"""How long a new process takes to know the order in the middle of 400 million samples, and what it holds.

The dataset is a folder with the manifest of 40,000 shards and a selection that keeps 90 %; its tars and
indexes are not there, and the order does not ask for them. The process must not import torch, so that
this module imports it only where figures are made.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from data_prep.bitmap import write_bitmap
from data_prep.schema import Manifest, ShardEntry, canonical_hash
from data_prep.storage import write_file
from pipeline.data.dataset import Dataset
from pipeline.data.order import Order

SHARDS, SHARD_SAMPLES, KEPT = 40_000, 10_000, 0.9
POSITION, BATCH_SAMPLES = 10**9, 1024
SECONDS, MEGABYTES = 1.0, 200.0


def write_folder(folder: Path) -> None:
    """Write manifest and selection, if they are not there."""
    if (folder / "bitmaps" / "kept.json").exists():
        return
    random = np.random.default_rng(0)
    shards = [
        ShardEntry(
            name=f"{shard:06d}",
            path=f"shards/{shard:06d}.tar",
            rows=SHARD_SAMPLES,
            samples=SHARD_SAMPLES,
            bytes=int(random.integers(240_000_000, 260_000_000)),
            sha256=random.bytes(32).hex(),
        )
        for shard in range(SHARDS)
    ]
    samples = SHARDS * SHARD_SAMPLES
    manifest = Manifest(
        source="drawn",
        input_fingerprint=canonical_hash("drawn"),
        policy_hash=canonical_hash("drawn"),
        rows=samples,
        samples=samples,
        statuses={"ok": samples},
        shards=shards,
    )
    folder.mkdir(parents=True, exist_ok=True)
    write_file(folder / "manifest.json", manifest.model_dump_json(indent=1).encode())
    kept = (random.random(SHARD_SAMPLES, np.float32) < KEPT for _ in shards)
    write_bitmap(folder, manifest, "kept", kept, "benchmarks.loader_order")


def in_new_process(folder: Path) -> dict:
    """What `main` found, and seconds since the process was started."""
    began = time.perf_counter()
    command = [sys.executable, "-m", "benchmarks.loader_order", str(folder), str(began)]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return json.loads(output)


def order_figures(data: Path, args: argparse.Namespace) -> list:
    """Time and memory of `args.pairs` new processes against the most that they may be."""
    from benchmarks.figures import Pairs

    write_folder(data / "order")
    found = [in_new_process(data / "order") for _ in range(args.pairs)]
    wrong = {module for one in found for module in one["must_not_import"]}
    if wrong:
        raise RuntimeError(f"the order imports {', '.join(sorted(wrong))}")
    samples = f"position 10^9 of {SHARDS * SHARD_SAMPLES:,} samples"
    figures = []
    for name, key, unit, limit, goal in (
        ("time with imports", f"{args.clock}_seconds", "s", SECONDS, 1.0),
        ("time after imports", f"{args.clock}_seconds_after_imports", "s", SECONDS, None),
        ("resident memory", "megabytes", "MB", MEGABYTES, 1.0),
    ):
        measured = Pairs([one[key] for one in found], [limit] * len(found))
        figures.append(measured.figure(f"order, {samples}, {name} / limit", unit, goal))
    return figures


def main() -> None:
    """In the new process: open the dataset, locate the batch, and tell what that took."""
    folder, began = sys.argv[1], float(sys.argv[2])
    imported = {"wall": time.perf_counter(), "cpu": time.process_time()}
    dataset = Dataset(folder, "benchmark", bitmaps=["kept"])
    order = Order(0, {"drawn": dataset.counts}, [(0, {"drawn": 1.0})])
    places = order.batch(POSITION, BATCH_SAMPLES)
    ended = {"wall": time.perf_counter(), "cpu": time.process_time()}
    assert len(places) == BATCH_SAMPLES
    status = Path("/proc/self/status").read_text().splitlines()
    peak = next(int(line.split()[1]) for line in status if line.startswith("VmHWM:"))
    found = {
        # perf_counter is one clock for all processes of a Linux machine.
        "wall_seconds": ended["wall"] - began,
        "cpu_seconds": ended["cpu"],
        "wall_seconds_after_imports": ended["wall"] - imported["wall"],
        "cpu_seconds_after_imports": ended["cpu"] - imported["cpu"],
        "megabytes": peak * 1024 / 1e6,
        "must_not_import": [m for m in ("torch", "transformers") if m in sys.modules],
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
