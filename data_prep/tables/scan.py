"""Read a file once, for the plan: its hash, its rows, and where each shard's rows begin."""

import hashlib
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from data_prep.storage import Folder
from data_prep.tables.columns import Columns
from data_prep.tables.parquet_rows import parquet_num_rows
from data_prep.tables.records import CHUNK_BYTES, CsvSplitter, LineSplitter, Splitter


@dataclass
class Scan:
    """What is in a file.

    Attributes:
        sha256: of the whole file, hexadecimal.
        rows: in it.
        shard_bytes: of each shard's rows, one behind the other; empty for parquet.
        shard_crc32: of these bytes.
    """

    sha256: str
    rows: int
    shard_bytes: list[int] = field(default_factory=list)
    shard_crc32: list[int] = field(default_factory=list)


def scan_file(
    folder: Folder, name: str, kind: str, columns: Columns, rows_at: int, shard_rows: int
) -> Scan:
    """Read a whole file in chunks.

    Args:
        folder: of the file.
        name: of the file.
        kind: parquet, tsv, csv, jsonl or txt.
        columns: of the file.
        rows_at: position of its first row, bytes.
        shard_rows: rows per shard; the last has what is left.

    Raises:
        OSError: it cannot be read.
    """
    if kind == "parquet":
        return Scan(hash_file(folder, name), parquet_num_rows(folder, name))
    digest = hashlib.sha256()
    splitter, cutter = make_splitter(kind, columns), _Cutter(shard_rows)
    skip = rows_at
    for chunk in chunks(folder, name):
        digest.update(chunk)
        rest = chunk[skip:] if skip else chunk
        skip -= len(chunk) - len(rest)
        cutter.feed(*splitter.push(rest))
    cutter.feed(*splitter.finish())
    cutter.finish()
    return Scan(digest.hexdigest(), cutter.rows, cutter.shard_bytes, cutter.shard_crc32)


def make_splitter(kind: str, columns: Columns) -> Splitter:
    """What cuts a text table of this kind into rows."""
    return CsvSplitter(len(columns.fields)) if kind == "csv" else LineSplitter()


def chunks(folder: Folder, name: str, start: int = 0, length: int | None = None) -> Iterator[bytes]:
    """The bytes of a file in chunks; fewer than `length` where it ends before."""
    with folder.open_random(name) as file:
        file.seek(start)
        while length is None or length > 0:
            chunk = file.read(CHUNK_BYTES if length is None else min(CHUNK_BYTES, length))
            if not chunk:
                return
            length = None if length is None else length - len(chunk)
            yield chunk


def hash_file(folder: Folder, name: str) -> str:
    """sha256 of a whole file, hexadecimal.

    Raises:
        OSError: it cannot be read.
    """
    digest = hashlib.sha256()
    for chunk in chunks(folder, name):
        digest.update(chunk)
    return digest.hexdigest()


class _Cutter:
    def __init__(self, shard_rows: int) -> None:
        self._shard_rows = shard_rows
        self._open_rows, self._open_bytes, self._crc = 0, 0, 0
        self.rows = 0
        self.shard_bytes: list[int] = []
        self.shard_crc32: list[int] = []

    def feed(self, piece: bytes, ends: np.ndarray) -> None:
        borders = ends[self._shard_rows - self._open_rows - 1 :: self._shard_rows]
        start, view = 0, memoryview(piece)
        for border in borders.tolist():
            self._take(view[start:border])
            self._close()
            start = border
        self._take(view[start:])
        self.rows += len(ends)
        self._open_rows = self.rows % self._shard_rows

    def finish(self) -> None:
        if self._open_rows:
            self._close()

    def _take(self, part: memoryview) -> None:
        self._crc = zlib.crc32(part, self._crc)
        self._open_bytes += len(part)

    def _close(self) -> None:
        self.shard_bytes.append(self._open_bytes)
        self.shard_crc32.append(self._crc)
        self._open_bytes, self._crc = 0, 0
