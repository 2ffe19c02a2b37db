"""The columns of the ledger: one row for every input row, whatever became of it.

Apart from the rest of the dataset folder's types, since whoever reads samples needs no pyarrow.
"""

import hashlib

import pyarrow as pa

from data_prep.outcome import Outcome

LEDGER_SCHEMA = pa.schema(
    [
        ("row", pa.int64()),
        ("key", pa.string()),
        ("url", pa.string()),
        ("caption", pa.string()),
        ("status", pa.string()),
        ("error", pa.string()),
        ("transient", pa.bool_()),
        ("final_url", pa.string()),
        ("http_status", pa.int32()),
        ("fetched_bytes", pa.int64()),
        ("sha256_fetched", pa.string()),
        ("sha256_stored", pa.string()),
        ("format", pa.string()),
        ("original_width", pa.int32()),
        ("original_height", pa.int32()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("seconds", pa.float32()),
    ]
)
# What `data_prep.tables` gives of a row beside the kept columns, whose names are none of these.
TABLE_COLUMNS = ("row", "url", "caption", "expected", "status", "error")


def kept_fields(rows: pa.Table) -> list[pa.Field]:
    """Fields of the ledger for the further columns of a table of rows."""
    return [field for field in rows.schema if field.name not in TABLE_COLUMNS]


def sample_key(row: int) -> str:
    """Key of the sample of an input row; ten digits keep the order of names that of the rows."""
    return f"{row:010d}"


def ledger_record(row: int, url: str | None, caption: str | None, outcome: Outcome) -> dict:
    """One row of the ledger but for its kept columns."""
    return {
        "row": row,
        "key": sample_key(row),
        "url": url,
        "caption": caption,
        "status": str(outcome.status),
        "error": outcome.error or None,
        "transient": outcome.transient,
        "final_url": outcome.final_url,
        "http_status": outcome.http_status,
        "fetched_bytes": outcome.fetched_bytes,
        "sha256_fetched": outcome.sha256_fetched,
        "sha256_stored": hashlib.sha256(outcome.data).hexdigest() if outcome.data else None,
        "format": outcome.format or None,
        "original_width": outcome.original_width,
        "original_height": outcome.original_height,
        "width": outcome.width,
        "height": outcome.height,
        "seconds": outcome.seconds,
    }
