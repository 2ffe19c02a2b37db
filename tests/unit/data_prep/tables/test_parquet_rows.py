import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.storage import Folder
from data_prep.tables.parquet_rows import is_text, parquet_num_rows, parquet_schema, read_rows
from tests.helpers.s3 import s3_bucket

ROWS = 1000
TABLE = pa.table(
    {"n": range(ROWS), "url": [f"u{i}" for i in range(ROWS)], "boxes": [[[0.5, i]] for i in range(ROWS)]}
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("parquet")
    pq.write_table(TABLE, path / "t.parquet", row_group_size=90)
    pq.write_table(TABLE.slice(0, 0), path / "empty.parquet")
    return path


@settings(max_examples=40)
@given(st.integers(0, ROWS - 1), st.integers(1, ROWS), st.permutations(["n", "url", "boxes"]))
def test_any_range_of_rows_is_read_across_row_groups(folder, first, count, names):
    table = read_rows(Folder(str(folder), "k"), "t.parquet", names, first, count)
    assert table.equals(TABLE.select(names).slice(first, count))


def test_a_file_in_a_store_is_read_alike(folder):
    with s3_bucket() as bucket:
        store = Folder(bucket.upload(folder, "t"), "k")
        assert parquet_num_rows(store, "t.parquet") == ROWS
        assert parquet_schema(store, "t.parquet") == TABLE.schema
        assert read_rows(store, "t.parquet", ["url"], 85, 10).equals(TABLE.select(["url"])[85:95])


def test_no_rows_have_their_columns(folder):
    local = Folder(str(folder), "k")
    assert parquet_num_rows(local, "empty.parquet") == 0
    assert read_rows(local, "empty.parquet", ["n"], 0, 5).schema == TABLE.select(["n"]).schema


def test_what_is_no_parquet_is_an_error(tmp_path):
    (tmp_path / "t.parquet").write_bytes(b"x" * 100)
    for call in (parquet_schema, parquet_num_rows):
        with pytest.raises(pa.ArrowInvalid):
            call(Folder(str(tmp_path), "k"), "t.parquet")


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        *((pa.string(), True), (pa.large_string(), True), (pa.binary(), True), (pa.null(), True)),
        *((pa.large_binary(), True), (pa.string_view(), True), (pa.int64(), False)),
        *((pa.dictionary(pa.int32(), pa.string()), True), (pa.list_(pa.string()), False)),
        (pa.dictionary(pa.int32(), pa.int64()), False),
    ],
)
def test_what_is_text(kind, text):
    assert is_text(kind) is text


def test_a_row_group_of_a_million_rows_is_not_held_in_memory(tmp_path):
    """Rows of 200 random bytes: the column alone has 200 MB."""
    path = tmp_path / "t.parquet"
    write = (
        "import sys, numpy, pyarrow as pa, pyarrow.parquet as pq\n"
        "data = pa.py_buffer(numpy.random.default_rng().bytes(200_000_000))\n"
        "urls = pa.FixedSizeBinaryArray.from_buffers(pa.binary(200), 1_000_000, [None, data])\n"
        "pq.write_table(pa.table({'url': urls.cast(pa.binary())}), sys.argv[1],\n"
        "    row_group_size=1_000_000, use_dictionary=False, compression='none')\n"
    )
    read = (
        "import sys, resource\n"
        "from data_prep.storage import Folder\n"
        "from data_prep.tables.parquet_rows import read_rows\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "before = peak()\n"
        "table = read_rows(Folder(sys.argv[1], 'k'), 't.parquet', ['url'], 990_000, 1000)\n"
        "print(table.num_rows, peak() - before)\n"
    )
    subprocess.run([sys.executable, "-c", write, str(path)], check=True)
    done = subprocess.run(
        [sys.executable, "-c", read, str(tmp_path)], check=True, capture_output=True, text=True
    )
    rows, kilobytes = map(int, done.stdout.split())
    assert rows == 1000 and kilobytes < 60_000
