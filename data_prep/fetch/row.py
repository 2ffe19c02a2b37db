"""What servers say to one row, and what it comes to."""

import asyncio
from dataclasses import dataclass, field

import aiohttp

from data_prep.config import DownloadConfig
from data_prep.fetch.bodies import ByteBudget, Reservation, read_body
from data_prep.fetch.content_type import check_content_type
from data_prep.fetch.failures import http_failure
from data_prep.fetch.opt_out import check_opt_out
from data_prep.fetch.retry import retry_after
from data_prep.schema import Status


@dataclass
class Fetched:
    """How one URL ended; `body` is set when `status` is ok.

    Attributes:
        transient: a later pass may find it better.
        retry_after: seconds the server asked to be left alone for.
        seconds: all tries and waits together.
    """

    status: Status
    error: str = ""
    body: bytes = field(default=b"", repr=False)
    final_url: str | None = None
    http_status: int | None = None
    seconds: float = 0.0
    transient: bool = False
    retry_after: float | None = None
    held: Reservation | None = field(default=None, repr=False)


class Row:
    """Receives what servers say to one row."""

    def __init__(
        self,
        fetched: Fetched,
        config: DownloadConfig,
        budget: ByteBudget,
        directives: frozenset[str],
    ):
        self.seconds_left = config.timeout_seconds
        self._fetched, self._config = fetched, config
        self._budget, self._directives = budget, directives

    def head(self, response: aiohttp.ClientResponse) -> None:
        """Each response, redirects too."""
        self._fetched.http_status = response.status
        tags = response.headers.getall("X-Robots-Tag", ())
        if tags:
            check_opt_out(tags, self._directives, self._config.user_agent)

    async def body(self, response: aiohttp.ClientResponse, limit: asyncio.Timeout) -> None:
        """The last response."""
        code = response.status
        if code != 200:
            raise http_failure(code, retry_after(response))
        check_content_type(response.headers.get("Content-Type"))
        held = self._fetched.held = Reservation(self._budget)
        self._fetched.body = await read_body(response, self._config.max_bytes, held, limit)
