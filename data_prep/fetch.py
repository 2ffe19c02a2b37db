"""Fetches one URL politely and safely: http(s) only, public addresses only, within limits.

The address check sits in the resolver, so what was checked is what is connected to (a name cannot
be rebound in between), and every redirect passes it again.
"""

import asyncio
import ipaddress
import socket
import time
from dataclasses import dataclass

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.resolver import ThreadedResolver
from yarl import URL

from data_prep.config import FetchConfig
from data_prep.schema import Status

_REDIRECTS = (301, 302, 303, 307, 308)
_TRANSIENT_CODES = (408, 429, 500, 502, 503, 504)
_TRANSIENT = (Status.TIMEOUT, Status.CONNECTION, Status.DNS)
_BACKOFF_SECONDS = 0.5
_CHUNK_BYTES = 1 << 16
# Bodies that wait to be decoded may hold this much memory in one process, all together.
_BUFFER_BYTES = 256 << 20
_UNKNOWN_LENGTH_BYTES = 4 << 20
_NAT64 = ipaddress.ip_network("64:ff9b::/96")


@dataclass
class Fetched:
    """How one URL ended; `body` is set when `status` is ok."""

    status: Status
    error: str = ""
    body: bytes = b""
    final_url: str | None = None
    http_status: int | None = None
    seconds: float = 0.0
    reserved_bytes: int = 0


class FetchError(Exception):
    """A fetch that ends with a status other than ok."""

    def __init__(self, status: Status, message: str):
        super().__init__(message)
        self.status = status


def is_public(address: str) -> bool:
    """Whether an IP address, or the one wrapped in it, is reachable from the whole Internet."""
    ip = ipaddress.ip_address(address.split("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour or (ip.teredo[1] if ip.teredo else None)
        if ip in _NAT64:
            inner = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if inner is not None:
            return inner.is_global and not inner.is_multicast
    return ip.is_global and not ip.is_multicast


class GuardedResolver(AbstractResolver):
    """Resolves names; refuses one that leads to any address that is not public."""

    def __init__(self, allowed_hosts: frozenset[str]):
        self._allowed = allowed_hosts
        self._inner = ThreadedResolver()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        found = await self._inner.resolve(host, port, family)
        if host.lower() not in self._allowed:
            for result in found:
                check_address(host, result["host"])
        return found

    async def close(self) -> None:
        await self._inner.close()


def check_address(host: str, address: str) -> None:
    """Refuses an address that is not public.

    Raises:
        FetchError: with status refused_private_address.
    """
    if not is_public(address):
        raise FetchError(
            Status.REFUSED_PRIVATE_ADDRESS,
            f"{host} leads to {address}, which is not a public address "
            "(ingest.fetch.allow_private_hosts lists exceptions)",
        )


class _ByteBudget:
    """Memory that bodies may take up together; one larger than all of it goes alone."""

    def __init__(self, total: int):
        self._total = total
        self._used = 0
        self._changed = asyncio.Condition()

    async def reserve(self, count: int) -> int:
        count = min(count, self._total)
        async with self._changed:
            await self._changed.wait_for(lambda: self._used + count <= self._total)
            self._used += count
        return count

    async def release(self, count: int) -> None:
        async with self._changed:
            self._used -= count
            self._changed.notify_all()


class Fetcher:
    """Fetches many URLs over one session. Use as an async context manager."""

    def __init__(self, config: FetchConfig):
        self._config = config
        self._allowed = frozenset(h.lower() for h in config.allow_private_hosts)

    async def __aenter__(self) -> "Fetcher":
        self._budget = _ByteBudget(_BUFFER_BYTES)
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=self._config.concurrency, resolver=GuardedResolver(self._allowed)
            ),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=None),  # ours covers redirects too
            headers={
                "User-Agent": self._config.user_agent,
                "Accept": "image/*, application/octet-stream;q=0.5",
                "Accept-Encoding": "identity",
            },
        )
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self._session.close()

    async def release(self, fetched: Fetched) -> None:
        """Gives back the memory a body held; call once the body is no longer needed."""
        if fetched.reserved_bytes:
            await self._budget.release(fetched.reserved_bytes)
            fetched.reserved_bytes = 0

    async def fetch(self, url: str) -> Fetched:
        """Fetches one URL; never raises for what the web does.

        Returns:
            the outcome, `seconds` covering all tries; `release` it when its body is done with.
        """
        start = time.monotonic()
        for attempt in range(self._config.retries + 1):
            if attempt:
                await asyncio.sleep(_BACKOFF_SECONDS * attempt)
            fetched = await self._try(url)
            transient = fetched.status in _TRANSIENT or fetched.http_status in _TRANSIENT_CODES
            if fetched.status is Status.OK or not transient:
                break
        fetched.seconds = time.monotonic() - start
        return fetched

    async def _try(self, url: str) -> Fetched:
        fetched = Fetched(Status.OK)
        try:
            async with asyncio.timeout(self._config.timeout_seconds):
                await self._follow(url, fetched)
        except FetchError as error:
            fetched.status, fetched.error = error.status, str(error)
        except TimeoutError:
            fetched.status = Status.TIMEOUT
            fetched.error = f"took longer than {self._config.timeout_seconds} s"
        except aiohttp.ClientConnectorDNSError as error:
            fetched.status, fetched.error = Status.DNS, str(error)
        except (aiohttp.InvalidURL, ValueError) as error:
            fetched.status, fetched.error = Status.INVALID_URL, f"not a usable URL: {error}"
        except (aiohttp.ClientError, OSError) as error:
            fetched.status = Status.CONNECTION
            fetched.error = f"{type(error).__name__}: {error}"
        if fetched.status is not Status.OK:
            fetched.body = b""
            await self.release(fetched)
        return fetched

    async def _follow(self, url: str, fetched: Fetched) -> None:
        target = URL(url)
        for _ in range(self._config.max_redirects + 1):
            self._check_target(target)
            async with self._session.get(target, allow_redirects=False) as response:
                fetched.final_url, fetched.http_status = str(target), response.status
                location = response.headers.get("Location")
                if response.status not in _REDIRECTS or not location:
                    await self._receive(response, fetched)
                    return
                target = target.join(URL(location))
        raise FetchError(
            Status.TOO_MANY_REDIRECTS, f"more than {self._config.max_redirects} redirects"
        )

    def _check_target(self, target: URL) -> None:
        if target.scheme not in ("http", "https"):
            raise FetchError(
                Status.REFUSED_SCHEME, f"only http and https are fetched, not {target.scheme!r}"
            )
        host = target.host
        if not host:
            raise FetchError(Status.INVALID_URL, "not a usable URL: it names no host")
        # aiohttp asks no resolver about a literal address, so it is checked here.
        try:
            ipaddress.ip_address(host.split("%")[0])
        except ValueError:
            return
        if host.lower() not in self._allowed:
            check_address(host, host)

    async def _receive(self, response: aiohttp.ClientResponse, fetched: Fetched) -> None:
        if response.status in (404, 410):
            raise FetchError(Status.HTTP_404, f"the server answered {response.status}")
        if response.status != 200:
            raise FetchError(Status.HTTP_ERROR, f"the server answered {response.status}")
        kind = response.content_type.lower()  # octet-stream when the header is missing
        if not kind.startswith("image/") and kind != "application/octet-stream":
            raise FetchError(Status.WRONG_CONTENT_TYPE, f"{kind} is not an image")
        limit, length = self._config.max_bytes, response.content_length
        if length is not None and length > limit:
            raise FetchError(Status.TOO_MANY_BYTES, f"{length} bytes, more than {limit}")
        fetched.reserved_bytes = await self._budget.reserve(length or _UNKNOWN_LENGTH_BYTES)
        body = bytearray()
        async for chunk in response.content.iter_chunked(_CHUNK_BYTES):
            body += chunk
            if len(body) > limit:
                raise FetchError(Status.TOO_MANY_BYTES, f"more than {limit} bytes")
        fetched.body = bytes(body)
