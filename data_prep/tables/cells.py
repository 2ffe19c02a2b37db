"""From the bytes of a row's cells to text and, where it ends before any fetch, a status."""

import re
from dataclasses import dataclass, field

from data_prep.hashes import HASH_DIGITS, parse_hash
from data_prep.schema import Status

# Controls and byte order marks, which no tokenizer should see.
_BLANK = dict.fromkeys([*range(0x20), *range(0x7F, 0xA0), 0xFEFF], " ")
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f]")


@dataclass
class Cells:
    """What stands in a row, as bytes; None for what does not.

    Attributes:
        status: set where the row as a whole cannot be read.
        error: why.
        keep: the kept columns.
    """

    url: bytes | None = None
    caption: bytes | None = None
    expected: bytes | None = None
    status: Status | None = None
    error: str | None = None
    keep: tuple[bytes | None, ...] = ()


@dataclass
class Row:
    """A row as the ledger has it; `status` is None for one to be fetched."""

    url: str | None = None
    caption: str | None = None
    expected: str | None = None
    status: Status | None = None
    error: str | None = None
    keep: list[str | None] = field(default_factory=list)


def read_row(cells: Cells, verify: str) -> Row:
    """Decode the cells; the first thing that is wrong with them is the row's status."""
    row = Row(status=cells.status, error=cells.error)
    row.keep = [text(cell) or None for cell in cells.keep]
    row.url = _strip(text(cells.url)) or None
    row.caption = text(cells.caption).translate(_BLANK).strip() or None
    row.expected = text(cells.expected).strip().lower() or None
    if row.status is not None:
        return row
    if row.url is None:
        return _end(row, Status.MISSING_URL)
    if not _is_utf8(cells.url):
        return _end(row, Status.INVALID_URL, "not UTF-8")
    if _CONTROL.search(row.url):
        return _end(row, Status.INVALID_URL, "holds a control character")
    if row.caption is None:
        return _end(row, Status.MISSING_CAPTION)
    if not _is_utf8(cells.caption):
        return _end(row, Status.INVALID_CAPTION, "not UTF-8")
    if verify != "none":
        _check_expected(row, verify)
    return row


def text(cell: bytes | None) -> str:
    """The cell as text, with U+FFFD for what is not UTF-8."""
    return "" if cell is None else cell.decode("utf-8", "replace")


def _check_expected(row: Row, verify: str) -> None:
    if row.expected is None:
        _end(row, Status.MISSING_HASH)
    elif parse_hash(verify, row.expected) is None:
        digits = HASH_DIGITS[verify]
        _end(row, Status.MISSING_HASH, f"a {verify} has {digits} hexadecimal digits")


def _end(row: Row, status: Status, error: str | None = None) -> Row:
    row.status, row.error = status, error
    return row


def _strip(value: str) -> str:
    return value.strip().strip("\ufeff").strip()


def _is_utf8(cell: bytes) -> bool:
    try:
        cell.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True
