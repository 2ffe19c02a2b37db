import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.schema import Status
from data_prep.tables.cells import Cells, read_row

URL, CAPTION = b"http://a/1", b"a cat"
SHA256, PHASH = b"0aF" + b"1" * 61, b"8b8bbcb0e8c2c4e6"


@pytest.mark.parametrize(
    ("caption", "text"),
    [
        (b'"a cat', '"a cat'),
        (b" a\tb\r\nc\0d\x7f ", "a b  c d"),
        (b"\xef\xbb\xbfa\xef\xbb\xbfb", "a b"),
        ("caf\u00e9 \u2028 \U0001f408".encode(), "caf\u00e9 \u2028 \U0001f408"),
        (b"\xc2\x85a", "a"),
    ],
)
def test_controls_and_marks_in_a_caption_become_spaces(caption, text):
    row = read_row(Cells(URL, caption), "none")
    assert (row.url, row.caption, row.status) == ("http://a/1", text, None)


@pytest.mark.parametrize(
    ("cells", "status", "error"),
    [
        (Cells(None, CAPTION), Status.MISSING_URL, None),
        (Cells(b" \t\xef\xbb\xbf", CAPTION), Status.MISSING_URL, None),
        (Cells(None, None), Status.MISSING_URL, None),
        (Cells(b"http://\xff", None), Status.INVALID_URL, "not UTF-8"),
        (Cells(b"http://a\tb", CAPTION), Status.INVALID_URL, "holds a control character"),
        (Cells(b"http://a\0", CAPTION), Status.INVALID_URL, "holds a control character"),
        (Cells(URL, None), Status.MISSING_CAPTION, None),
        (Cells(URL, b" \0\r"), Status.MISSING_CAPTION, None),
        (Cells(URL, b"a\xff"), Status.INVALID_CAPTION, "not UTF-8"),
        (Cells(URL, CAPTION, status=Status.INVALID_ROW, error="e"), Status.INVALID_ROW, "e"),
    ],
)
def test_the_first_thing_that_is_wrong_is_the_status(cells, status, error):
    row = read_row(cells, "none")
    assert (row.status, row.error) == (status, error)


def test_what_is_wrong_is_kept_to_be_looked_at():
    row = read_row(Cells(b"http://\xff", b"a\xff", keep=(b"\xff", b"", None)), "none")
    assert (row.url, row.caption, row.keep) == ("http://\ufffd", "a\ufffd", ["\ufffd", None, None])


@pytest.mark.parametrize(
    ("verify", "expected", "found", "status"),
    [
        ("sha256", SHA256, SHA256.decode().lower(), None),
        ("phash", b" %s\n" % PHASH, PHASH.decode(), None),
        ("md5", b"A" * 32, "a" * 32, None),
        ("md5", None, None, Status.MISSING_HASH),
        ("md5", b" ", None, Status.MISSING_HASH),
        ("md5", b"a" * 31, "a" * 31, Status.MISSING_HASH),
        ("phash", b"g" * 16, "g" * 16, Status.MISSING_HASH),
        ("sha256", b"\xff", "\ufffd", Status.MISSING_HASH),
    ],
)
def test_hashes_are_hexadecimal_of_their_length(verify, expected, found, status):
    row = read_row(Cells(URL, CAPTION, expected), verify)
    assert (row.expected, row.status) == (found, status)
    digits = {"sha256": 64, "md5": 32, "phash": 16}[verify]
    assert (row.error == f"a {verify} has {digits} hexadecimal digits") == bool(status and found)


@given(*[st.none() | st.binary(max_size=20)] * 3, st.sampled_from(["none", "sha256", "md5"]))
def test_any_bytes_become_a_row_that_can_be_stored(url, caption, expected, verify):
    row = read_row(Cells(url, caption, expected), verify)
    for value in (row.url, row.caption, row.expected):
        assert value is None or value.encode()
    assert row.status or (row.url and row.caption)
