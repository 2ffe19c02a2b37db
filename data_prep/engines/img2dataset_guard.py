"""The one address check of a process that fetches by Python's own sockets, whoever opens them.

Names are checked as they are looked up. Below that an audit hook judges every address that a socket is
about to connect to: it cannot be taken off again, and a name cannot be rebound in between.
"""

import ipaddress
import socket
import sys

from data_prep.fetch.addresses import AllowedHosts
from data_prep.fetch.failures import refused_address


class SocketGuard:
    """Refuses what is neither public nor allowed; `install` it for good."""

    def __init__(self, allowed: AllowedHosts) -> None:
        self._allowed = allowed
        self._look_up = socket.getaddrinfo
        self._by_name: set[str] = set()  # private addresses that an allowed name led to

    def install(self) -> None:
        """Takes the place of `socket.getaddrinfo` and watches every connect of this process."""
        socket.getaddrinfo = self._getaddrinfo
        sys.addaudithook(self._audit)

    def _getaddrinfo(self, host, port, *args, **kwargs) -> list[tuple]:
        name = host.decode() if isinstance(host, bytes) else host
        is_allowed = self._allowed.has_name(name.lower().removesuffix("."))
        # The dot keeps search domains of this machine out; its hosts file knows names without.
        is_plain = is_allowed or "." not in name or _is_address(name)
        found = self._look_up(name if is_plain else f"{name}.", port, *args, **kwargs)
        for _, _, _, _, where in found:
            if self._permits(where[0]):
                continue
            if not is_allowed:
                raise refused_address(name, where[0])
            self._by_name.add(where[0])
        return found

    def _audit(self, event: str, args: tuple) -> None:
        if event != "socket.connect":
            return
        where = args[1]
        address = where[0] if isinstance(where, tuple) else repr(where)
        if address not in self._by_name and not self._permits(address):
            raise refused_address(address, address)

    def _permits(self, address: str) -> bool:
        return _is_address(address) and self._allowed.permits(address)


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True
