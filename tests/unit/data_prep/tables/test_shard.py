import json
import os
import pickle
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.tables.shard import TableChangedError, read_shard
from tests.helpers.s3 import s3_bucket
from tests.helpers.url_tables import plan_table, read_plan, rows_of

U = "http://a/"
# What a caption may hold on one line of text.
CAPTIONS = st.lists(
    st.sampled_from([b'"', b'""', b",", b"\t", b"\r", b"\0", b"\xff", b"\xef\xbb\xbf", b"{", b"a", b" "]),
    max_size=8,
).map(b"".join)  # fmt: skip


def write(path, data):
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


def shown(caption):
    """The caption that a row with these bytes is to have, and its status."""
    text = caption.decode("utf-8", "replace")
    for mark in "\t\r\0\n\ufeff":
        text = text.replace(mark, " ")
    status = "missing_caption" if not text.strip() else None
    return text.strip() or None, status or ("invalid_caption" if b"\xff" in caption else None)


def in_json(caption):
    text = caption.decode("utf-8", "surrogateescape")
    return json.dumps(text, ensure_ascii=False).encode("utf-8", "surrogateescape")


FORMATS = {
    "cc12m.tsv": lambda i, c: b"http://a/%d\t%s\n" % (i, c),
    "cc3m.tsv": lambda i, c: b"%s\thttp://a/%d\n" % (c, i),
    "header.tsv": lambda i, c: b"%d\t%s\thttp://a/%d\n" % (i, c, i),
    "table.txt": lambda i, c: b"http://a/%d\t%s\n" % (i, c),
    "table.csv": lambda i, c: b'%d,"%s",http://a/%d\r\n' % (i, c.replace(b'"', b'""'), i),
    "table.jsonl": lambda i, c: b'{"url": "http://a/%d", "caption": %s}\n' % (i, in_json(c)),
}  # fmt: skip
HEADERS = {"header.tsv": b"id\tcaption\turl\n", "table.csv": b"id,caption,url\r\n"}


@pytest.mark.parametrize("name", FORMATS)
@settings(max_examples=25)
@given(captions=st.lists(CAPTIONS, max_size=12), rows=st.integers(1, 5), data=st.data())
def test_every_format_is_read_as_it_was_written_in_shards_of_any_size(
    tmp_path_factory, name, captions, rows, data
):
    if name == "table.csv":
        newlines = st.lists(st.sampled_from([b"\n", b"\r\n", b""]), max_size=2).map(b"".join)
        captions = [caption + data.draw(newlines) for caption in captions]
    captions = [b"first", *captions]  # by which the table is known
    text = b"".join(FORMATS[name](i, caption) for i, caption in enumerate(captions))
    folder = tmp_path_factory.mktemp("format")
    path = write(folder / name, HEADERS.get(name, b"") + text)
    plan = plan_table(path, folder / "plan", shard_rows=rows)
    table = read_plan(plan)
    assert plan.rows == table.num_rows == len(captions)
    assert plan.num_shards == -(-len(captions) // rows)
    assert table["row"].to_pylist() == list(range(len(captions)))
    assert table["url"].to_pylist() == [f"{U}{i}" for i in range(len(captions))]
    found = zip(table["caption"].to_pylist(), table["status"].to_pylist(), strict=True)
    assert list(found) == [shown(caption) for caption in captions]


@pytest.mark.parametrize("name", ["a.tsv", "a.txt", "a.csv", "a.jsonl"])
@settings(max_examples=25)
@given(st.binary(max_size=200), st.integers(1, 4))
def test_any_bytes_are_rows_with_one_status_each(tmp_path_factory, name, data, rows):
    begin = {"a.csv": b"url,text\n", "a.jsonl": b'{"url": "u", "text": "c"}\n'}
    folder = tmp_path_factory.mktemp("bytes")
    path = write(folder / name, begin.get(name, b"http://a\tc\n") + data + b"\n")
    whole = read_plan(plan_table(path, folder / "whole"))
    plan = plan_table(path, folder / "plan", shard_rows=rows)
    assert read_plan(plan).equals(whole) and plan.rows == whole.num_rows


def test_odd_rows_of_a_tsv(tmp_path):
    lines = [
        b'http://a/1\t"lone',
        b"http://a/2",
        b"\tno address",
        b"",
        b"http://a/\xff\tc",
        b"http://a/3\t\xffc\r",
        b"http://a/4\tc\td\0\r",
        b"\xef\xbb\xbfhttp://a/5\t\xef\xbb\xbfc",
        b"http://a/6\t" + b"x" * (1 << 20),
    ]
    assert rows_of(write(tmp_path / "t.tsv", b"\n".join(lines))) == [
        ("http://a/1", '"lone', None),
        ("http://a/2", None, "missing_caption"),
        (None, "no address", "missing_url"),
        (None, None, "missing_url"),
        ("http://a/\ufffd", "c", "invalid_url"),
        ("http://a/3", "\ufffdc", "invalid_caption"),
        ("http://a/4", "c d", None),
        ("http://a/5", "c", None),
        (None, None, "invalid_row"),
    ]


def test_kept_columns_of_text_are_strings(tmp_path):
    path = write(tmp_path / "t.csv", "url,text,WIDTH,similarity,md5\nu,c,7,0.5,M\nv,d,,x,\n")
    table = read_plan(plan_table(path, tmp_path / "p", verify="md5"))
    assert table.schema.names == [
        *("row", "url", "caption", "expected", "status", "error", "table_WIDTH", "similarity")
    ]
    assert table["table_WIDTH"].to_pylist() == ["7", None]
    assert table["similarity"].to_pylist() == ["0.5", "x"]
    assert table["expected"].to_pylist() == ["m", None]
    assert table["status"].to_pylist() == ["missing_hash"] * 2


LAION = pa.table(
    {
        "SAMPLE_ID": pa.array([1, 2, None, 4, 5], pa.int64()),
        "URL": pa.array([b"http://a/1", None, b"http://a/3", b"http://\xff", b"http://a/5"]),
        "TEXT": pa.array(["a\tb", "c", None, "d", " "]).dictionary_encode(),
        "NSFW": pa.array(["UNLIKELY"] * 5).dictionary_encode(),
        "similarity": pa.array([0.5] * 5, pa.float32()),
        "face_bboxes": pa.array([[[0.1, 0.2]], [], None, [], []]),
    }
)


@pytest.fixture(scope="module")
def bucket():
    with s3_bucket() as bucket:
        yield bucket


@pytest.mark.parametrize("place", ["local", "s3"])
def test_parquet_keeps_its_types(tmp_path, bucket, place):
    (tmp_path / "t").mkdir()
    pq.write_table(LAION, tmp_path / "t" / "a.parquet", row_group_size=2)
    pq.write_table(LAION, tmp_path / "t" / "b.parquet")
    folder = str(tmp_path / "t") if place == "local" else bucket.upload(tmp_path / "t", place)
    keep = ["SAMPLE_ID", "NSFW", "similarity", "face_bboxes"]
    plan = plan_table(folder, tmp_path / "plan", shard_rows=3, keep_columns=keep)
    assert [spec.rows for spec in plan.shards()] == [3, 2, 3, 2]
    table = read_plan(plan)
    assert table["row"].to_pylist() == list(range(10))
    urls = ["http://a/1", None, "http://a/3", "http://\ufffd", "http://a/5"]
    assert table["url"].to_pylist() == urls * 2
    assert table["caption"].to_pylist() == ["a b", "c", None, "d", None] * 2
    statuses = [None, "missing_url", "missing_caption", "invalid_url", "missing_caption"]
    assert table["status"].to_pylist() == statuses * 2
    assert table["SAMPLE_ID"].to_pylist() == [1, 2, None, 4, 5] * 2
    kept = {name: table.schema.field(name).type for name in table.schema.names[6:]}
    assert kept == {
        "SAMPLE_ID": pa.int64(),
        "NSFW": pa.string(),
        "similarity": pa.float32(),
        "face_bboxes": pa.list_(pa.list_(pa.float64())),
    }


def test_text_in_a_store_is_read_alike(tmp_path, bucket):
    text = "".join(f"http://a/{i}\tcaption {i}\n" for i in range(10))
    write(tmp_path / "t.tsv", text)
    url = bucket.upload(tmp_path, "text")
    here, there = (
        plan_table(t, tmp_path / "plan", 3) for t in (tmp_path / "t.tsv", f"{url}/t.tsv")
    )
    assert read_plan(there).equals(read_plan(here)) and there.added == []


def test_a_spec_is_all_that_a_worker_needs(tmp_path):
    path = write(tmp_path / "t.tsv", "http://a\tb\n" * 5)
    specs = list(plan_table(path, tmp_path / "plan", shard_rows=2).shards())
    assert [(s.name, s.first_row, s.rows) for s in specs] == [
        *(("000000", 0, 2), ("000001", 2, 2), ("000002", 4, 1))
    ]
    again = pickle.loads(pickle.dumps(specs[1]))
    assert again == specs[1] and read_shard(again).equals(read_shard(specs[1]))
    assert len(pickle.dumps(specs[1])) < 1500


def same_time(path, data):
    """Write other contents under the old times, as far as a process can."""
    status = path.stat()
    path.write_bytes(data)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


@pytest.mark.parametrize("name", ["t.tsv", "t.parquet"])
def test_a_worker_refuses_other_bytes_than_were_planned(tmp_path, name):
    path = tmp_path / name
    if name == "t.tsv":
        write(path, "http://a\tb\n" * 5)
    else:
        pq.write_table(pa.table({"url": ["http://a"] * 5, "text": list("abcde")}), path)
    spec = list(plan_table(path, tmp_path / "plan", shard_rows=2).shards())[1]
    planned, data = read_shard(spec), path.read_bytes()
    where = (
        f"{name} of ingest.sources.web.table has changed since it was planned, seen in shard 000001"
    )
    changed = bytearray(data)
    changed[len(data) // 2] ^= 1
    for other in (bytes(changed), data[: len(data) // 2]):
        same_time(path, other)
        with pytest.raises(TableChangedError, match=where):
            read_shard(spec)
    path.unlink()
    with pytest.raises(TableChangedError, match="it is no longer there"):
        read_shard(spec)
    write(path, data)  # a copy: other times, same bytes
    assert read_shard(spec).equals(planned)


def test_a_change_says_what_changed(tmp_path):
    path = write(tmp_path / "t.tsv", "http://a\tb\n" * 2)
    (spec,) = plan_table(path, tmp_path / "plan").shards()
    with pytest.raises(
        TableChangedError, match=r"\(rows 0 to 1\): the crc32 of its rows is .* 00000007"
    ):
        read_shard(replace(spec, crc32=7))
    with pytest.raises(TableChangedError, match="2 rows where 3 were planned"):
        read_shard(replace(spec, rows=3))
    pq.write_table(pa.table({"url": ["u"], "text": ["c"]}), tmp_path / "t.parquet")
    (spec,) = plan_table(tmp_path / "t.parquet", tmp_path / "plan2").shards()
    with pytest.raises(TableChangedError, match=f"it has {spec.file_bytes} bytes and had 1 when"):
        read_shard(replace(spec, file_bytes=1))
    with pytest.raises(
        TableChangedError, match=f"its sha256 is {spec.file_sha256} and was ab when"
    ):
        read_shard(replace(spec, file_sha256="ab", file_stamp=None))
