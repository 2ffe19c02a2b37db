"""The cells of one row of a text table."""

import json
from collections.abc import Sequence

from data_prep.schema import Status
from data_prep.tables.cells import Cells
from data_prep.tables.columns import Columns
from data_prep.tables.csv_fields import csv_fields
from data_prep.tables.records import MAX_ROW_BYTES


def read_cells(record: bytes | None, kind: str, columns: Columns) -> Cells:
    """Find the cells in the bytes of a row.

    Args:
        record: with its line end; None for one that is too long.
        kind: of the table: tsv, txt, csv or jsonl.
        columns: of the file.
    """
    if record is None:
        return _invalid(columns, f"longer than {MAX_ROW_BYTES} bytes")
    if kind == "jsonl":
        return _from_json(record, columns)
    return _from_fields(_fields(record, kind, columns), columns)


def tsv_fields(line: bytes, num_fields: int, caption: int) -> list[bytes]:
    """Split at tabs; tabs beyond those of the columns are the caption's."""
    fields = line.removesuffix(b"\n").removesuffix(b"\r").split(b"\t")
    surplus = len(fields) - num_fields
    if surplus > 0:
        fields[caption : caption + surplus + 1] = [
            b"\t".join(fields[caption : caption + surplus + 1])
        ]
    return fields


def _fields(record: bytes, kind: str, columns: Columns) -> list[bytes]:
    if kind == "csv":
        return csv_fields(record)
    caption = columns.fields.index(columns.caption)
    return tsv_fields(record, len(columns.fields), caption)


def _from_fields(fields: list[bytes], columns: Columns) -> Cells:
    wanted = len(columns.fields)
    cells = Cells(keep=(None,) * len(columns.keep))
    if len(fields) > wanted:
        return _invalid(columns, f"{len(fields)} fields, the table has {wanted} columns")

    def cell(name: str | None) -> bytes | None:
        place = columns.fields.index(name) if name is not None else wanted
        return fields[place] if place < len(fields) else None

    cells.url, cells.caption = cell(columns.url), cell(columns.caption)
    cells.expected = cell(columns.expected)
    cells.keep = tuple(cell(name) for name in columns.keep)
    if len(fields) < wanted and cells.url and cells.caption:
        # It may have been cut off anywhere, in its caption too.
        cells.status = Status.INVALID_ROW
        cells.error = f"{len(fields)} fields, the table has {wanted} columns"
    return cells


def _from_json(record: bytes, columns: Columns) -> Cells:
    if not record.strip():
        return Cells(keep=(None,) * len(columns.keep))
    values = parse_json(record)
    if values is None:
        return _invalid(columns, "not a JSON object")
    lower = {name.lower(): value for name, value in reversed(values.items())}

    def cell(name: str | None) -> bytes | None:
        if name is None:
            return None
        return _json_bytes(values.get(name, lower.get(name.lower())))

    cells = Cells(cell(columns.url), cell(columns.caption), cell(columns.expected))
    cells.keep = tuple(cell(name) for name in columns.keep)
    for name, status in (
        (columns.url, Status.INVALID_URL),
        (columns.caption, Status.INVALID_CAPTION),
    ):
        value = values.get(name, lower.get(name.lower()))
        if isinstance(value, list | dict) and cells.status is None:
            cells.status, cells.error = status, f"{name} holds {_kind(value)}, not text"
    return cells


def parse_json(line: bytes) -> dict | None:
    """The JSON object on a line; bytes that are not UTF-8 stand in it as surrogates."""
    try:
        value = json.loads(line.decode("utf-8", "surrogateescape"))
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _json_bytes(value: object) -> bytes | None:
    if value is None:
        return None
    if not isinstance(value, str):
        value = json.dumps(value, separators=(",", ":"), ensure_ascii=False)
    try:
        return value.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # "\ud800" alone: no text either
        return value.encode("utf-8", "surrogatepass")


def _kind(value: Sequence | dict) -> str:
    return "a list" if isinstance(value, list) else "an object"


def _invalid(columns: Columns, error: str) -> Cells:
    keep = (None,) * len(columns.keep)
    return Cells(status=Status.INVALID_ROW, error=error, keep=keep)
