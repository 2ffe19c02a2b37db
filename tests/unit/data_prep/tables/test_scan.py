import hashlib
import zlib

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.storage import Folder
from data_prep.tables import scan
from data_prep.tables.columns import Columns
from data_prep.tables.scan import Scan, chunks, scan_file
from tests.helpers.s3 import s3_bucket

COLUMNS = Columns("generic", ("url", "caption"), "url", "caption", None, "none", ())


@settings(max_examples=60)
@given(
    st.binary(max_size=4),
    st.lists(st.binary(max_size=6).map(lambda b: b.replace(b"\n", b" ")), max_size=30),
    st.booleans(),
    st.integers(1, 9),
    st.integers(1, 50),
)
def test_shards_are_runs_of_rows_behind_the_header(
    tmp_path_factory, header, lines, end, rows, size
):
    text = b"".join(line + b"\n" for line in lines)
    if end and lines and lines[-1]:
        text = text[:-1]
    folder = tmp_path_factory.mktemp("scan")
    (folder / "t.tsv").write_bytes(header + text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scan, "CHUNK_BYTES", size)
        found = scan_file(Folder(str(folder), "k"), "t.tsv", "tsv", COLUMNS, len(header), rows)
    parts = [b"".join(part) for part in _runs(text, rows)]
    assert found == Scan(
        hashlib.sha256(header + text).hexdigest(),
        len(lines),
        [len(part) for part in parts],
        [zlib.crc32(part) for part in parts],
    )


def _runs(text, rows):
    lines = [line + b"\n" for line in text.split(b"\n")]
    lines = lines[:-1] if lines[-1] == b"\n" else [*lines[:-1], lines[-1][:-1]]
    return [lines[i : i + rows] for i in range(0, len(lines), rows)]


def test_of_parquet_the_hash_and_the_rows_are_known(tmp_path):
    pq.write_table(pa.table({"url": ["u"] * 7}), tmp_path / "t.parquet")
    found = scan_file(Folder(str(tmp_path), "k"), "t.parquet", "parquet", COLUMNS, 0, 3)
    assert found == Scan(hashlib.sha256((tmp_path / "t.parquet").read_bytes()).hexdigest(), 7)


def test_chunks_are_a_span_of_a_file_here_and_in_a_store(tmp_path, monkeypatch):
    monkeypatch.setattr(scan, "CHUNK_BYTES", 3)
    (tmp_path / "t").write_bytes(b"0123456789")
    with s3_bucket() as bucket:
        for folder in (str(tmp_path), bucket.upload(tmp_path, "t")):
            place = Folder(folder, "k")
            assert list(chunks(place, "t")) == [b"012", b"345", b"678", b"9"]
            assert list(chunks(place, "t", 2, 5)) == [b"234", b"56"]
            assert list(chunks(place, "t", 8, 5)) == [b"89"]
            assert list(chunks(place, "t", 10)) == list(chunks(place, "t", 0, 0)) == []
