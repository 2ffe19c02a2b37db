"""Response bodies, within bounds: of one body, of its silence, and of all that wait to be decoded."""

import asyncio
import zlib
from collections import deque
from collections.abc import Iterator

import aiohttp

from data_prep.fetch.failures import FetchError
from data_prep.schema import Status

UNKNOWN_LENGTH_BYTES = 4 << 20  # set aside for a body that does not announce its length
_PIECE_BYTES = 1 << 20  # decompressed at a time
_AUTO, _RAW = (
    47,
    -15,
)  # zlib's window bits: gzip or zlib by their first bytes; deflate without either
_IDENTITY = ("", "identity")
_DEFLATED = ("gzip", "x-gzip", "deflate")


class ByteBudget:
    """Memory that bodies may take up together; first come, first served."""

    def __init__(self, total: int):
        self._total = total
        self._used = 0
        self._waiting: deque[tuple[asyncio.Future[None], int]] = deque()
        self.over = asyncio.Lock()  # held by the one body that may outgrow the total

    def fits(self, count: int) -> bool:
        """Whether that much may be taken at once; a body larger than all of it goes alone."""
        return not self._waiting and (self._used == 0 or self._used + count <= self._total)

    def take(self, count: int) -> None:
        """Takes it, whether it fits or not."""
        self._used += count

    async def wait(self, count: int) -> None:
        """Takes it when its turn has come."""
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append((turn, count))
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.give(count)
            else:
                self._waiting.remove((turn, count))
                self._wake()
            raise

    def give(self, count: int) -> None:
        """Gives it back."""
        self._used -= count
        self._wake()

    def _wake(self) -> None:
        while self._waiting:
            turn, count = self._waiting[0]
            if self._used and self._used + count > self._total:
                return
            self._waiting.popleft()
            if not turn.done():
                self._used += count
                turn.set_result(None)


class Reservation:
    """What one body has taken of the budget."""

    def __init__(self, budget: ByteBudget):
        self._budget = budget
        self._bytes = 0
        self._is_over = False

    @property
    def bytes(self) -> int:
        """How much it is."""
        return self._bytes

    async def start(self, count: int, limit: asyncio.Timeout) -> None:
        """Takes the first bytes; the wait for them is ours, so `limit` stands still meanwhile."""
        if self._budget.fits(count):
            self._budget.take(count)
        else:
            await _unlimited(limit, self._budget.wait(count))
        self._bytes = count

    async def grow(self, count: int, limit: asyncio.Timeout) -> None:
        """Takes more, up to `count` in all.

        Bodies that wait for more hold what they have, so that one of them at a time goes on without:
        otherwise all could wait for each other.
        """
        more = count - self._bytes
        if not self._is_over and not self._budget.fits(more):
            await _unlimited(limit, self._budget.over.acquire())
            self._is_over = True
        self._budget.take(more)
        self._bytes = count

    def end(self) -> None:
        """Gives all back; may be called again."""
        count, self._bytes = self._bytes, 0
        if self._is_over:
            self._is_over = False
            self._budget.over.release()
        if count:
            self._budget.give(count)


async def _unlimited(limit: asyncio.Timeout, wait: object) -> None:
    loop = asyncio.get_running_loop()
    left = limit.when() - loop.time()
    limit.reschedule(None)
    await wait
    limit.reschedule(loop.time() + left)


class Inflater:
    """Undoes a compression that was not asked for, piece by piece."""

    def __init__(self) -> None:
        self._stream = zlib.decompressobj(_AUTO)
        self._has_begun = False

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Yields what it holds in pieces of 1 MiB at most.

        Raises:
            FetchError: with malformed_response.
        """
        while data:
            if self._stream.eof:
                raise _malformed("data behind the end of the compressed body")
            yield self._inflate(data)
            data = self._stream.unconsumed_tail or self._stream.unused_data

    def _inflate(self, data: bytes) -> bytes:
        try:
            piece = self._stream.decompress(data, _PIECE_BYTES)
        except zlib.error as error:
            if self._has_begun:
                raise _malformed(f"the body is not compressed as it says: {error}") from None
            self._has_begun = True  # "deflate" without zlib's header is a widespread mistake
            self._stream = zlib.decompressobj(_RAW)
            return self._inflate(data)
        self._has_begun = True
        return piece

    def check_end(self) -> None:
        """Call behind the last byte.

        Raises:
            FetchError: with connection, since the end is missing.
        """
        if not self._stream.eof:
            message = "the body ended early: its compression goes on"
            raise FetchError(Status.CONNECTION, message, transient=True)


def inflater(response: aiohttp.ClientResponse) -> Inflater | None:
    """What the body has to go through; None where it comes as it is.

    Raises:
        FetchError: with malformed_response, for codings that only who asked for them may be sent.
    """
    codings = response.headers.getall("Content-Encoding", ())
    if not codings:
        return None
    coding = ",".join(codings).strip().lower()
    if coding in _IDENTITY:
        return None
    if coding in _DEFLATED:
        return Inflater()
    raise _malformed(f"the body comes in a coding that was not asked for: {coding[:80]!r}")


async def read_body(
    response: aiohttp.ClientResponse, max_bytes: int, held: Reservation, limit: asyncio.Timeout
) -> bytes:
    """Reads a whole body; what it takes up is in `held` until its end.

    Raises:
        FetchError: with too_many_bytes, malformed_response, connection.
    """
    length = response.content_length
    if length is not None and length > max_bytes:
        raise _too_many(f"{length} bytes, more than {max_bytes}")
    undo = inflater(response)
    size = received = 0
    await held.start(min(length or UNKNOWN_LENGTH_BYTES, max_bytes), limit)
    pieces = []
    while chunk := await response.content.readany():
        received += len(chunk)
        for piece in (chunk,) if undo is None else undo.feed(chunk):
            size += len(piece)
            if size > max_bytes or received > max_bytes:
                raise _too_many(f"more than {max_bytes} bytes")
            if size > held.bytes:
                await held.grow(min(max(2 * held.bytes, size), max_bytes), limit)
            pieces.append(piece)
    if undo is not None:
        undo.check_end()
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


async def read_start(response: aiohttp.ClientResponse, max_bytes: int) -> bytes:
    """Reads a body, or as much of it as is wanted.

    Raises:
        FetchError: with malformed_response, connection.
    """
    undo = inflater(response)
    data = bytearray()
    while chunk := await response.content.readany():
        for piece in (chunk,) if undo is None else undo.feed(chunk):
            data += piece
            if len(data) > max_bytes:
                return bytes(data[:max_bytes])
    if undo is not None:
        undo.check_end()
    return bytes(data)


def _malformed(message: str) -> FetchError:
    return FetchError(Status.MALFORMED_RESPONSE, message)


def _too_many(message: str) -> FetchError:
    return FetchError(Status.TOO_MANY_BYTES, message)
