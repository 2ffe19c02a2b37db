"""Ranges of rows of a parquet file: the needed columns and row groups, batch by batch."""

from collections.abc import Iterator

import pyarrow as pa
import pyarrow.parquet as pq

from data_prep.config import SourceConfig
from data_prep.errors import Problem
from data_prep.storage import Folder
from data_prep.tables.columns import Columns

# Column chunks are read through buffers of this size, so that a row group is never whole in memory;
# in a store each of them is a request.
_BUFFER_BYTES, _STORE_BUFFER_BYTES = 1 << 20, 8 << 20
_BATCH_ROWS = 8192


def parquet_schema(folder: Folder, name: str) -> pa.Schema:
    """The schema of a file.

    Raises:
        OSError: it cannot be read.
        pyarrow.ArrowException: it is no parquet.
    """
    with folder.open_random(name) as source, pq.ParquetFile(source) as file:
        return file.schema_arrow


def parquet_num_rows(folder: Folder, name: str) -> int:
    """How many rows a file has; raises as `parquet_schema`."""
    with folder.open_random(name) as source, pq.ParquetFile(source) as file:
        return file.metadata.num_rows


def check_types(
    columns: Columns, schema: pa.Schema, source: SourceConfig, key: str
) -> list[Problem]:
    """What is wrong with the types of addresses, captions and hashes."""
    problems = []
    texts = [field.name for field in schema if is_text(field.type)]
    hash_field = "verify_column" if source.verify_column else "verify"
    for field, name in (
        ("url_column", columns.url),
        ("caption_column", columns.caption),
        (hash_field, columns.expected),
    ):
        if name is None or is_text(schema.field(name).type):
            continue
        rule = f"the column {name!r} must hold text; it holds {schema.field(name).type}"
        remedy = f"name a column of text: {', '.join(texts) or 'the table has none'}"
        problems.append(Problem(f"{key}.{field}", getattr(source, field), rule, remedy))
    return problems


def is_text(kind: pa.DataType) -> bool:
    """Whether a column of this type can be read as text; one without any value can."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    types = pa.types
    return any(
        is_kind(kind)
        for is_kind in (
            *(types.is_string, types.is_large_string, types.is_string_view),
            *(types.is_binary, types.is_large_binary, types.is_binary_view, types.is_null),
        )
    )


def read_rows(folder: Folder, name: str, names: list[str], first: int, count: int) -> pa.Table:
    """Rows `first` to `first + count` of a file, these columns alone.

    Memory is that of the rows asked for and of some buffers, also where a row group has a million
    rows.

    Raises:
        OSError: it cannot be read.
        pyarrow.ArrowException: its bytes are broken.
    """
    buffer = _BUFFER_BYTES if folder.is_local else _STORE_BUFFER_BYTES
    with folder.open_random(name) as source:
        with pq.ParquetFile(source, buffer_size=buffer, pre_buffer=False) as file:
            groups, skip = _groups(file.metadata, first, count)
            schema = pa.schema([file.schema_arrow.field(n) for n in names])
            batches = file.iter_batches(
                _BATCH_ROWS, row_groups=groups, columns=names, use_threads=False
            )
            parts = [part.select(names) for part in _cut(batches, skip, count)]
    return pa.Table.from_batches(parts, schema).combine_chunks()


def _groups(metadata: pq.FileMetaData, first: int, count: int) -> tuple[list[int], int]:
    """Row groups that hold these rows, and how many rows of the first one come before."""
    groups, skip, start = [], 0, 0
    for group in range(metadata.num_row_groups):
        end = start + metadata.row_group(group).num_rows
        if end > first and start < first + count:
            if not groups:
                skip = first - start
            groups.append(group)
        start = end
    return groups, skip


def _cut(batches: Iterator[pa.RecordBatch], skip: int, count: int) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        if skip >= batch.num_rows:
            skip -= batch.num_rows
            continue
        part = batch.slice(skip, count)
        skip, count = 0, count - part.num_rows
        yield part
        if not count:
            return
