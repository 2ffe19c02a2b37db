import pytest

from data_prep.tables.csv_fields import csv_fields, match_record


@pytest.mark.parametrize(
    ("record", "fields"),
    [
        (b"", [b""]),
        (b"\r\n", [b""]),
        (b"a,b\n", [b"a", b"b"]),
        (b",\n", [b"", b""]),
        (b'"a,""\r\n",b\r\n', [b'a,"\r\n', b"b"]),
        (b'"",""\n', [b"", b""]),
        (b'a 5" nail,b', [b'a 5" nail', b"b"]),
        (b'"lone,b\n', [b'"lone', b"b"]),
        (b'"a"b,c\n', [b'"a"b', b"c"]),
        (b"\0\xff,\t\n", [b"\0\xff", b"\t"]),
    ],
)
def test_fields_are_those_of_the_rfc_or_else_between_commas(record, fields):
    assert csv_fields(record) == fields


@pytest.mark.parametrize(
    ("data", "end"),
    [(b"a,b\nc", 4), (b'"a\n",b\nc', 7), (b'"a\n,b\n', None), (b'"a"b\n', None), (b"ab", 2)],
)
def test_a_record_ends_at_its_newline_or_with_the_bytes(data, end):
    assert match_record(data, 0, len(data)) == end


def test_any_quotes_cost_no_more_than_their_length():
    """A record of a megabyte; with backtracking it would not end in a lifetime."""
    for data in (b'"' * 1_000_001, b'"a",' * 250_000, b'"' + b'""' * 500_000 + b"x"):
        match_record(data, 0, len(data))
