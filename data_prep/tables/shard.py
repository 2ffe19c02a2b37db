"""The rows of one planned shard, as a worker reads them."""

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import pyarrow as pa

from data_prep.storage import Folder
from data_prep.tables.cells import Cells, Row, read_row
from data_prep.tables.columns import Columns
from data_prep.tables.parquet_rows import read_rows
from data_prep.tables.records import pieces_of, read_records
from data_prep.tables.scan import chunks, hash_file, make_splitter
from data_prep.tables.text_rows import read_cells

_BASE = [
    *(("row", pa.int64()), ("url", pa.string()), ("caption", pa.string())),
    *(("expected", pa.string()), ("status", pa.string()), ("error", pa.string())),
]


class TableChangedError(RuntimeError):
    """A file of the table is no longer the one that was planned."""


@dataclass(frozen=True)
class ShardSpec:
    """One shard: which rows of which file.

    Attributes:
        source: name of the source in the configuration.
        name: of the shard, `000000` and up over the whole plan.
        first_row: number of its first row, over the whole plan.
        rows: in it.
        key: of the table in the configuration, for messages.
        folder: of the table's files, URL or whole path.
        file: its name in the folder.
        kind: parquet, tsv, csv, jsonl or txt.
        columns: of the file.
        file_bytes: size of the file.
        file_sha256: of the file.
        file_stamp: of the file, see `data_prep.storage.FileInfo`; None if not to be relied on.
        file_row: number of its first row in the file.
        offset: of its first row in a text file, bytes.
        bytes: of its rows in a text file.
        crc32: of these.
    """

    source: str
    name: str
    first_row: int
    rows: int
    key: str
    folder: str
    file: str
    kind: str
    columns: Columns
    file_bytes: int
    file_sha256: str
    file_stamp: str | None
    file_row: int
    offset: int = 0
    bytes: int = 0
    crc32: int = 0


def read_shard(spec: ShardSpec) -> pa.Table:
    """Read the rows of a shard, each exactly once and in order.

    Returns:
        `row` (int64), `url`, `caption`, `expected`, `status` and `error` (strings), then the kept
        columns: of the types of a parquet table, strings of a text table. `status` is set for rows
        that end before any fetch and null for the others; `expected` is in lower case.

    Raises:
        TableChangedError: the file or these bytes of it are not those that were planned.
        OSError: it cannot be read.
        pyarrow.ArrowException: a parquet file is broken.
    """
    folder = Folder(spec.folder, spec.key)
    try:
        table = _read_parquet(folder, spec) if spec.kind == "parquet" else _read_text(folder, spec)
    except FileNotFoundError as error:
        raise _changed(spec, "it is no longer there") from error
    if table.num_rows != spec.rows:
        raise _changed(spec, f"{table.num_rows} rows where {spec.rows} were planned")
    return table


def _read_text(folder: Folder, spec: ShardSpec) -> pa.Table:
    crc = [0]
    parts = _summed(chunks(folder, spec.file, spec.offset, spec.bytes), crc)
    records = read_records(pieces_of(parts, make_splitter(spec.kind, spec.columns)))
    verify = spec.columns.verify
    rows = [read_row(read_cells(record, spec.kind, spec.columns), verify) for record in records]
    if crc[0] != spec.crc32:
        raise _changed(
            spec, f"the crc32 of its rows is {crc[0]:08x} and was {spec.crc32:08x} when planned"
        )
    kept = [(name, pa.string()) for name in spec.columns.kept_names]
    keep = [[row.keep[place] for row in rows] for place in range(len(kept))]
    return _table(spec, rows, kept, [pa.array(values, pa.string()) for values in keep])


def _summed(parts: Iterator[bytes], crc: list[int]) -> Iterator[bytes]:
    for part in parts:
        crc[0] = zlib.crc32(part, crc[0])
        yield part


def _read_parquet(folder: Folder, spec: ShardSpec) -> pa.Table:
    _check_file(folder, spec)
    columns = spec.columns
    used = [columns.url, columns.caption, columns.expected, *columns.keep]
    names = list(dict.fromkeys(name for name in used if name is not None))
    table = read_rows(folder, spec.file, names, spec.file_row, spec.rows)
    nothing = [None] * table.num_rows
    cells = zip(
        _bytes(table[columns.url]),
        _bytes(table[columns.caption]),
        _bytes(table[columns.expected]) if columns.expected else nothing,
        strict=True,
    )
    rows = [read_row(Cells(*row), columns.verify) for row in cells]
    keep = [_plain(table[name]) for name in columns.keep]
    kept = [(n, c.type) for n, c in zip(columns.kept_names, keep, strict=True)]
    return _table(spec, rows, kept, keep)


def _check_file(folder: Folder, spec: ShardSpec) -> None:
    info = folder.stat(spec.file)
    if info.bytes != spec.file_bytes:
        raise _changed(spec, f"it has {info.bytes} bytes and had {spec.file_bytes} when planned")
    if info.stamp is None or info.stamp != spec.file_stamp:
        # Touched or copied, it may still be the same; once per process and change.
        sha256 = _hash(spec.folder, spec.file, spec.key, info.stamp)
        if sha256 != spec.file_sha256:
            raise _changed(spec, f"its sha256 is {sha256} and was {spec.file_sha256} when planned")


@lru_cache(maxsize=1024)
def _hash(folder: str, name: str, key: str, stamp: str | None) -> str:
    return hash_file(Folder(folder, key), name)


def _bytes(column: pa.ChunkedArray) -> list[bytes | None]:
    return _plain(column).cast(pa.large_binary()).to_pylist()


def _plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    if pa.types.is_dictionary(column.type):
        return column.cast(column.type.value_type)
    return column


def _table(
    spec: ShardSpec,
    rows: list[Row],
    kept: list[tuple[str, pa.DataType]],
    keep: list[pa.Array | pa.ChunkedArray],
) -> pa.Table:
    first = spec.first_row
    base = [
        pa.array(range(first, first + len(rows)), pa.int64()),
        *(pa.array([row.url for row in rows], pa.string()),),
        *(pa.array([row.caption for row in rows], pa.string()),),
        *(pa.array([row.expected for row in rows], pa.string()),),
        *(pa.array([row.status for row in rows], pa.string()),),
        *(pa.array([row.error for row in rows], pa.string()),),
    ]
    return pa.Table.from_arrays([*base, *keep], schema=pa.schema([*_BASE, *kept]))


def _changed(spec: ShardSpec, what: str) -> TableChangedError:
    last = spec.first_row + spec.rows - 1
    return TableChangedError(
        f"{spec.file} of {spec.key} has changed since it was planned, seen in shard {spec.name} "
        f"(rows {spec.first_row} to {last}): {what}"
    )
