"""aiohttp's connections, with the bounds that it lacks."""

import functools
import resource

import aiohttp
from aiohttp.client_proto import ResponseHandler
from aiohttp.http_exceptions import BadHttpMessage

from data_prep.fetch.guard import AddressGuard

_INFORMATIONAL = 16  # answers of 1xx before the one that counts
# Of hosts seen once only few rows come again, and every open connection is a file.
_KEEP_ALIVE_SECONDS = 5.0
_SWITCHING_PROTOCOLS = 101
_FILES = 16_384


class BoundedHandler(ResponseHandler):
    """One connection; a server that sends informational answers without end is cut off."""

    _informational = 0

    def feed_data(self, data: tuple, size: int = 0) -> None:
        """Takes one parsed head."""
        code = data[0].code
        if 100 <= code < 200 and code != _SWITCHING_PROTOCOLS:
            self._informational += 1
            if self._informational > _INFORMATIONAL:
                if self._exception is None and self.transport is not None:
                    message = f"more than {_INFORMATIONAL} informational responses"
                    self.set_exception(BadHttpMessage(message))
                    self.transport.abort()
                return
        elif self._informational > _INFORMATIONAL:
            return  # came along with those that were too many
        else:
            self._informational = 0
        super().feed_data(data, size)


class SynchronousRequest(aiohttp.ClientRequest):
    """A request that takes no answer that was there before it.

    A server may write to an idle connection (a 408 before it closes, or another row's answer too
    many); aiohttp would take that for the answer to the next request. As for a connection found
    closed, it sends the request once more over a new one.
    """

    async def send(self, conn: aiohttp.connector.Connection) -> aiohttp.ClientResponse:
        """Sends the request.

        Raises:
            aiohttp.ServerDisconnectedError: the connection holds an answer already.
        """
        if conn.protocol is None or conn.protocol.should_close:
            raise aiohttp.ServerDisconnectedError("an answer came before the request")
        return await super().send(conn)


class GuardedConnector(aiohttp.TCPConnector):
    """Connects where the guard permits; keeps connections alive for the next rows of a host."""

    def __init__(self, guard: AddressGuard):
        super().__init__(
            limit=0,  # hosts.py counts
            resolver=guard,
            use_dns_cache=False,  # names.py remembers
            socket_factory=guard.open_socket,
            keepalive_timeout=_KEEP_ALIVE_SECONDS,
        )
        self._factory = functools.partial(BoundedHandler, loop=self._loop)


def allow_many_files() -> None:
    """Raises this process's limit of open files as far as it may: each connection is one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _FILES if hard == resource.RLIM_INFINITY else min(_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
