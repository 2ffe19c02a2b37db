import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_prep.config import SourceConfig
from data_prep.storage import Folder
from data_prep.tables.head import Head, read_head

KEY = "ingest.sources.web"
U = b"http://a/"


def head_of(folder, name, data, **settings):
    path = folder / name
    if isinstance(data, bytes):
        path.write_bytes(data)
    else:
        pq.write_table(pa.table(data), path)
    kind = path.suffix[1:]
    return read_head(Folder(str(folder), KEY), name, kind, SourceConfig(table="t", **settings), KEY)


@pytest.mark.parametrize(
    ("name", "data", "settings", "layout", "fields", "rows_at"),
    [
        ("t.tsv", U + b"\tc\n", {}, "cc12m", ("url", "caption"), 0),
        ("t.tsv", b"\xef\xbb\xbf" + U + b"\tc\n", {}, "cc12m", ("url", "caption"), 3),
        ("t.tsv", b"c\t" + U, {}, "cc3m", ("caption", "url"), 0),
        ("t.tsv", b"c\td\t" + U, {}, "cc3m", ("caption", "url"), 0),
        ("t.tsv", b"odd\n\nc\tHTTPS://a\nc\td\n", {}, "cc3m", ("caption", "url"), 0),
        # A caption may be an address; most lines tell.
        ("t.tsv", U + b"\tc\nc\t" + U + b"\nc\t" + U, {}, "cc3m", ("caption", "url"), 0),
        ("t.tsv", b"url\tcaption\n" + U + b"\tc\n", {}, "generic", ("url", "caption"), 12),
        ("t.tsv", b"\xef\xbb\xbf URL \tTEXT\r\n", {}, "generic", ("URL", "TEXT"), 15),
        ("t.tsv", b"link\tsay\n", {"url_column": "link", "caption_column": "say"}, "generic", None, 9),
        ("t.tsv", b"x\ty\n", {"layout": "cc12m"}, "cc12m", ("url", "caption"), 0),
        ("t.txt", b"c\t" + U, {"layout": "cc3m"}, "cc3m", ("caption", "url"), 0),
        ("t.txt", U + b"\n" + U + b"\tc\n", {}, "generic", ("url", "caption"), 0),
        ("t.csv", b'"a\nb",url,text\r\n1,2,3', {}, "generic", ("a\nb", "url", "text"), 16),
        ("t.csv", b'url,text\n', {}, "generic", ("url", "text"), 9),
        ("t.csv", b'url,text', {}, "generic", ("url", "text"), 8),
        ("t.csv", b'url,text,"lone\n1,2,3\n', {}, "generic", ("url", "text", '"lone'), 15),
        ("t.jsonl", b'{broken\n{"text": "c"}\n{"URL": "u"}\n', {}, "generic", (), 0),
        ("t.parquet", {"URL": ["u"], "TEXT": ["c"]}, {}, "generic", (), 0),
    ],
)  # fmt: skip
def test_the_beginning_says_what_the_columns_are(
    tmp_path, name, data, settings, layout, fields, rows_at
):
    head = head_of(tmp_path, name, data, **settings)
    assert isinstance(head, Head), head
    assert (head.columns.layout, head.rows_at) == (layout, rows_at)
    assert fields is None or head.columns.fields == fields


@pytest.mark.parametrize(
    ("name", "data", "settings", "field", "rule"),
    [
        ("t.tsv", b"x\ty\n", {}, "layout", "no address and no url column in the first 100 lines"),
        ("t.csv", b"a,b\n", {"layout": "cc12m"}, "layout", "headerless TSV; the table is .csv"),
        ("t.parquet", {"url": ["u"]}, {"layout": "cc3m"}, "layout", "the table is parquet"),
        (
            *("t.tsv", b"x\ty\n", {"layout": "cc3m", "caption_column": "y"}, "caption_column"),
            "a cc3m table has no named columns",
        ),
        (
            *("t.txt", U + b"\tc\n", {"url_column": "y"}, "url_column"),
            "a .txt table has no named columns",
        ),
        ("t.tsv", U + b"\tc", {"verify": "md5"}, "verify", "'md5'; it has: url, caption"),
        ("t.txt", U + b"\n" + U, {}, "table", "no line in its first 19 bytes has a caption"),
        (
            "t.csv",
            b"\xff\xfeu\0r\0l\0",
            {},
            "table",
            "must be UTF-8; it begins with the byte order",
        ),
        ("t.jsonl", b"{broken\n[]\n", {}, "table", "no JSON object in the first 100 lines"),
        ("t.jsonl", b'{"url": 1}', {}, "caption_column", "it has: url"),
        ("t.parquet", b"not parquet", {}, "table", "must be readable parquet"),
    ],
)
def test_what_cannot_be_read_is_refused(tmp_path, name, data, settings, field, rule):
    (problem,) = head_of(tmp_path, name, data, **settings)
    assert problem.key == f"{KEY}.{field}" and rule in problem.rule and problem.remedy


def test_a_file_that_is_gone_is_refused(tmp_path):
    source = SourceConfig(table="t")
    (problem,) = read_head(Folder(str(tmp_path), KEY), "t.csv", "csv", source, KEY)
    assert "must be readable text" in problem.rule
    assert (problem.key, problem.remedy) == (f"{KEY}.table", "check the file")


@pytest.mark.parametrize(
    ("settings", "field", "rule"),
    [
        ({"url_column": "n"}, "url_column", "'n' must hold text; it holds int64"),
        (
            {"caption_column": "all_captions"},
            "caption_column",
            "'all_captions' must hold text; it holds list<",
        ),
        ({"verify": "md5", "verify_column": "n"}, "verify_column", "'n' must hold text"),
        ({"verify": "md5"}, "verify", "'md5' must hold text; it holds double"),
    ],
)
def test_columns_of_parquet_that_hold_no_text_are_refused(tmp_path, settings, field, rule):
    data = {
        "url": ["u"],
        "text": ["c"],
        "top_caption": pa.array(["t"]).dictionary_encode(),
        "all_captions": [["a", "b"]],
        "n": [1],
        "md5": [1.5],
    }
    (problem,) = head_of(tmp_path, "t.parquet", data, **settings)
    assert problem.key == f"{KEY}.{field}" and rule in problem.rule
    assert problem.remedy == "name a column of text: url, text, top_caption"
