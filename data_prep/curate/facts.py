"""What the rules need to know of every sample of a shard: one pass over its tar, kept in two files.

    {curate.folder}/facts/{dataset}/{shard}.npy             one record of `facts_dtype` for each sample
    {curate.folder}/facts/{dataset}/{shard}.miniatures.npy  uint8 [samples, SIDE, SIDE, 3]

In tar order; `dataset` is the beginning of the dataset's fingerprint. What is there is not made again,
unless it lacks a column; then it gets that one besides those it has.
"""

import hashlib
import io
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_prep.curate.looks import SIDE, look_at
from data_prep.image.formats import DECODE_ERRORS
from data_prep.schema import Manifest, ShardEntry, canonical_hash, open_index
from data_prep.storage import Folder, write_file
from data_prep.tar_members import members, sample_parts, split_name

_COLUMN = "column "


def facts_dtype(columns: tuple[str, ...]) -> np.dtype:
    """A packed record: 30 bytes and 8 for each column."""
    return np.dtype(
        [
            ("readable", "?"),  # the sample is whole, and its first image can be decoded
            ("has_image", "?"),
            ("image", "<u8"),  # hash of the first image
            ("look", "<u8"),  # of its hash and its miniature together: equal for equal ones
            ("text", "<u8"),  # first 8 bytes of the sha256 of all texts
            ("characters", "<u4"),  # of all texts
            *((_COLUMN + name, "<f8") for name in columns),  # NaN where there is none
        ]
    )


@dataclass(frozen=True)
class FactsOf:
    """Where the facts of a dataset are.

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

    def is_there(self, shard: int) -> bool:
        """Whether they are made, with all columns."""
        name = self.manifest.shards[shard].name
        if not _path(self.folder, name).exists() or not _miniatures(self.folder, name).exists():
            return False
        return set(facts_dtype(self.columns).names) <= set(self.open(shard).dtype.names)

    def open(self, shard: int) -> np.ndarray:
        """The facts of a shard, memory-mapped."""
        return np.load(_path(self.folder, self.manifest.shards[shard].name), mmap_mode="r")

    def open_miniatures(self, shard: int) -> np.ndarray:
        """Those of a shard, memory-mapped."""
        return np.load(_miniatures(self.folder, self.manifest.shards[shard].name), mmap_mode="r")

    def column(self, shard: int, name: str) -> np.ndarray:
        """Values of a column in a shard, float64."""
        return self.open(shard)[_COLUMN + name]

    def job(self, shard: int) -> tuple[str, ShardEntry, Path, tuple[str, ...], bool]:
        """What `make_facts` is to be called with; small, since it goes to other processes."""
        # `roseate index --again` counts rows anew, and leaves a ledger that counts as before.
        has_ledger = self.manifest.policy_hash != canonical_hash("indexed")
        return self.url, self.manifest.shards[shard], self.folder, self.columns, has_ledger


def make_facts(
    url: str, entry: ShardEntry, folder: Path, columns: tuple[str, ...], has_ledger: bool
) -> int:
    """Find and keep the facts of a shard; how many samples it has.

    Raises:
        OSError, ValueError, EOFError: its files cannot be read, or do not belong together.
    """
    source, path = Folder(url, "data.sources"), _path(folder, entry.name)
    before = np.load(path) if path.exists() else None
    if before is not None:
        had = (n.removeprefix(_COLUMN) for n in before.dtype.names if n.startswith(_COLUMN))
        columns = tuple(dict.fromkeys([*had, *columns]))
    index = open_index(source, entry)
    facts = np.zeros(len(index), facts_dtype(columns))
    miniatures = np.zeros((len(index), SIDE, SIDE, 3), np.uint8)
    for name in columns:
        facts[_COLUMN + name] = np.nan
    with open_tar(source, entry) as tar:
        at = 0
        for place, record in enumerate(index):  # one after the other, as they lie in the tar
            _skip(tar, int(record["offset"]) - at)
            span = _read(tar, int(record["bytes"]))
            if len(span) < record["bytes"]:
                raise OSError(f"{entry.path} ends before its index does")
            at = int(record["offset"]) + len(span)
            _look(facts[place : place + 1], miniatures[place], span, columns)
    if columns and has_ledger:
        _take_ledger(facts, source, entry, index["row"], columns)
    folder.mkdir(parents=True, exist_ok=True)
    for target, array in ((_miniatures(folder, entry.name), miniatures), (path, facts)):
        data = io.BytesIO()
        np.save(data, array)
        write_file(target, data.getvalue())
    return len(index)


def _path(folder: Path, name: str) -> Path:
    return folder / f"{name}.npy"


def _miniatures(folder: Path, name: str) -> Path:
    return folder / f"{name}.miniatures.npy"


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


def _look(fact: np.ndarray, miniature: np.ndarray, span: bytes, columns: tuple[str, ...]) -> None:
    """Fill in the record of one sample; what cannot be read stays as it is."""
    try:
        _, parts = sample_parts(span)
        texts = [part for part in parts if isinstance(part, str)]
        images = [part for part in parts if isinstance(part, bytes)]
        if images:
            fact["image"], miniature[:] = look_at(images[0])
            fact["look"] = _digest(fact["image"].tobytes() + miniature.tobytes())
    except DECODE_ERRORS:
        return
    fact["text"] = _digest("\n".join(texts).encode())
    fact["characters"] = sum(map(len, texts))
    fact["readable"], fact["has_image"] = True, bool(images)
    if columns:
        told = _json_of(span)
        for name in columns:
            fact[_COLUMN + name] = _number(told.get(name))


def _digest(data: bytes) -> int:
    return int.from_bytes(hashlib.sha256(data).digest()[:8], "big")


def _number(value: object) -> float:
    """NaN for what is no number, or none that fits."""
    try:
        return float(value) if isinstance(value, int | float | str) else np.nan
    except (ValueError, OverflowError):
        return np.nan


def _json_of(span: bytes) -> dict:
    for name, start, end in members(span):
        if split_name(name)[1] == "json":
            try:
                told = json.loads(span[start:end])
            except (ValueError, RecursionError):
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
    places = {row: place for place, row in enumerate(ledger["row"].to_pylist())}
    try:
        wanted = [places[row] for row in rows.tolist()]
    except KeyError as error:
        raise ValueError(f"{name} lacks row {error}, which the index has") from None
    for column in there:
        # Tables of text hold numbers as text.
        values = ledger[column].to_pylist()
        facts[_COLUMN + column] = [_number(values[place]) for place in wanted]
