"""What the rules need to know of every sample of a shard: one pass over its tar, kept in a file.

    {curate.folder}/facts/{dataset}/{shard}.npy    one record of `facts_dtype` for each sample, in tar order

`dataset` is the beginning of the dataset's fingerprint. A file that is there is not made again, unless
it lacks a column.
"""

import hashlib
import io
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_prep.curate.looks import SIDE, look_at
from data_prep.image.formats import DECODE_ERRORS
from data_prep.schema import INDEX_DTYPE, Manifest, ShardEntry
from data_prep.storage import Folder, write_file
from data_prep.tar_members import members, sample_parts, split_name

_COLUMN = "column "


def facts_dtype(columns: tuple[str, ...]) -> np.dtype:
    """A packed record: 215 bytes and 8 for each column."""
    return np.dtype(
        [
            ("readable", "?"),  # the sample is whole, and its first image can be decoded
            ("has_image", "?"),
            ("image", "<u8"),  # hash of the first image
            ("miniature", "u1", (SIDE, SIDE, 3)),
            ("text", "<u8"),  # first 8 bytes of the sha256 of all texts
            ("characters", "<u4"),  # of all texts
            *((_COLUMN + name, "<f8") for name in columns),  # NaN where there is none
        ]
    )


@dataclass(frozen=True)
class FactsOf:
    """Where the facts of a dataset are, and how they are found.

    Attributes:
        url: of the dataset folder.
        manifest: of it.
        folder: of the facts.
        columns: of the ledger or the samples' JSON.
    """

    url: str
    manifest: Manifest
    folder: Path
    columns: tuple[str, ...]

    def path(self, shard: int) -> Path:
        return self.folder / f"{self.manifest.shards[shard].name}.npy"

    def is_there(self, shard: int) -> bool:
        """Whether they are made, with all columns."""
        if not self.path(shard).exists():
            return False
        return set(facts_dtype(self.columns).names) <= set(self.open(shard).dtype.names)

    def open(self, shard: int) -> np.ndarray:
        """The facts of a shard, memory-mapped."""
        return np.load(self.path(shard), mmap_mode="r")

    def column(self, shard: int, name: str) -> np.ndarray:
        """Values of a column in a shard, float64."""
        return self.open(shard)[_COLUMN + name]

    def make(self, shard: int) -> int:
        """Find and keep the facts of a shard; how many samples it has.

        Raises:
            OSError: its files cannot be read.
        """
        folder, entry = Folder(self.url, "data.sources"), self.manifest.shards[shard]
        index = np.load(io.BytesIO(folder.read(f"index/{entry.name}.npy")))
        if index.dtype != INDEX_DTYPE or len(index) != entry.samples:
            raise OSError(f"index/{entry.name}.npy of {self.url} is not that of the manifest")
        facts = np.zeros(len(index), facts_dtype(self.columns))
        for name in self.columns:
            facts[_COLUMN + name] = np.nan
        with open_tar(folder, entry) as tar:
            at = 0
            for place, record in enumerate(index):  # one after the other, as they lie in the tar
                _skip(tar, int(record["offset"]) - at)
                span = _read(tar, int(record["bytes"]))
                if len(span) < record["bytes"]:
                    raise OSError(f"{entry.path} ends before its index does")
                at = int(record["offset"]) + len(span)
                _look(facts[place : place + 1], span, self.columns)
        if self.columns:
            _take_ledger(facts, folder, entry, index["row"], self.columns)
        data = io.BytesIO()
        np.save(data, facts)
        self.folder.mkdir(parents=True, exist_ok=True)
        write_file(self.path(shard), data.getvalue())
        return len(index)


def open_tar(folder: Folder, entry: ShardEntry, *, at_random: bool = False):
    """The tar of a shard, to read from front to back or from any position."""
    name = entry.path
    if "://" in name:
        place, _, name = name.rpartition("/")
        folder = Folder(place, "data.sources")
    return folder.open_random(name) if at_random else folder.open(name)


def _skip(tar, size: int) -> None:
    while size > 0 and (found := tar.read(min(size, 1 << 20))):
        size -= len(found)


def _read(tar, size: int) -> bytes:
    """So many bytes, fewer only at the end."""
    parts = []
    while size > 0 and (found := tar.read(size)):
        parts.append(found)
        size -= len(found)
    return b"".join(parts)


def _look(fact: np.ndarray, span: bytes, columns: tuple[str, ...]) -> None:
    """Fill in the record of one sample; what cannot be read stays as it is."""
    try:
        _, parts = sample_parts(span)
        texts = [part for part in parts if isinstance(part, str)]
        images = [part for part in parts if isinstance(part, bytes)]
        if images:
            fact["image"], fact["miniature"] = look_at(images[0])
    except DECODE_ERRORS:
        return
    text = "\n".join(texts)
    fact["text"] = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
    fact["characters"] = sum(map(len, texts))
    fact["readable"], fact["has_image"] = True, bool(images)
    if columns:
        told = _json_of(span)
        for name in columns:
            if isinstance(value := told.get(name), int | float):
                fact[_COLUMN + name] = value


def _json_of(span: bytes) -> dict:
    for name, start, end in members(span):
        if split_name(name)[1] == "json":
            try:
                told = json.loads(span[start:end])
            except ValueError:
                return {}
            return told if isinstance(told, dict) else {}
    return {}


def _take_ledger(
    facts: np.ndarray,
    folder: Folder,
    entry: ShardEntry,
    rows: np.ndarray,
    columns: tuple[str, ...],
) -> None:
    """Columns that the ledger has, by the row of the input table; a folder of others has no ledger."""
    name = f"ledger/{entry.name}.parquet"
    if not folder.exists(name):
        return
    import pyarrow.parquet as pq  # what few need

    with folder.open_random(name) as raw:
        file = pq.ParquetFile(raw)
        there = [c for c in columns if c in file.schema_arrow.names]
        if not there:
            return
        ledger = file.read(["row", *there])
    order = ledger["row"].to_numpy()
    places = np.searchsorted(order, rows)
    for column in there:
        values = ledger[column].cast("float64", safe=False).to_numpy()[places]
        facts[_COLUMN + column] = values
