import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.schema import Status
from data_prep.tables.cells import Cells
from data_prep.tables.columns import Columns
from data_prep.tables.records import MAX_ROW_BYTES
from data_prep.tables.text_rows import parse_json, read_cells, tsv_fields


def columns(*fields, keep=(), url="url", caption="caption", expected=None):
    return Columns("generic", fields, url, caption, expected, "none", keep)


CC12M, CC3M = columns("url", "caption"), columns("caption", "url")
FOUR = columns("id", "url", "caption", "md5", keep=("id",), expected="md5")
JSON = columns(keep=("id",))


@pytest.mark.parametrize(
    ("line", "layout", "url", "caption"),
    [
        (b"u\tc\n", CC12M, b"u", b"c"),
        (b'u\t"c\r\n', CC12M, b"u", b'"c'),
        (b"u\tc\td\n", CC12M, b"u", b"c\td"),
        (b"c\td\tu", CC3M, b"u", b"c\td"),
        (b"1\tu\tc\td\te\tm\n", FOUR, b"u", b"c\td\te"),
        (b"u\n", CC12M, b"u", None),
        (b"c\n", CC3M, None, b"c"),
        (b"\n", CC12M, b"", None),
        (b"u\t\n", CC12M, b"u", b""),
        (b"u\tc\rd\0\n", CC12M, b"u", b"c\rd\0"),
    ],
)
def test_a_line_is_split_at_tabs_and_the_surplus_is_the_captions(line, layout, url, caption):
    cells = read_cells(line, "tsv", layout)
    assert (cells.url, cells.caption, cells.status) == (url, caption, None)


@pytest.mark.parametrize(
    ("kind", "line", "error"),
    [
        ("tsv", b"1\tu\tc\n", "3 fields, the table has 4 columns"),
        ("csv", b"1,u,c\n", "3 fields, the table has 4 columns"),
        ("csv", b"1,u,c,d,m\n", "5 fields, the table has 4 columns"),
        ("csv", b'1,u,"c" d,e,m\n', "5 fields, the table has 4 columns"),
        ("tsv", None, f"longer than {MAX_ROW_BYTES} bytes"),
        ("jsonl", None, f"longer than {MAX_ROW_BYTES} bytes"),
        ("jsonl", b"{broken\n", "not a JSON object"),
        ("jsonl", b"[1]\n", "not a JSON object"),
        ("jsonl", b"[" * 100_000, "not a JSON object"),
    ],
)
def test_a_row_whose_cells_cannot_be_told_apart_is_invalid(kind, line, error):
    cells = read_cells(line, kind, FOUR)
    assert (cells.status, cells.error) == (Status.INVALID_ROW, error)
    assert len(cells.keep) == 1


def test_a_row_that_ends_early_misses_what_is_not_there():
    assert read_cells(b"1\tu\n", "tsv", FOUR) == Cells(b"u", keep=(b"1",))
    assert read_cells(b"1\n", "tsv", FOUR) == Cells(keep=(b"1",))
    assert read_cells(b"\n", "csv", FOUR) == Cells(keep=(b"",))


def test_hashes_and_kept_columns_are_found():
    cells = Cells(b"u", b'c,"', b"m", keep=(b"1",))
    assert read_cells(b'1,u,"c,""",m\r\n', "csv", FOUR) == cells
    assert read_cells(b'1\tu\tc,"\tm\r\n', "tsv", FOUR) == cells


@pytest.mark.parametrize(
    ("line", "cells"),
    [
        (b'{"url": "u", "caption": "c", "id": 7}', Cells(b"u", b"c", keep=(b"7",))),
        (b'{"URL": "u", "Caption": "a\\tb"}\r\n', Cells(b"u", b"a\tb", keep=(None,))),
        (b'{"url": null, "URL": "other", "caption": 5}', Cells(None, b"5", keep=(None,))),
        (b'{"url": "u", "caption": "\xff"}', Cells(b"u", b"\xff", keep=(None,))),
        (b'{"url": "\\ud800", "caption": "c"}', Cells(b"\xed\xa0\x80", b"c", keep=(None,))),
        (b" \r\n", Cells(keep=(None,))),
        (b'{"id": {"a": [1]}}', Cells(keep=(b'{"a":[1]}',))),
    ],
)
def test_a_json_object_is_a_row_whatever_the_case_of_its_names(line, cells):
    assert read_cells(line, "jsonl", JSON) == cells


@pytest.mark.parametrize(
    ("values", "status", "error"),
    [
        ({"url": ["u"], "caption": []}, Status.INVALID_URL, "url holds a list, not text"),
        (
            {"url": "u", "caption": {"a": 1}},
            Status.INVALID_CAPTION,
            "caption holds an object, not text",
        ),
    ],
)
def test_a_list_or_an_object_is_no_text(values, status, error):
    cells = read_cells(json.dumps(values).encode(), "jsonl", JSON)
    assert (cells.status, cells.error) == (status, error)


@given(st.binary(max_size=60), st.sampled_from(["tsv", "txt", "csv", "jsonl"]))
def test_any_bytes_are_a_row(record, kind):
    cells = read_cells(record, kind, FOUR)
    assert len(cells.keep) == 1 and (cells.status is None) == (cells.error is None)


@given(st.lists(st.binary(max_size=5), min_size=1, max_size=8), st.integers(0, 2))
def test_fields_and_tabs_are_all_there(parts, caption):
    line = b"\t".join(part.replace(b"\n", b"").replace(b"\r", b"") for part in parts)
    fields = tsv_fields(line + b"\n", 3, caption)
    assert b"\t".join(fields) == line and len(fields) == min(line.count(b"\t") + 1, 3)


@given(st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=4))
def test_json_is_read_as_it_was_written(values):
    for ascii_only in (True, False):
        assert parse_json(json.dumps(values, ensure_ascii=ascii_only).encode()) == values
