"""img2dataset's own resizer over files, one pass for each line on standard input; tells its seconds.

Run by `benchmarks.ingest_decode` as a file, in a python that has img2dataset 1.47.0 and need not have
Roseate. It imports nothing of ours.
"""

import argparse
import io
import os
import time
from pathlib import Path

os.environ |= {"NO_ALBUMENTATIONS_UPDATE": "1", "WANDB_MODE": "disabled"}


def main() -> None:
    """Answer until the input ends."""
    command = argparse.ArgumentParser(description="img2dataset's resizer")
    command.add_argument("list", type=Path, help="file with one path a line")
    command.add_argument("--mode", required=True)
    command.add_argument("--only-if-bigger", action="store_true")
    command.add_argument("--clock", choices=["wall", "cpu"], required=True)
    command.add_argument("--size", type=int, required=True)
    args = command.parse_args()
    from img2dataset.resizer import Resizer

    files = [Path(line).read_bytes() for line in args.list.read_text().splitlines()]
    resizer = Resizer(args.size, args.mode, args.only_if_bigger, encode_quality=95)
    clock = time.process_time if args.clock == "cpu" else time.perf_counter
    print("ready", flush=True)
    for _ in iter(input, "end"):
        start = clock()
        failed = sum(resizer(io.BytesIO(data))[0] is None for data in files)
        print(clock() - start, failed, flush=True)


if __name__ == "__main__":
    main()
