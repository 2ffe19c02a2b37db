"""What we know of each host, and its turns: how many requests at a time, and when none at all."""

import asyncio
import time
from collections import deque
from dataclasses import dataclass, field

from yarl import URL

from data_prep.fetch.failures import FetchError
from data_prep.fetch.robots_rules import RobotsRules
from data_prep.schema import Status

FAILURES_IN_A_ROW = 5  # after so many without an answer a host is given up for a while
GIVEN_UP_SECONDS = 20.0
_SLOW_DOWN_SECONDS = 1.0  # requests that were under way together count as one complaint


class Turns:
    """Requests under way, of all hosts together; hosts with waiting rows get theirs in rotation.

    A row that waits for its host takes up nothing that rows of other hosts could use. A host with
    less than its share goes on with the connections that it has.
    """

    def __init__(self, limit: int):
        self.free = limit
        self._limit = limit
        self._ready: deque[HostQueue] = deque()

    def offer(self, host: "HostQueue") -> None:
        """A host has rows waiting and may have more requests."""
        if not host.is_offered:
            host.is_offered = True
            self._ready.append(host)

    @property
    def share(self) -> int:
        """Of each host that has rows waiting."""
        return self._limit // (len(self._ready) + 1)

    def give(self) -> None:
        """Hands out what is free."""
        while self.free > 0 and self._ready:
            host = self._ready.popleft()
            host.is_offered = False
            host.take_next()


class HostQueue:
    """Turns at one host name, first come, first served.

    There is one turn only until `widen`: whoever has it asks for robots.txt, which all others need.

    Attributes:
        is_offered: known to `Turns` as ready.
    """

    def __init__(self, turns: Turns, limit: int, patience_seconds: float):
        self.is_offered = False
        self._turns = turns
        self._widest, self._limit = limit, 1
        self._patience = patience_seconds
        self._busy = 0
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._left_alone_until = 0.0
        self._closed_until = 0.0
        self._slowed_down = 0.0

    async def enter(self) -> None:
        """Waits for a turn; `leave` ends it.

        Raises:
            FetchError: the host wants to be left alone for longer than we wait.
        """
        while True:
            if self._left_alone_until:
                await self._rest()
            if self._turns.free > 0 and self._busy < self._limit and not self._waiting:
                self._busy += 1
                self._turns.free -= 1
                return
            turn = asyncio.get_running_loop().create_future()
            self._waiting.append(turn)
            if self._busy < self._limit:
                self._turns.offer(self)
            try:
                await turn
            except asyncio.CancelledError:
                if turn.done() and not turn.cancelled():
                    self.leave()
                raise
            if not self._left_alone_until or self._left_alone_until <= time.monotonic():
                return
            self.leave()

    async def _rest(self) -> None:
        while (wait := self._left_alone_until - time.monotonic()) > 0:
            if self._closed_until > time.monotonic():
                raise FetchError(
                    Status.HTTP_ERROR,
                    f"the host asked to be left alone, for {wait:.0f} s from now",
                    transient=True,
                    retry_after=wait,
                    is_later=True,
                )
            await asyncio.sleep(wait)

    def take_next(self) -> None:
        """Gives the first row that still waits its turn, if the host may have one more."""
        while self._waiting and self._busy < self._limit:
            turn = self._waiting.popleft()
            if not turn.done():
                self._busy += 1
                self._turns.free -= 1
                turn.set_result(None)
                break
        if self._waiting and self._busy < self._limit:
            self._turns.offer(self)

    def leave(self) -> None:
        """Ends a turn."""
        self._busy -= 1
        self._turns.free += 1
        if self._waiting and self._busy < min(self._turns.share, self._limit):
            self.take_next()
        elif self._waiting and self._busy < self._limit:
            self._turns.offer(self)
        self._turns.give()

    def widen(self, *, to_one: bool = False) -> None:
        """The rules of the host are known: from now on as many as the config says, or still one."""
        if to_one:
            self._widest = 1
        self._limit = self._widest
        if self._waiting and self._busy < self._limit:
            self._turns.offer(self)
            self._turns.give()

    def complain(self, retry_after: float | None) -> None:
        """The host answered 429 or 503: from now on half as many at a time, and none for a while.

        Args:
            retry_after: seconds it wants to be left alone for. They are waited for while they fit into
                the patience that there is with one host; otherwise its rows end until they are over.
        """
        now = time.monotonic()
        if now - self._slowed_down > _SLOW_DOWN_SECONDS:
            self._slowed_down = now
            self._limit = self._widest = max(1, self._limit // 2)
        if not retry_after:
            return
        until = now + retry_after
        longer = until - max(now, self._left_alone_until)
        if longer <= 0:
            return
        self._left_alone_until = until
        if longer <= self._patience:
            self._patience -= longer
        else:
            self._closed_until = until


@dataclass(eq=False, slots=True)
class Origin:
    """Scheme, host and port: what a robots.txt holds for, and what is up or down."""

    root: URL
    queue: HostQueue
    robots: RobotsRules | FetchError | None = None
    robots_until: float = 0.0
    robots_asked: asyncio.Event | None = None
    failures: int = 0
    given_up_until: float = 0.0
    last_failure: FetchError | None = field(default=None, repr=False)

    def failed(self, error: FetchError) -> None:
        """No answer came."""
        self.failures += 1
        self.last_failure = error
        if self.failures >= FAILURES_IN_A_ROW:
            self.given_up_until = time.monotonic() + GIVEN_UP_SECONDS

    def check_given_up(self) -> None:
        """Spares rows the wait for a host that is down.

        Raises:
            FetchError: with the status of the last failure.
        """
        if self.failures >= FAILURES_IN_A_ROW and time.monotonic() < self.given_up_until:
            raise FetchError(
                self.last_failure.status,
                f"the host failed {self.failures} times in a row and is given up for now: "
                f"{self.last_failure}",
                transient=True,
                is_later=True,
            )


class Hosts:
    """All hosts of one fetcher."""

    def __init__(self, concurrency: int, per_host: int, patience_seconds: float):
        self._turns = Turns(concurrency)
        self._per_host = per_host
        self._patience = patience_seconds
        self._queues: dict[str, HostQueue] = {}
        self._origins: dict[tuple, Origin] = {}

    def find(self, url: URL) -> Origin | None:
        """The origin of a normalized URL, if it is known."""
        return self._origins.get((url.scheme, url.raw_host, url.port))

    def add(self, url: URL) -> Origin:
        """Makes it known."""
        queue = self._queues.get(url.raw_host)
        if queue is None:
            queue = self._queues[url.raw_host] = HostQueue(
                self._turns, self._per_host, self._patience
            )
        origin = Origin(url.origin(), queue)
        self._origins[url.scheme, url.raw_host, url.port] = origin
        return origin
