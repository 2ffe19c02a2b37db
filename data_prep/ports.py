"""TCP ports of the loopback for servers that are yet to start."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager

LOOPBACK = "127.0.0.1"


def free_port() -> int:
    """A port that nobody listens on now; for who listens at once, since another may be given it later."""
    with held_port() as port:
        return port


@contextmanager
def held_port() -> Iterator[int]:
    """A port that nobody else is given while the context is open.

    It is bound here and not listened on, so that a server that sets SO_REUSEADDR, as nearly all do, can
    listen on it however long it takes to start.
    """
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind((LOOPBACK, 0))
        yield holder.getsockname()[1]
