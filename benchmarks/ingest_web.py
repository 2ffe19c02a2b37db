"""The drawings of OpenClipart as tables for a benchmark, served by nginx on loopback."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from data_prep.examples.openclipart import CLIPART, build_openclipart_table

SMALL_PIXELS = 4_000_000


def write_tables(folder: Path, base_url: str) -> tuple[Path, Path]:
    """Write the table of all drawings, and of those under 4 megapixels by their header.

    Args:
        folder: where they go.
        base_url: where the drawings will be served.
    """
    folder.mkdir(parents=True, exist_ok=True)
    everything = build_openclipart_table(folder, base_url)
    table = pq.read_table(everything)
    small = folder / "small.parquet"
    is_small = [
        _pixels(CLIPART / "png" / path) < SMALL_PIXELS for path in table["path"].to_pylist()
    ]
    pq.write_table(table.filter(pa.array(is_small)), small)
    return everything, small


def spread_rows(table: Path, rows: int) -> Path:
    """Write a table of some rows of another one, evenly spread; returns that one if it has no more."""
    read = pq.read_table(table)
    if read.num_rows <= rows:
        return table
    chosen = np.linspace(0, read.num_rows - 1, rows).astype(int)
    target = table.with_name(f"{table.stem}-{rows}.parquet")
    pq.write_table(read.take(pa.array(chosen)), target)
    return target


def _pixels(path: Path) -> int:
    Image.MAX_IMAGE_PIXELS = None  # headers only
    with Image.open(path) as image:
        return image.width * image.height
