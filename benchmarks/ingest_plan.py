"""What planning a table of ten million rows takes: time and memory of a new process, imports included.

    python -m benchmarks.ingest_plan [--quick] [--rows N] [--json PATH] [--markdown PATH]

A LAION-like table of parquet files and a CC12M-like TSV are written, then planned at 1000 rows a shard,
and planned again with nothing changed, as each resumption does. The page cache holds them.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

ROWS, QUICK_ROWS, FILES = 10_000_000, 1_000_000, 8
BLOCK_ROWS = 50_000
SECONDS, MEGABYTES = 60.0, 500.0  # limits of ROWS rows
SETTLED_SECONDS = 2.5  # until the times of a file are relied on
_WORDS = [
    *("a", "red", "blue", "old", "new", "photo", "of", "the", "on", "in", "with", "house", "river"),
    *("dog", "cat", "table", "vintage", "dress", "for", "sale"),
]


def write_tables(folder: Path, rows: int) -> dict[str, Path]:
    """A folder of parquet files and a TSV."""
    parquet, tsv = folder / "laion", folder / "cc12m.tsv"
    parquet.mkdir()
    blocks = range(0, rows // FILES, BLOCK_ROWS)
    for number in range(FILES):
        sizes = [min(BLOCK_ROWS, rows // FILES - start) for start in blocks]
        tables = (_block(size, number * len(sizes) + i) for i, size in enumerate(sizes))
        first = next(tables)
        with pq.ParquetWriter(parquet / f"part-{number:05d}.parquet", first.schema) as file:
            for table in (first, *tables):
                file.write_table(table)
    with tsv.open("wb") as file:
        for start in range(0, rows, BLOCK_ROWS):
            block = _block(min(BLOCK_ROWS, rows - start), start)
            lines = pc.binary_join_element_wise(block["URL"], block["TEXT"], "\t")
            file.write("\n".join(lines.to_pylist()).encode() + b"\n")
    return {"LAION-like parquet": parquet, "CC12M-like TSV": tsv}


def _block(rows: int, seed: int) -> pa.Table:
    random = np.random.default_rng(seed)
    words = pa.array(_WORDS).take(random.integers(0, len(_WORDS), rows * 12))
    texts = pc.binary_join_element_wise(*(words[i::12] for i in range(12)), " ")
    hexes = random.bytes(16 * rows).hex()
    return pa.table(
        {
            "SAMPLE_ID": random.integers(0, 1 << 62, rows),
            "URL": [
                f"https://images.example.org/{hexes[i : i + 32]}.jpg"
                for i in range(0, 32 * rows, 32)
            ],
            "TEXT": texts,
            "WIDTH": random.integers(200, 2000, rows).astype(np.int32),
            "HEIGHT": random.integers(200, 2000, rows).astype(np.int32),
            "NSFW": pa.array(["UNLIKELY"] * rows),
            "similarity": random.random(rows),
        }
    )


def in_new_process(table: Path, folder: Path) -> dict:
    """What `plan` found, and seconds since the process was started."""
    began = time.perf_counter()
    command = [sys.executable, "-m", "benchmarks.ingest_plan", "--plan", str(table), str(folder)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return {"seconds": time.perf_counter() - began, **json.loads(done.stdout)}


def plan(table: str, folder: str) -> None:
    """In the new process: plan the table, save the plan, and tell what that took."""
    from data_prep.config import IngestConfig
    from data_prep.plan import PLAN_NAME, make_plan
    from data_prep.storage import Folder

    config = IngestConfig(output=folder, shard_rows=1000, sources={"web": {"table": table}})
    target = Folder(folder, "ingest.output")
    made = make_plan(config, "web", target)
    made.save(target)
    status = Path("/proc/self/status").read_text().splitlines()
    peak = next(int(line.split()[1]) for line in status if line.startswith("VmHWM:"))
    found = {
        "rows": made.rows,
        "shards": sum(1 for _ in made.shards()),
        "cpu_seconds": time.process_time(),
        "megabytes": peak * 1024 / 1e6,
        "plan_megabytes": target.size(PLAN_NAME) / 1e6,
    }
    print(json.dumps(found))


def measure(args: argparse.Namespace) -> list:
    """Time and memory against the most that they may be."""
    from benchmarks.figures import Pairs

    figures = []
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        tables = write_tables(Path(name), args.rows)
        time.sleep(SETTLED_SECONDS)
        for kind, table in tables.items():
            first = in_new_process(table, Path(name) / f"{kind} dataset")
            again = in_new_process(table, Path(name) / f"{kind} dataset")
            if {first["rows"], again["rows"]} != {args.rows}:
                raise RuntimeError(f"{first['rows']} and {again['rows']} rows of {args.rows}")
            print(f"{kind}: {first}, again {again}", file=sys.stderr)
            limit = SECONDS * args.rows / ROWS
            what = f"planning {args.rows:,} rows, {kind}"
            for found, label in ((first, what), (again, f"{what}, again")):
                pairs = Pairs([found["seconds"]], [limit])
                figures.append(pairs.figure(f"{label}, time / limit", "s", 1.0))
                pairs = Pairs([found["megabytes"]], [MEGABYTES])
                figures.append(pairs.figure(f"{label}, memory / limit", "MB", 1.0))
    return figures


def main() -> None:
    """Measure and write, or plan as the process that is measured."""
    if sys.argv[1:2] == ["--plan"]:
        plan(*sys.argv[2:])
        return
    from benchmarks.figures import parser, write

    command = parser("what planning a table takes")
    command.add_argument("--rows", type=int, help=f"default: {ROWS}; quick: {QUICK_ROWS}")
    command.add_argument("--folder", type=Path, help="for the tables, 4 GB (default: /tmp)")
    args = command.parse_args()
    args.rows = (args.rows or (QUICK_ROWS if args.quick else ROWS)) // FILES * FILES
    write(measure(args), args)


if __name__ == "__main__":
    main()
