"""Where connections may go: asked three times, each time before anything is sent.

`check_host` judges addresses that a URL spells out, `resolve` what a name leads to, and `open_socket`
whatever address a socket is about to be opened for. The addresses that were checked are those that
are connected to, so that a name cannot be rebound in between; a connection kept alive stays with its
peer.
"""

import ipaddress
import socket

from aiohttp.abc import AbstractResolver, ResolveResult

from data_prep.fetch.addresses import AllowedHosts
from data_prep.fetch.failures import refused_address
from data_prep.fetch.names import Names

_NUMERIC = socket.AI_NUMERICHOST | socket.AI_NUMERICSERV


class AddressGuard(AbstractResolver):
    """aiohttp's resolver and socket factory, which refuse what is not public."""

    def __init__(self, allowed: AllowedHosts, names: Names):
        self._allowed = allowed
        self._names = names
        self._by_name: set[str] = set()  # private addresses that an allowed name led to

    def check_host(self, host: str) -> None:
        """Refuses a host that is an address and not public; a name is left to `resolve`.

        Args:
            host: as `normalize_host` spells it.

        Raises:
            FetchError: with refused_private_address.
        """
        try:
            ipaddress.ip_address(host)
        except ValueError:
            return
        self._check(host, host)

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """Looks a name up; one private address among its addresses refuses it as a whole.

        Raises:
            FetchError: with refused_private_address.
            OSError: the name has no address.
        """
        is_allowed = self._allowed.has_name(host)
        # The dot keeps search domains of this machine out; its hosts file knows names without.
        is_plain = is_allowed or "." not in host
        found = await self._names.look_up(host if is_plain else f"{host}.")
        for _, address in found:
            if not is_allowed:
                self._check(host, address)
            elif not self._allowed.permits(address):
                self._by_name.add(address)
        return [
            ResolveResult(
                hostname=host, host=address, port=port, family=family, proto=0, flags=_NUMERIC
            )
            for family, address in found
        ]

    def open_socket(self, addr_info: tuple) -> socket.socket:
        """A socket for (family, type, proto, canonical name, socket address).

        Raises:
            FetchError: with refused_private_address.
        """
        family, kind, proto, _, where = addr_info
        address = where[0]
        if address not in self._by_name:
            self._check(address, address)
        return socket.socket(family, kind, proto)

    def _check(self, host: str, address: str) -> None:
        if not self._allowed.permits(address):
            raise refused_address(host, address)

    async def close(self) -> None:
        """Ends the look-ups under way."""
        await self._names.close()
