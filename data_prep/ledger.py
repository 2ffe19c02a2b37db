"""The columns of the ledger: one row for every input row, whatever became of it.

Apart from the rest of the dataset folder's types, since whoever reads samples needs no pyarrow.
"""

import pyarrow as pa

LEDGER_SCHEMA = pa.schema(
    [
        ("row", pa.int64()),
        ("key", pa.string()),
        ("url", pa.string()),
        ("caption", pa.string()),
        ("status", pa.string()),
        ("error", pa.string()),
        ("final_url", pa.string()),
        ("http_status", pa.int32()),
        ("fetched_bytes", pa.int64()),
        ("sha256_fetched", pa.string()),
        ("sha256_stored", pa.string()),
        ("original_width", pa.int32()),
        ("original_height", pa.int32()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("seconds", pa.float32()),
    ]
)
