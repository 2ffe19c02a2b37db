"""Where the rows of a text table end, on bytes and chunk by chunk.

The planner counts rows with these splitters and the workers read rows with them, so that the two agree
by construction. In TSV, JSONL and txt a row is a line, whatever stands in it; for CSV see `CsvSplitter`.
"""

from collections.abc import Iterable, Iterator
from typing import Protocol

import numpy as np

from data_prep.tables.csv_fields import csv_fields, match_record

# A longer row is not held in memory; it ends as invalid_row.
MAX_ROW_BYTES = 1 << 20
CHUNK_BYTES = 4 << 20
Piece = tuple[bytes, np.ndarray]
_NEWLINE = 10


class Splitter(Protocol):
    """Cuts a stream of bytes into rows.

    `push` and `finish` give consecutive pieces of the stream, each with the positions in it behind
    which a row has ended; a piece may end inside a row.
    """

    def push(self, chunk: bytes) -> Piece: ...

    def finish(self) -> Piece: ...


class LineSplitter:
    """A row is a line; the last one may lack its newline."""

    def __init__(self) -> None:
        self._open = False

    def push(self, chunk: bytes) -> Piece:
        if chunk:
            self._open = chunk[-1] != _NEWLINE
        return chunk, _line_ends(chunk)

    def finish(self) -> Piece:
        return b"", np.zeros(1 if self._open else 0, np.int64)


class CsvSplitter:
    """A row is a record by RFC 4180, or else a line.

    A record may hold newlines in quoted fields only if it is well formed, has as many fields as the
    header and is no longer than `MAX_ROW_BYTES`. If not, as where a caption begins with a lone quote,
    the line is a row by itself and the next row begins behind it. Whether a row ends somewhere depends
    on what follows its own beginning alone.
    """

    def __init__(self, num_fields: int) -> None:
        self._num_fields = num_fields
        self._rest = b""
        self._inside = False  # a line that is a row whatever follows

    def push(self, chunk: bytes) -> Piece:
        return self._cut(self._rest + chunk, last=False)

    def finish(self) -> Piece:
        return self._cut(self._rest, last=True)

    def _cut(self, data: bytes, *, last: bool) -> Piece:
        lines = _line_ends(data)
        closes = np.ones(len(lines), bool)  # whether a row ends with the line
        count, done = 0, 0  # of lines, of bytes
        began_inside = self._inside
        if began_inside:
            count, self._inside = min(1, len(lines)), not len(lines) and not last
            done = int(lines[0]) if count else len(data)
        while done < len(data):
            quote = data.find(b'"', done)
            plain = int(np.searchsorted(lines, quote, side="right")) if quote >= 0 else len(lines)
            if plain > count:  # no quote before their ends
                count, done = plain, int(lines[plain - 1])
                continue
            end = self._record_end(data, done, last)
            if end is None:
                break
            done = end
            if count < len(lines) and lines[count] < end:
                inner = int(np.searchsorted(lines, end))
                closes[count:inner] = False
                count = inner
            count = min(count + 1, len(lines))
        self._rest = data[done:]
        ends = lines[:count][closes[:count]]
        ended = data[done - 1] == _NEWLINE if done else not began_inside
        if last and not ended:
            ends = np.append(ends, done)  # the last row lacks its newline
        return data[:done], ends

    def _record_end(self, data: bytes, start: int, last: bool) -> int | None:
        """None where more bytes are needed to tell."""
        limit = min(start + MAX_ROW_BYTES, len(data))
        end = match_record(data, start, limit)
        whole = end is not None and (data[end - 1] == _NEWLINE or (last and end == len(data)))
        if whole and (
            data.find(b"\n", start, end - 1) < 0
            or len(csv_fields(data[start:end])) == self._num_fields
        ):
            return end
        if not whole and limit == len(data) and not last:
            return None
        newline = data.find(b"\n", start)
        if newline < 0:
            self._inside = not last
            return len(data)
        return newline + 1


def read_records(pieces: Iterable[Piece]) -> Iterator[bytes | None]:
    """The rows with their line ends, or None for one longer than `MAX_ROW_BYTES`."""
    parts, length = [], 0
    for piece, ends in pieces:
        start = 0
        for end in ends.tolist():
            length += end - start
            if length > MAX_ROW_BYTES:
                yield None
            else:
                yield b"".join([*parts, piece[start:end]])
            parts, length, start = [], 0, end
        length += len(piece) - start
        if length <= MAX_ROW_BYTES:
            parts.append(piece[start:])
        else:
            parts = []


def pieces_of(chunks: Iterable[bytes], splitter: Splitter) -> Iterator[Piece]:
    """Push all chunks."""
    for chunk in chunks:
        yield splitter.push(chunk)
    yield splitter.finish()


def _line_ends(data: bytes) -> np.ndarray:
    return np.flatnonzero(np.frombuffer(data, np.uint8) == _NEWLINE) + 1
