"""Fetches URLs from the open web, guarded and politely.

A row goes: URL -> host not given up -> a turn at the host, which is one of the requests of the task ->
robots.txt -> address -> request -> opt-out -> body; each redirect goes that way anew.
"""

import asyncio
import time

import aiohttp
from yarl import URL

from data_prep.config import DownloadConfig
from data_prep.fetch.addresses import AllowedHosts
from data_prep.fetch.bodies import ByteBudget
from data_prep.fetch.connection import GuardedConnector, SynchronousRequest, allow_many_files
from data_prep.fetch.failures import FetchError, explain
from data_prep.fetch.guard import AddressGuard
from data_prep.fetch.hosts import Hosts, Origin
from data_prep.fetch.identity import user_agent
from data_prep.fetch.names import Names
from data_prep.fetch.retry import pause_seconds, retry_after
from data_prep.fetch.robots import Receiver, Robots
from data_prep.fetch.row import Fetched, Row
from data_prep.fetch.target import normalize_target, parse_target
from data_prep.schema import Status

_REDIRECTS = (301, 302, 303, 307, 308)
_COMPLAINTS = (429, 503)
# Bodies that wait to be decoded may hold this much memory in one process, all together.
_BUFFER_BYTES = 256 << 20
_LINE_BYTES, _FIELD_BYTES, _FIELDS = 8190, 16 << 10, 128  # of the head of a response
_READ_BYTES = 256 << 10


class Fetcher:
    """Fetches many URLs. Use as an async context manager, for one shard.

    All rows may be given at once: `concurrency` and `per_host` are kept here.
    """

    def __init__(self, config: DownloadConfig):
        self._config = config
        self._obeys = config.robots == "obey"
        self._directives = frozenset(d.lower() for d in config.opt_out_directives)

    async def __aenter__(self) -> "Fetcher":
        config = self._config
        allow_many_files()
        self._guard = AddressGuard(
            AllowedHosts(config.allow_private_hosts), Names(config.nameservers)
        )
        self._hosts = Hosts(config.concurrency, config.per_host, config.pass_wait_seconds)
        self._budget = ByteBudget(_BUFFER_BYTES)
        self._robots = Robots(config, self._at_once)
        self._session = aiohttp.ClientSession(
            connector=GuardedConnector(self._guard),
            request_class=SynchronousRequest,
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(
                total=None, sock_connect=config.idle_seconds, sock_read=config.idle_seconds
            ),
            auto_decompress=False,
            trust_env=False,
            read_bufsize=_READ_BYTES,
            max_line_size=_LINE_BYTES,
            max_field_size=_FIELD_BYTES,
            max_headers=_FIELDS,
            headers={
                "User-Agent": user_agent(config),
                "Accept": "image/*, application/octet-stream;q=0.5",
                "Accept-Encoding": "identity",
            },
        )
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self._session.close()
        await self._guard.close()

    async def release(self, fetched: Fetched) -> None:
        """Gives back the memory a body held; call once the body is no longer needed."""
        if fetched.held is not None:
            fetched.held.end()
            fetched.held = None

    async def fetch(self, url: str) -> Fetched:
        """Fetches one URL; never raises for what the web does.

        Returns:
            the outcome; `release` it when its body is done with.
        """
        start = time.monotonic()
        attempt = 0
        while True:
            fetched, again = await self._try(url)
            if not again or attempt == self._config.retries:
                break
            attempt += 1
            await asyncio.sleep(pause_seconds(attempt))
        fetched.seconds = time.monotonic() - start
        return fetched

    async def _try(self, text: str) -> tuple[Fetched, bool]:
        """One try, and whether another one may help at once."""
        fetched, again = Fetched(Status.OK), False
        try:
            await self._follow(text, fetched)
        except Exception as error:
            failure = explain(error, answered=fetched.http_status is not None)
            fetched.status, fetched.error = failure.status, str(failure)
            fetched.transient, fetched.retry_after = failure.transient, failure.retry_after
            again = failure.transient and not failure.is_later
        finally:
            if not fetched.body:
                await self.release(fetched)
        return fetched, again

    async def _follow(self, text: str, fetched: Fetched) -> None:
        url: URL | None = parse_target(text)
        row = Row(fetched, self._config, self._budget, self._directives)
        for _ in range(self._config.max_redirects + 1):
            fetched.final_url = str(url)
            url = await self._in_turn(url, self._origin(url), row)
            if url is None:
                return
        raise FetchError(
            Status.TOO_MANY_REDIRECTS, f"more than {self._config.max_redirects} redirects"
        )

    def _origin(self, url: URL) -> Origin:
        origin = self._hosts.find(url)
        if origin is None:
            self._guard.check_host(url.raw_host)
            origin = self._hosts.add(url)
            if not self._obeys:
                origin.queue.widen()
        return origin

    async def _in_turn(self, url: URL, origin: Origin, row: Row) -> URL | None:
        """Makes one request of a row; returns where it is redirected to, None if it is not."""
        origin.check_given_up()
        await origin.queue.enter()
        try:
            origin.check_given_up()
            if self._obeys:
                if origin.robots_until < time.monotonic():
                    await self._robots.learn(origin)
                self._robots.check(origin, url)
            return await self._exchange(url, origin, row)
        finally:
            origin.queue.leave()

    async def _at_once(self, url: URL, receiver: Receiver) -> URL | None:
        # For robots.txt: the row that needs it has a turn. One for the host that a robots.txt is
        # redirected to might never come, if that host's robots.txt is redirected here.
        origin = self._origin(url)
        origin.check_given_up()
        return await self._exchange(url, origin, receiver)

    async def _exchange(self, url: URL, origin: Origin, receiver: Receiver) -> URL | None:
        answered = False
        try:
            async with asyncio.timeout(receiver.seconds_left) as limit:
                async with self._session.get(url, allow_redirects=False) as response:
                    answered = True
                    origin.failures = 0
                    if response.status in _COMPLAINTS:
                        origin.queue.complain(retry_after(response))
                    receiver.head(response)
                    if response.status in _REDIRECTS and "Location" in response.headers:
                        receiver.seconds_left = limit.when() - asyncio.get_running_loop().time()
                        return _redirected(url, response.headers["Location"])
                    await receiver.body(response, limit)
                    return None
        except Exception as error:
            failure = explain(error, answered=answered)
            if failure is error:
                raise
            if failure.unreachable:
                origin.failed(failure)
            if limit.expired():
                raise FetchError(
                    failure.status,
                    f"took longer than {self._config.timeout_seconds} s",
                    transient=True,
                ) from None
            raise failure from None


def _redirected(url: URL, location: str) -> URL:
    try:
        return normalize_target(url.join(URL(location.strip())))
    except ValueError as error:
        raise FetchError(
            Status.MALFORMED_RESPONSE, f"redirected to what is no URL: {error}"
        ) from None
