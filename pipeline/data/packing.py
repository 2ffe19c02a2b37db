"""Several texts in one row, so that little of a batch is padding."""


def pack_rows(lengths: list[int], row_tokens: int) -> list[list[int]]:
    """Divide texts over as few rows as hold them, and those as evenly as can be.

    A batch is as wide as its longest row, so that even rows waste least: the longest text goes first,
    each to the row that is shortest so far. What a batch holds is not decided here, only how it is laid
    out: a run gives the same loss packed or not.

    Args:
        lengths: tokens of each text, at most ``row_tokens``.
        row_tokens: longest row.

    Returns:
        numbers of the texts in each row, ascending.

    Raises:
        ValueError: a text is longer than a row.

    Source: longest processing time first (Graham, 1969).
    """
    if lengths and max(lengths) > row_tokens:
        raise ValueError(f"a text of {max(lengths)} tokens does not fit a row of {row_tokens}")
    num_rows = max(1, -(-sum(lengths) // row_tokens)) if lengths else 0
    longest_first = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    while True:
        rows: list[list[int]] = [[] for _ in range(num_rows)]
        filled = [0] * num_rows
        for text in longest_first:
            row = min(range(num_rows), key=lambda r: (filled[r], r))
            rows[row].append(text)
            filled[row] += lengths[text]
        if not filled or max(filled) <= row_tokens:
            return sorted((sorted(row) for row in rows), key=lambda row: row[0])
        num_rows += 1
