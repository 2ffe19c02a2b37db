"""img2dataset itself as people run it, in a process of its own: `python -m benchmarks.ingest_peer ...`.

Its settings are those that give what ours gives: the longer side at most 256 pixels and never enlarged,
jpg of quality 95, WebDataset shards, sha256 of the files. No EXIF column, since ours has none.
"""

import argparse
import json
from pathlib import Path

SIZE, QUALITY = 256, 95
# What img2dataset's packages would ask the network for costs it 3 seconds at every start.
ENVIRONMENT = {
    "NO_ALBUMENTATIONS_UPDATE": "1",
    "WANDB_MODE": "disabled",
    "WANDB_ERROR_REPORTING": "false",
}
_OBJECT_STORE_BYTES = 200_000_000


def main() -> None:
    """Download a table."""
    command = argparse.ArgumentParser(description="run img2dataset on a table")
    command.add_argument("table")
    command.add_argument("output")
    command.add_argument("--distributor", choices=["multiprocessing", "ray"], required=True)
    command.add_argument("--processes", type=int, required=True)
    command.add_argument("--threads", type=int, required=True)
    command.add_argument("--shard-rows", type=int, required=True)
    args = command.parse_args()
    if args.distributor == "ray":
        import ray

        ray.init(
            address="local",
            num_cpus=args.processes,
            include_dashboard=False,
            object_store_memory=_OBJECT_STORE_BYTES,
            log_to_driver=False,
            logging_level="ERROR",
        )
    import img2dataset

    img2dataset.download(
        url_list=args.table,
        output_folder=args.output,
        input_format="parquet",
        url_col="url",
        caption_col="caption",
        output_format="webdataset",
        image_size=SIZE,
        resize_mode="keep_ratio_largest",
        resize_only_if_bigger=True,
        encode_format="jpg",
        encode_quality=QUALITY,
        max_aspect_ratio=20.0,
        extract_exif=False,
        compute_hash="sha256",
        processes_count=args.processes,
        thread_count=args.threads,
        number_sample_per_shard=args.shard_rows,
        distributor=args.distributor,
    )


def read_stats(output: Path) -> tuple[int, int, float]:
    """Rows, successes and seconds of a finished download, from its shards' own statistics.

    The seconds go from the begin of the first shard to the end of the last one: without the start.
    """
    stats = [json.loads(path.read_text()) for path in output.glob("*_stats.json")]
    began, ended = min(s["start_time"] for s in stats), max(s["end_time"] for s in stats)
    return sum(s["count"] for s in stats), sum(s["successes"] for s in stats), ended - began


if __name__ == "__main__":
    main()
