"""robots.txt of every site, asked for once and remembered in the process, across its shards.

Source: RFC 9309 section 2.3 and 2.4. 429 is counted with the server errors, for it says "not now".
"""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Protocol

import aiohttp
from yarl import URL

from data_prep.config import DownloadConfig
from data_prep.fetch.bodies import read_start
from data_prep.fetch.failures import FetchError
from data_prep.fetch.hosts import Origin
from data_prep.fetch.retry import pause_seconds, retry_after
from data_prep.fetch.robots_rules import ALL_ALLOWED, MAX_BYTES, RobotsRules
from data_prep.schema import Status

REMEMBERED_SECONDS = 24 * 3600.0  # section 2.4
REMEMBERED_SITES, REMEMBERED_BYTES = 20_000, 64 << 20
FAILED_SECONDS = 20.0  # not longer than the wait for a next pass, and only in one shard
_MAX_REDIRECTS = 5  # section 2.3.1.2
# The row itself would end so, and that says more than that the robots.txt did.
_OF_THE_HOST = (Status.DNS, Status.CONNECTION, Status.TLS)


class Receiver(Protocol):
    """Takes what servers answer to one question.

    Attributes:
        seconds_left: of the time that all its requests may take together.
    """

    seconds_left: float

    def head(self, response: aiohttp.ClientResponse) -> None:
        """Looks at each response, redirects too."""

    async def body(self, response: aiohttp.ClientResponse, limit: asyncio.Timeout) -> None:
        """Reads the last one; `limit` is that of the time."""


Request = Callable[[URL, Receiver], Awaitable[URL | None]]


class RobotsCache:
    """Rules by site and user agent; the least used go first."""

    def __init__(self, sites: int = REMEMBERED_SITES, total_bytes: int = REMEMBERED_BYTES):
        self._max_sites, self._max_bytes = sites, total_bytes
        self._bytes = 0
        self._rules: OrderedDict[tuple[URL, str], tuple[float, RobotsRules]] = OrderedDict()

    def get(self, key: tuple[URL, str]) -> tuple[float, RobotsRules] | None:
        """The rules with the time they expire at."""
        found = self._rules.get(key)
        if found is None or found[0] < time.monotonic():
            return None
        self._rules.move_to_end(key)
        return found

    def put(self, key: tuple[URL, str], expires: float, rules: RobotsRules) -> None:
        """Remembers rules, and forgets others where they are too many."""
        old = self._rules.pop(key, None)
        self._bytes += rules.weight - (old[1].weight if old else 0)
        self._rules[key] = (expires, rules)
        while len(self._rules) > self._max_sites or self._bytes > self._max_bytes:
            _, (_, gone) = self._rules.popitem(last=False)
            self._bytes -= gone.weight

    def clear(self) -> None:
        """Forgets all."""
        self._rules.clear()
        self._bytes = 0


process_cache = RobotsCache()


class Robots:
    """Asks sites for their robots.txt on behalf of one fetcher.

    Args:
        config: who we are, how long and how often to try.
        request: makes one guarded request, at once, and returns where it is redirected to, if it is.
    """

    def __init__(self, config: DownloadConfig, request: Request):
        self._config = config
        self._request = request

    def check(self, origin: Origin, url: URL) -> None:
        """Judges a URL by what is known of its site.

        Raises:
            FetchError: with refused_robots; or how the robots.txt failed.
        """
        if isinstance(origin.robots, FetchError):
            raise origin.robots
        if not origin.robots.allow(url):
            raise FetchError(Status.REFUSED_ROBOTS, f"{origin.root}/robots.txt leaves it out")

    async def learn(self, origin: Origin) -> None:
        """Makes `origin.robots` known and fresh: one row asks, others of the origin wait for it."""
        while origin.robots_until < time.monotonic():
            known = process_cache.get((origin.root, self._config.user_agent))
            if known is not None:
                _keep(origin, *known)
            elif origin.robots_asked is not None:
                await origin.robots_asked.wait()
            else:
                origin.robots_asked = asked = asyncio.Event()
                try:
                    await self._ask(origin)
                    return
                finally:
                    origin.robots_asked = None
                    asked.set()

    async def _ask(self, origin: Origin) -> None:
        attempt = 0
        while True:
            try:
                answer = _Answer(self._config.user_agent, self._config.timeout_seconds)
                rules = await self._follow(origin, answer)
                break
            except FetchError as error:
                again = error.transient and not error.is_later
                if not again or attempt == self._config.retries:
                    failure = _failure(origin, error, answer)
                    _keep(origin, time.monotonic() + FAILED_SECONDS, failure)
                    return
            attempt += 1
            await asyncio.sleep(pause_seconds(attempt))
        until = time.monotonic() + REMEMBERED_SECONDS
        process_cache.put((origin.root, self._config.user_agent), until, rules)
        _keep(origin, until, rules)

    async def _follow(self, origin: Origin, answer: "_Answer") -> RobotsRules:
        url: URL | None = origin.root / "robots.txt"
        for _ in range(_MAX_REDIRECTS + 1):
            url = await self._request(url, answer)
            if url is None:
                return answer.rules
        return ALL_ALLOWED  # section 2.3.1.2: too many redirects may be taken as "there is none"


def _keep(origin: Origin, until: float, robots: RobotsRules | FetchError) -> None:
    origin.robots, origin.robots_until = robots, until
    origin.queue.widen(to_one=isinstance(robots, RobotsRules) and robots.wants_delay)


class _Answer:
    """What a server says when asked for robots.txt."""

    def __init__(self, agent: str, seconds: float):
        self.seconds_left = seconds
        self.rules = ALL_ALLOWED
        self.has_come = False
        self._agent = agent

    def head(self, response: aiohttp.ClientResponse) -> None:
        self.has_come = True

    async def body(self, response: aiohttp.ClientResponse, limit: asyncio.Timeout) -> None:
        code = response.status
        if code == 429 or code >= 500:
            raise FetchError(
                Status.ROBOTS_UNREACHABLE,
                f"the server answered {code}",
                transient=True,
                retry_after=retry_after(response),
            )
        if not 200 <= code < 300:  # section 2.3.1.3: a site without rules
            return
        data = await read_start(response, MAX_BYTES)
        if len(data) == MAX_BYTES:  # the last line may be cut
            data = data[: max(data.rfind(b"\n"), data.rfind(b"\r")) + 1]
        self.rules = RobotsRules(data.decode("utf-8", "replace"), self._agent)


def _failure(origin: Origin, error: FetchError, answer: _Answer) -> FetchError:
    unreachable = error.unreachable and error.status in _OF_THE_HOST
    refused = error.status is Status.REFUSED_PRIVATE_ADDRESS
    is_of_the_host = (unreachable or refused) and not answer.has_come
    status = error.status if is_of_the_host else Status.ROBOTS_UNREACHABLE
    return FetchError(
        status,
        f"{origin.root}/robots.txt: {error}",
        transient=error.transient or not is_of_the_host,
        retry_after=error.retry_after,
        is_later=True,
    )
