"""A web of raw sockets on loopback that misbehaves in every way, and writes down who came.

Each server listens on an address of its own in 127.0.0.0/8, so that one may be allowed and another
forbidden; `connections` is what the listening side saw.
"""

import asyncio
import ssl
import threading
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from time import monotonic

PICTURE = b"\xff\xd8\xff" + bytes(range(256)) * 8
_STEP_SECONDS = 0.25  # few enough in any test that no limit but time ends what drips
_PATIENCE_SECONDS = 5.0


@dataclass
class Request:
    """One request as it came."""

    address: str  # that was connected to
    path: str
    headers: dict[str, str]  # names in lower case
    writer: asyncio.StreamWriter = field(repr=False)
    start: float = field(default_factory=monotonic)
    end: float = 0.0


Page = bytes | Callable[[Request], Awaitable[None]]


def response(
    body: bytes = PICTURE, *, code: int = 200, headers: tuple[str, ...] = (), length: bool = True
) -> bytes:
    """A whole response."""
    lines = [f"HTTP/1.1 {code} Whatever", *headers]
    if not any(h.lower().startswith("content-type:") for h in headers):
        lines.append("Content-Type: image/jpeg")
    if length:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode() + body


def redirect(location: str, *headers: str, code: int = 302) -> bytes:
    """A redirect."""
    return response(b"", code=code, headers=(f"Location: {location}", *headers))


class HostileWeb:
    """Servers in a thread of their own; use as a context manager.

    Attributes:
        pages: what is answered, by path; by (address, path) first. Others are 404.
        connections: how often each address was connected to.
        requests: in order.
        busiest: requests under way at the same time, at most, by address.
    """

    def __init__(self, *addresses: str, tls: ssl.SSLContext | None = None):
        self.addresses = addresses or ("127.0.0.2",)
        self.pages: dict[str | tuple[str, str], Page] = {}
        self.connections: Counter[str] = Counter()
        self.requests: list[Request] = []
        self.busiest: Counter[str] = Counter()
        self.port = 0
        self._busy: Counter[str] = Counter()
        self._tls = tls
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._writers: set[asyncio.StreamWriter] = set()

    def __enter__(self) -> "HostileWeb":
        self._thread.start()
        self._call(self._listen())
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._call(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def url(self, path: str = "/", address: str | None = None) -> str:
        """The URL of a page at the first address or another host."""
        scheme = "https" if self._tls else "http"
        return f"{scheme}://{address or self.addresses[0]}:{self.port}{path}"

    def paths(self, address: str | None = None) -> list[str]:
        """What was asked for, robots.txt apart."""
        found = [r for r in self.requests if address in (None, r.address)]
        return [r.path for r in found if r.path != "/robots.txt"]

    def _call(self, work: Awaitable[None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    async def _listen(self) -> None:
        self._servers = []
        for address in self.addresses:
            server = await asyncio.start_server(self._accept, address, self.port, ssl=self._tls)
            self.port = server.sockets[0].getsockname()[1]
            self._servers.append(server)

    async def _close(self) -> None:
        for server in self._servers:
            server.close()
        for writer in list(self._writers):
            writer.transport.abort()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        address = writer.get_extra_info("sockname")[0]
        self.connections[address] += 1
        self._writers.add(writer)
        with suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            while not writer.is_closing():
                await self._answer(await reader.readuntil(b"\r\n\r\n"), address, writer)
        self._writers.discard(writer)
        writer.close()

    async def _answer(self, head: bytes, address: str, writer: asyncio.StreamWriter) -> None:
        first, *lines = head.decode("latin-1").split("\r\n")
        pairs = (line.partition(":") for line in lines if line)
        headers = {name.lower(): value.strip() for name, _, value in pairs}
        request = Request(address, first.split(" ")[1], headers, writer)
        self.requests.append(request)
        self._busy[address] += 1
        self.busiest[address] = max(self.busiest[address], self._busy[address])
        path = request.path.partition("?")[0]
        page = self.pages.get((address, path), self.pages.get(path, response(b"", code=404)))
        try:
            if callable(page):
                await page(request)
            else:
                writer.write(page)
            await writer.drain()
        finally:
            self._busy[address] -= 1
            request.end = monotonic()


def closing(data: bytes) -> Page:
    """Sends something and closes."""

    async def page(request: Request) -> None:
        request.writer.write(data)
        await request.writer.drain()
        request.writer.close()

    return page


def endless(start: bytes, piece: bytes) -> Page:
    """Sends pieces as fast as they are taken, for ever."""

    async def page(request: Request) -> None:
        request.writer.write(start)
        while True:
            request.writer.write(piece)
            await request.writer.drain()
            await asyncio.sleep(0)

    return page


def dripping(start: bytes, piece: bytes) -> Page:
    """Sends a piece from time to time, for ever: never silent and never done."""

    async def page(request: Request) -> None:
        request.writer.write(start)
        while True:
            request.writer.write(piece)
            await request.writer.drain()
            await asyncio.sleep(_STEP_SECONDS)

    return page


def silent(start: bytes = b"") -> Page:
    """Sends a beginning and then nothing, without closing."""

    async def page(request: Request) -> None:
        request.writer.write(start)
        await asyncio.sleep(3600)

    return page


def after(seconds: float, data: bytes) -> Page:
    """Answers late."""

    async def page(request: Request) -> None:
        await asyncio.sleep(seconds)
        request.writer.write(data)

    return page


def together(count: int, data: bytes, *, by_address: bool = False, grace: float = 0.03) -> Page:
    """Answers none before `count` are under way at once, and then late enough for one more to show up.

    So that what `busiest` comes to does not hang on the speed of the machine. Those that are too few wait for
    `_PATIENCE_SECONDS`.
    """
    waiting: dict[str, list[asyncio.Future]] = {}

    async def page(request: Request) -> None:
        group = waiting.setdefault(request.address if by_address else "", [])
        turn = asyncio.get_running_loop().create_future()
        group.append(turn)
        if len(group) == count:
            await asyncio.sleep(grace)
            for other in group:
                other.done() or other.set_result(None)
            group.clear()
        with suppress(TimeoutError):
            await asyncio.wait_for(turn, _PATIENCE_SECONDS)
        request.writer.write(data)

    return page


def in_turn(*pages: Page) -> Page:
    """One page for each request, the last one again and again."""
    left = list(pages)

    async def page(request: Request) -> None:
        chosen = left.pop(0) if len(left) > 1 else left[0]
        if callable(chosen):
            await chosen(request)
        else:
            request.writer.write(chosen)

    return page
