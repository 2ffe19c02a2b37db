"""Host names -> addresses, remembered for a while, by the system's resolver or chosen DNS servers.

What a name led to lives in the process, across the shards that it makes: the names of neighbouring
rows recur. Failures are remembered too, more briefly.
"""

import asyncio
import functools
import socket
import time
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pycares

# One thread waits for one answer; the event loop's own pool has as few as six.
_THREADS = 64
_FOUND_SECONDS = (30.0, 600.0)  # a time to live beyond these is taken as the nearest
_SYSTEM_SECONDS = 120.0  # getaddrinfo tells no time to live
_FAILED_SECONDS = 15.0
_REMEMBERED = 20_000
_SERVER_SECONDS, _SERVER_TRIES = 3.0, 2

Found = tuple[tuple[int, str], ...]  # of (address family, address)


class NameCache:
    """Answers by (servers, name) with the time they expire at; the least used go first."""

    def __init__(self, size: int = _REMEMBERED):
        self._size = size
        self._answers: OrderedDict[tuple, tuple[float, Found | str]] = OrderedDict()

    def get(self, key: tuple) -> Found | str | None:
        """Addresses, the message of a failure, or None where nothing is known."""
        answer = self._answers.get(key)
        if answer is None:
            return None
        if answer[0] < time.monotonic():
            del self._answers[key]
            return None
        self._answers.move_to_end(key)
        return answer[1]

    def put(self, key: tuple, answer: Found | str, seconds: float) -> None:
        """Remembers an answer for some seconds."""
        self._answers[key] = (time.monotonic() + seconds, answer)
        while len(self._answers) > self._size:
            self._answers.popitem(last=False)

    def clear(self) -> None:
        """Forgets all."""
        self._answers.clear()


process_cache = NameCache()


@functools.cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(_THREADS, thread_name_prefix="resolve")


class Names:
    """Looks names up within one event loop; names asked for at the same time are looked up once."""

    def __init__(self, nameservers: Sequence[str], cache: NameCache = process_cache):
        self._servers = tuple(nameservers)
        self._cache = cache
        self._pending: dict[str, asyncio.Task[Found]] = {}
        # pycares and not aiodns: where that is installed, aiohttp uses it everywhere, S3 included.
        self._channel = (
            pycares.Channel(
                servers=self._servers, timeout=_SERVER_SECONDS, tries=_SERVER_TRIES, domains=[]
            )
            if nameservers
            else None
        )

    async def look_up(self, name: str) -> Found:
        """The addresses of a name.

        Args:
            name: ends in a dot where no search domain of this machine may be tried.

        Raises:
            OSError: it has none, or nobody answered.
        """
        answer = self._cache.get((self._servers, name))
        if answer is None:
            task = self._pending.get(name)
            if task is None:
                task = self._pending[name] = asyncio.create_task(self._ask(name))
                task.add_done_callback(functools.partial(self._done, name))
            # Others wait for the same answer: it outlives whoever asked first.
            return await asyncio.shield(task)
        if isinstance(answer, str):
            raise OSError(None, answer)
        return answer

    def _done(self, name: str, task: asyncio.Task[Found]) -> None:
        self._pending.pop(name, None)
        if not task.cancelled():
            task.exception()  # seen, though all who waited may be gone

    async def _ask(self, name: str) -> Found:
        key = (self._servers, name)
        try:
            found, seconds = await (
                self._system(name) if self._channel is None else self._ares(name)
            )
        except OSError as error:
            message = f"{name.removesuffix('.')}: {error.strerror or error}"
            self._cache.put(key, message, _FAILED_SECONDS)
            raise OSError(None, message) from None
        shortest, longest = _FOUND_SECONDS
        self._cache.put(key, found, min(max(seconds, shortest), longest))
        return found

    async def _system(self, name: str) -> tuple[Found, float]:
        ask = functools.partial(
            socket.getaddrinfo, name, None, type=socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG
        )
        infos = await asyncio.get_running_loop().run_in_executor(_threads(), ask)
        # A scope (link-local addresses) stays part of the address, and so is refused.
        found = [
            (int(family), f"{where[0]}%{where[3]}" if len(where) == 4 and where[3] else where[0])
            for family, _, _, _, where in infos
        ]
        return tuple(dict.fromkeys(found)), _SYSTEM_SECONDS

    async def _ares(self, name: str) -> tuple[Found, float]:
        loop = asyncio.get_running_loop()
        answered: asyncio.Future = loop.create_future()

        def settle(result: pycares.AddrInfoResult | None, error: int | None) -> None:
            if not answered.done():
                answered.set_result((result, error))

        def callback(result: pycares.AddrInfoResult | None, error: int | None) -> None:
            with suppress(RuntimeError):  # called by a thread of c-ares; the loop may be closed
                loop.call_soon_threadsafe(settle, result, error)

        self._channel.getaddrinfo(name, None, type=socket.SOCK_STREAM, callback=callback)
        result, error = await answered
        if error:
            raise OSError(None, pycares.errno.strerror(error))
        found = tuple(dict.fromkeys((int(n.family), n.addr[0].decode()) for n in result.nodes))
        if not found:
            raise OSError(None, "no address")
        return found, float(min(n.ttl for n in result.nodes))

    async def close(self) -> None:
        """Ends the look-ups under way."""
        pending = list(self._pending.values())
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)
        if self._channel is not None:
            self._channel.close()
