import csv
import io

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.tables import records
from data_prep.tables.csv_fields import csv_fields
from data_prep.tables.records import CsvSplitter, LineSplitter, pieces_of, read_records

# Bytes that mean something somewhere, and some that mean nothing.
WILD = st.lists(
    st.sampled_from([b'"', b'""', b",", b"\n", b"\r\n", b"\t", b"\r", b"\0", b"a", b"\xff"]),
    max_size=40,
).map(b"".join)


def cut(data, splitter, sizes=(1 << 30,)):
    """The rows, the data pushed in chunks of these sizes in turn."""
    chunks, place, turn = [], 0, 0
    while place < len(data):
        size = sizes[turn % len(sizes)]
        chunks.append(data[place : place + size])
        place, turn = place + size, turn + 1
    return list(read_records(pieces_of(chunks, splitter)))


def quoted(field):
    return b'"' + field.replace(b'"', b'""') + b'"'


@pytest.mark.parametrize("make", [LineSplitter, lambda: CsvSplitter(2)])
@settings(max_examples=150)
@given(WILD, st.lists(st.integers(1, 7), min_size=1, max_size=4))
def test_nothing_is_lost_and_chunks_do_not_matter(make, data, sizes):
    rows = cut(data, make())
    assert b"".join(rows) == data
    assert all(row.endswith(b"\n") for row in rows[:-1]) and b"" not in rows
    assert cut(data, make(), sizes) == rows


@settings(max_examples=150)
@given(WILD, st.data())
def test_rows_are_the_same_read_from_any_row_to_any_other(data, draw):
    rows = cut(data, CsvSplitter(2))
    first = draw.draw(st.integers(0, len(rows)))
    end = draw.draw(st.integers(first, len(rows)))
    assert cut(b"".join(rows[first:end]), CsvSplitter(2)) == rows[first:end]


@given(WILD)
def test_a_line_is_a_row(data):
    lines = data.split(b"\n")
    assert len(cut(data, LineSplitter())) == len(lines) - (lines[-1] == b"")


@settings(max_examples=150)
@given(st.lists(st.lists(WILD, min_size=3, max_size=3), max_size=6), st.booleans())
def test_well_formed_csv_is_read_as_it_was_written(table, end):
    written = [b",".join(map(quoted, row)) + b"\r\n" for row in table]
    data = b"".join(written).removesuffix(b"\r\n" if end else b"")
    assert [csv_fields(row) for row in cut(data, CsvSplitter(3))] == table


@settings(max_examples=100)
@given(st.lists(st.lists(st.text("ab\",\n' \t", max_size=6), min_size=2, max_size=2), max_size=6))
def test_what_the_csv_module_writes_is_read_as_it_reads_it(table):
    text = io.StringIO(newline="")
    csv.writer(text).writerows(table)
    rows = cut(text.getvalue().encode(), CsvSplitter(2))
    assert [[f.decode() for f in csv_fields(row)] for row in rows] == table


@pytest.mark.parametrize(
    ("data", "rows"),
    [
        (b'"lone,u\nb,u\n', [b'"lone,u\n', b"b,u\n"]),
        (b'"lone,u\n"b",u\n', [b'"lone,u\n', b'"b",u\n']),  # the next quote closes no field
        (b'"lone,u\nb,u\n5",x,y\n', [b'"lone,u\n', b"b,u\n", b'5",x,y\n']),  # three fields
        (b'a 5" nail,u\nb,u\n', [b'a 5" nail,u\n', b"b,u\n"]),
        (b'"a\nb",u\nc,u', [b'"a\nb",u\n', b"c,u"]),
        (b'"a"\r\n"b\n', [b'"a"\r\n', b'"b\n']),
        (b"\n\na,u\n", [b"\n", b"\n", b"a,u\n"]),
    ],
)
def test_a_stray_quote_costs_no_other_row(data, rows):
    assert cut(data, CsvSplitter(2)) == rows == cut(data, CsvSplitter(2), [1])


@pytest.mark.parametrize("make", [LineSplitter, lambda: CsvSplitter(2)])
@pytest.mark.parametrize("size", [1, 3, 100])
def test_a_row_that_is_too_long_is_one_row(monkeypatch, make, size):
    monkeypatch.setattr(records, "MAX_ROW_BYTES", 8)
    data = b'a,1\n"long' + b"x" * 30 + b'",u\nb,2\n' + b"y" * 9
    assert cut(data, make(), [size]) == [b"a,1\n", None, b"b,2\n", None]


def test_a_quoted_field_longer_than_a_row_may_be_is_no_field(monkeypatch):
    monkeypatch.setattr(records, "MAX_ROW_BYTES", 8)
    assert cut(b'"a\nb\nc\nd\n",u\ne,f\n', CsvSplitter(2)) == [
        *(b'"a\n', b"b\n", b"c\n", b"d\n", b'",u\n', b"e,f\n")
    ]


def test_a_row_without_an_end_is_not_held_in_memory(monkeypatch):
    monkeypatch.setattr(records, "MAX_ROW_BYTES", 64)
    splitter = CsvSplitter(2)
    for _ in range(100):
        splitter.push(b'x"' * 16)
        assert len(splitter._rest) <= 64
    assert splitter.finish()[1].tolist() == [0]
