"""Folders of WebDataset tars as img2dataset and others leave them; and what webdataset reads there."""

import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import webdataset
from PIL import Image

from pipeline.data.dataset import Dataset

SIZES = (7, 1, 12)
DRAW = np.random.default_rng()


def picture() -> bytes:
    """A JPEG of any size and colour."""
    buffer = io.BytesIO()
    size = DRAW.integers(1, 40, 2).tolist()
    Image.new("RGB", size, tuple(DRAW.integers(0, 256, 3).tolist())).save(buffer, "JPEG")
    return buffer.getvalue()


def pair(number: int) -> dict[str, object]:
    """Members of an image-text pair, the image drawn anew."""
    return {"jpg": picture(), "txt": f"caption {number}", "json": {"sha256": number}}


def document(number: int) -> dict[str, object]:
    """Members of an interleaved document of 14 parts, not in their order."""
    kinds = DRAW.integers(0, 2, 12).tolist()
    parts = {
        f"{i}.{'jpg' if k else 'txt'}": picture() if k else f"{i}" for i, k in enumerate(kinds)
    }
    return {"json": {}, "12.jpg": picture(), **parts, "13.txt": "the end"}


def write_tars(folder: Path, sample=pair, sizes=SIZES) -> Path:
    """As img2dataset leaves them: a table and statistics beside each tar."""
    folder.mkdir()
    for shard, size in enumerate(sizes):
        with webdataset.TarWriter(str(folder / f"{shard:05d}.tar")) as tar:
            for i in range(size):
                tar.write({"__key__": f"{shard:05d}{i:04d}", **sample(i)})
        table = pa.table({"key": [f"{shard:05d}{i:04d}" for i in range(size)]})
        pq.write_table(table, folder / f"{shard:05d}.parquet")
        (folder / f"{shard:05d}_stats.json").write_text(json.dumps({"count": size}))
    return folder


def check_against_webdataset(dataset: Dataset, tars: Path) -> None:
    """Every sample has the key and the bytes that webdataset finds in the tars."""
    urls = [str(path) for path in sorted(tars.glob("*.tar"))]
    plain = list(webdataset.WebDataset(urls, shardshuffle=False))
    assert len(dataset) == len(plain)
    for number, sample in enumerate(plain):
        raw = dataset.read(number)
        assert raw.key == f"{dataset.name}/{sample['__key__']}"
        if "jpg" in sample:
            assert raw.parts == [sample["jpg"], sample["txt"].decode()]
        else:
            for i, part in enumerate(raw.parts):
                expected = sample[f"{i}.jpg"] if isinstance(part, bytes) else sample[f"{i}.txt"]
                assert part == (expected if isinstance(part, bytes) else expected.decode())
            assert len(raw.parts) == 14
