import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_prep.config import SourceConfig
from data_prep.errors import ConfigError
from data_prep.sources import Table

ROWS = [("http://a/1", 'a "lone quote'), ("http://a/2", None), (None, "no address")]


def read(path, **settings):
    return list(Table("s", SourceConfig(table=str(path), **settings)).rows())


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("names", [("URL", "TEXT"), ("url", "caption"), ("Url", "top_caption")])
def test_parquet_columns_are_found_whatever_their_case(tmp_path, names):
    urls, captions = zip(*ROWS, strict=True)
    table = pa.table({"SAMPLE_ID": [1, 2, 3], names[0]: urls, names[1]: captions})
    pq.write_table(table, tmp_path / "t.parquet")
    assert read(tmp_path / "t.parquet") == ROWS


@pytest.mark.parametrize("schema", ["auto", "cc12m"])
def test_cc12m_is_one_row_per_line_and_quotes_mean_nothing(tmp_path, schema):
    path = write(tmp_path / "t.tsv", 'http://a/1\ta "lone quote\nhttp://a/2\n\tno address\n\n')
    assert read(path, schema=schema) == [*ROWS, (None, None)]


def test_cc12m_splits_at_the_first_tab_only(tmp_path):
    assert read(write(tmp_path / "t.tsv", "http://a\tb\tc\r\n")) == [("http://a", "b\tc")]


@pytest.mark.parametrize("schema", ["auto", "cc3m"])
def test_cc3m_has_the_caption_first(tmp_path, schema):
    path = write(tmp_path / "t.tsv", "a cat\thttp://a/1\na dog\thttp://a/2")
    assert read(path, schema=schema) == [("http://a/1", "a cat"), ("http://a/2", "a dog")]


def test_csv_tsv_and_jsonl_with_headers(tmp_path):
    assert read(write(tmp_path / "t.csv", 'caption,url\n"a,\nb",http://a\nc\n')) == [
        ("http://a", "a,\nb"),
        (None, "c"),
    ]
    assert read(write(tmp_path / "t.tsv", "id\turl\tcaption\n1\thttp://a\tb\n")) == [
        ("http://a", "b")
    ]
    lines = [json.dumps({"url": "http://a", "text": "b"}), "{broken", json.dumps({"text": "c"})]
    assert read(write(tmp_path / "t.jsonl", "\n".join(lines))) == [
        ("http://a", "b"),
        (None, None),
        (None, "c"),
    ]


def test_named_columns_win(tmp_path):
    path = write(tmp_path / "t.csv", "url,link,caption,say\n1,2,3,4\n")
    assert read(path, url_column="link", caption_column="say") == [("2", "4")]


def test_a_folder_of_files_is_one_table(tmp_path):
    for i in (1, 0):
        pq.write_table(pa.table({"url": [f"u{i}"], "text": ["t"]}), tmp_path / f"{i}.parquet")
    table = Table("s", SourceConfig(table=str(tmp_path)))
    assert [*table.rows()] == [("u0", "t"), ("u1", "t")]
    assert table.count() == 2


def test_shards_are_runs_of_rows(tmp_path):
    path = write(tmp_path / "t.tsv", "".join(f"http://a/{i}\tc\n" for i in range(5)))
    shards = list(Table("s", SourceConfig(table=str(path))).shards(2))
    assert [(first, len(rows)) for first, rows in shards] == [(0, 2), (2, 2), (4, 1)]


def test_the_fingerprint_follows_the_bytes(tmp_path):
    path = write(tmp_path / "t.tsv", "http://a\tb\n")
    table = Table("s", SourceConfig(table=str(path)))
    before = table.fingerprint()
    assert table.fingerprint() == before
    write(path, "http://a\tc\n")
    assert table.fingerprint() != before


@pytest.mark.parametrize(
    ("file", "text", "settings", "key", "message"),
    [
        ("t.tsv", None, {}, "table", "the URL table must exist"),
        ("t.csv", "", {}, "table", "t.csv has 0 bytes"),
        ("t.xlsx", "x", {}, "table", "here: .xlsx"),
        ("t.parquet", "not parquet", {}, "table", "must be readable parquet"),
        ("t.csv", "a,b\n1,2\n", {}, "url_column", "it has: a, b"),
        ("t.csv", "url,b\n1,2\n", {}, "caption_column", "it has: url, b"),
        ("t.csv", "url,b\n", {"url_column": "u"}, "url_column", "the column 'u'; it has: url, b"),
        ("t.csv", "url,text\n", {"schema": "cc12m"}, "schema", "headerless TSV; the table is .csv"),
        (
            "t.tsv",
            "x\ty\n",
            {"schema": "cc3m", "caption_column": "y"},
            "caption_column",
            "no named columns",
        ),
        ("t.tsv", "x\ty\n", {}, "schema", "no address and no url column in the first 100 lines"),
        ("t.csv", "url,text\n", {}, "table", "must hold at least one row"),
    ],
)
def test_unusable_tables_are_refused(tmp_path, file, text, settings, key, message):
    if text is not None:
        write(tmp_path / file, text)
    with pytest.raises(ConfigError) as caught:
        Table("web", SourceConfig(table=str(tmp_path / file), **settings)).count()
    assert message in str(caught.value)
    assert caught.value.problems[0].key == f"ingest.sources.web.{key}"


def test_the_remedy_names_the_column_key(tmp_path):
    path = write(tmp_path / "t.csv", "a,b\n1,2\n")
    with pytest.raises(ConfigError, match="set ingest.sources.web.url_column to one of those"):
        Table("web", SourceConfig(table=str(path)))
