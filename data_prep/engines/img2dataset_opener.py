"""urllib's opener for img2dataset: http and https only, each row within its limits.

img2dataset calls `urllib.request.urlopen(url)` and reads the whole answer. Installed as the process's
opener, this one bounds the time of a row with its redirects, silences, and the body; it checks every
redirect, the kind of what comes, and whether its owner keeps it out. A row's URL carries the row's
number as its fragment, which is never sent, so that what is found can be told apart by row.
"""

import hashlib
import http.client
import io
import ssl
import string
import time
import urllib.error
import urllib.request
from contextvars import ContextVar
from dataclasses import dataclass
from email.message import Message
from urllib.parse import quote, urldefrag

from yarl import URL

from data_prep.config import DownloadConfig
from data_prep.engines.img2dataset_failures import explain
from data_prep.fetch.content_type import check_content_type
from data_prep.fetch.failures import FetchError, http_failure
from data_prep.fetch.identity import user_agent
from data_prep.fetch.opt_out import check_opt_out
from data_prep.fetch.target import normalize_target
from data_prep.schema import Status

_CHUNK_BYTES = 1 << 16
_NO_LIMIT = 1 << 30


@dataclass
class Visit:
    """One row's request, all tries together.

    `failure` is what the last try ended with, if not with a body; `seconds` are of all tries.
    """

    config: DownloadConfig
    began: float
    deadline: float = 0.0
    failure: FetchError | None = None
    final_url: str | None = None
    http_status: int | None = None
    sha256: str | None = None
    fetched_bytes: int | None = None
    seconds: float = 0.0

    def remaining(self) -> float:
        """Seconds that the next step may take.

        Raises:
            FetchError: with timeout.
        """
        left = self.deadline - time.monotonic()
        if left <= 0:
            message = f"took longer than {self.config.timeout_seconds:g} s"
            raise FetchError(Status.TIMEOUT, message, transient=True)
        return min(left, self.config.idle_seconds)

    def fail(self, error: Exception) -> None:
        self.failure = explain(error)
        self.seconds = time.monotonic() - self.began


_visit: ContextVar[Visit | None] = ContextVar("visit", default=None)  # of this thread


class GuardedOpener(urllib.request.OpenerDirector):
    """Opens a row's URL; `visits` says afterwards, by row, what was found."""

    def __init__(self, config: DownloadConfig) -> None:
        super().__init__()
        self.visits: dict[int, Visit] = {}
        self._config = config
        self._directives = frozenset(d.strip().lower() for d in config.opt_out_directives)
        self._headers = {
            "User-Agent": user_agent(config),
            "Accept": "image/*, application/octet-stream;q=0.5",
        }
        # No file, ftp or data handler; and no proxy, which would connect for us unchecked.
        for handler in (
            _HttpHandler(),
            _HttpsHandler(),
            _RedirectHandler(config.max_redirects),
            urllib.request.UnknownHandler(),
            urllib.request.HTTPDefaultErrorHandler(),
            urllib.request.HTTPErrorProcessor(),
        ):
            self.add_handler(handler)

    def open(self, fullurl, data=None, timeout=None):
        """As urllib's; called by `urlopen` for a row, and by the redirect handler for each hop."""
        visit = _visit.get()
        if visit is not None:
            return super().open(fullurl, data, visit.remaining())
        row = int(fullurl.fragment)
        now = time.monotonic()
        visit = self.visits.setdefault(row, Visit(self._config, began=now))
        if visit.failure is not None and not visit.failure.transient:
            raise visit.failure  # img2dataset tries everything again
        visit.deadline, visit.failure = now + self._config.timeout_seconds, None
        for name, value in self._headers.items():
            fullurl.add_header(name, value)
        token = _visit.set(visit)
        try:
            response = super().open(fullurl, data, visit.remaining())
            try:
                self._admit(response, visit)
            except FetchError:
                response.close()
                raise
            return response
        except Exception as error:
            if isinstance(error, urllib.error.HTTPError):
                visit.final_url, visit.http_status = urldefrag(error.url).url, error.code
                error.close()
            visit.fail(error)
            raise
        finally:
            _visit.reset(token)

    def check_opt_out(self, headers: Message) -> None:
        """Judges what every answer may say, also one that leads on.

        Raises:
            FetchError: the owner keeps the image out.
        """
        tags = headers.get_all("X-Robots-Tag", [])
        check_opt_out(tags, self._directives, self._config.user_agent)

    def _admit(self, response: http.client.HTTPResponse, visit: Visit) -> None:
        """Judges the head of an answer.

        Raises:
            FetchError: its body is not wanted.
        """
        visit.final_url, visit.http_status = urldefrag(response.url).url, response.status
        if response.status != 200:
            raise http_failure(response.status)
        self.check_opt_out(response.headers)
        check_content_type(response.headers.get("Content-Type"))
        if response.length is not None:
            _check_size(response.length, self._config.max_bytes)


class _Timed(io.RawIOBase):
    """A socket's raw reader that never waits beyond what is left of the visit."""

    def __init__(self, sock, raw: io.RawIOBase, visit: Visit) -> None:
        self._sock, self._raw, self._visit = sock, raw, visit

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int | None:
        self._sock.settimeout(self._visit.remaining())
        return self._raw.readinto(buffer)

    def close(self) -> None:
        self._raw.close()
        super().close()


class _Response(http.client.HTTPResponse):
    """An answer whose body is read whole, but no further than the limit."""

    def __init__(self, sock, *args, **kwargs) -> None:
        super().__init__(sock, *args, **kwargs)
        self._visit = _visit.get()
        self.fp = io.BufferedReader(_Timed(sock, self.fp.detach(), self._visit))

    def read(self, amt: int | None = None) -> bytes:
        if amt is not None:
            return super().read(amt)
        visit, body = self._visit, bytearray()
        if 300 <= self.status < 400:
            return b""  # what comes with a redirect is not of the row
        try:
            while chunk := super().read(_CHUNK_BYTES):
                body += chunk
                _check_size(len(body), visit.config.max_bytes)
            if self.length:
                raise http.client.IncompleteRead(b"", self.length)
        except Exception as error:
            visit.fail(error)
            raise
        visit.sha256, visit.fetched_bytes = hashlib.sha256(body).hexdigest(), len(body)
        visit.seconds = time.monotonic() - visit.began
        return bytes(body)


def _check_size(count: int, limit: int) -> None:
    if count > limit:
        raise FetchError(Status.TOO_MANY_BYTES, f"more than {limit} bytes")


class _Connection(http.client.HTTPConnection):
    response_class = _Response


class _SecureConnection(http.client.HTTPSConnection):
    response_class = _Response


class _HttpHandler(urllib.request.HTTPHandler):
    def http_open(self, req):
        return self.do_open(_Connection, req)


class _HttpsHandler(urllib.request.HTTPSHandler):
    def __init__(self) -> None:
        self._trust = ssl.create_default_context()
        super().__init__(context=self._trust)

    def https_open(self, req):
        return self.do_open(_SecureConnection, req, context=self._trust)


class _RedirectHandler(urllib.request.HTTPRedirectHandler):
    max_repeats = max_redirections = _NO_LIMIT  # ours is below

    def __init__(self, limit: int) -> None:
        self._limit = limit

    def http_error_302(self, req, fp, code, msg, headers):
        self.parent.check_opt_out(headers)
        location = headers.get("Location")
        if location is not None:
            if sum(getattr(req, "redirect_dict", {}).values()) >= self._limit:
                message = f"more than {self._limit} redirects"
                raise FetchError(Status.TOO_MANY_REDIRECTS, message)
            # A header is read as latin-1; its bytes are what counts.
            location = quote(location.strip(), encoding="latin-1", safe=string.punctuation)
            target = normalize_target(URL(urldefrag(req.full_url).url).join(URL(location)))
            del headers["Location"]
            headers["Location"] = str(target)
        return super().http_error_302(req, fp, code, msg, headers)

    http_error_301 = http_error_303 = http_error_307 = http_error_308 = http_error_302
