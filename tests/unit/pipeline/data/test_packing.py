"""Rows hold every text once, none is too long, and little of them is padding."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.data.packing import pack_rows


@given(st.lists(st.integers(1, 32), max_size=60), st.integers(32, 100))
def test_every_text_stands_in_one_row_that_holds_it(lengths, row_tokens):
    rows = pack_rows(lengths, row_tokens)
    assert sorted(i for row in rows for i in row) == list(range(len(lengths)))
    assert all(row == sorted(row) for row in rows)
    assert all(sum(lengths[i] for i in row) <= row_tokens for row in rows)
    assert pack_rows(lengths, row_tokens) == rows


@given(st.lists(st.integers(1, 32), min_size=1, max_size=60))
def test_rows_differ_by_no_more_than_a_text(lengths):
    filled = [sum(lengths[i] for i in row) for row in pack_rows(lengths, 128)]
    assert max(filled) - min(filled) <= max(lengths)


def test_texts_longer_than_a_row_are_refused():
    with pytest.raises(ValueError, match="a text of 9 tokens does not fit a row of 8"):
        pack_rows([3, 9], 8)
