"""How a fetch fails: what went wrong as a status, and whether a later try may find it better."""

import errno

import aiohttp
from aiohttp.client_exceptions import ClientConnectorDNSError

from data_prep.schema import Status

# RFC 9110: Request Timeout, Too Early (RFC 8470), Too Many Requests (RFC 6585); and all of 5xx.
_TRANSIENT_CODES = (408, 425, 429)
OUR_ERRORS = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS)


class FetchError(Exception):
    """A fetch that ends with a status other than ok.

    Attributes:
        status: how the row ends.
        transient: a later pass may find it better.
        retry_after: seconds the server asks to be left alone for.
        unreachable: no answer came at all, so that other rows of the host would fare alike.
        is_later: only a later pass may find it better, no try at once.
    """

    def __init__(
        self,
        status: Status,
        message: str,
        *,
        transient: bool = False,
        retry_after: float | None = None,
        unreachable: bool = False,
        is_later: bool = False,
    ):
        super().__init__(message)
        self.status = status
        self.transient = transient
        self.retry_after = retry_after
        self.unreachable = unreachable
        self.is_later = is_later


def is_transient_code(code: int) -> bool:
    """Whether an HTTP status code speaks of now rather than of the resource."""
    return code in _TRANSIENT_CODES or 500 <= code <= 599


def http_failure(code: int, retry_after: float | None = None) -> FetchError:
    """What an answer means that is no image, by its HTTP status code."""
    message = f"the server answered {code}"
    if code in (404, 410):
        return FetchError(Status.HTTP_404, message)
    transient = is_transient_code(code)
    return FetchError(Status.HTTP_ERROR, message, transient=transient, retry_after=retry_after)


def refused_address(host: str, address: str) -> FetchError:
    """A host that leads to where nothing may be connected to."""
    return FetchError(
        Status.REFUSED_PRIVATE_ADDRESS,
        f"{host} leads to {address}, which is not a public address "
        "(ingest.download.allow_private_hosts lists exceptions)",
    )


def explain(error: Exception, *, answered: bool) -> FetchError:
    """What an exception of the client means for the row.

    Args:
        error: what aiohttp, the operating system or a URL parser raised.
        answered: whether the head of a response had come.

    Returns:
        the error itself where it is one already; internal_error for what the web should not be able
        to cause: it costs the row and not the shard, and is counted.
    """
    if isinstance(error, FetchError):
        return error
    text = f"{type(error).__name__}: {error}"
    if isinstance(error, aiohttp.ClientConnectorError):
        return _connecting(error, text)
    if isinstance(error, TimeoutError):  # also aiohttp's own, on silence
        return FetchError(Status.TIMEOUT, text, transient=True, unreachable=not answered)
    if isinstance(error, aiohttp.ClientPayloadError):
        return _body(error)
    if isinstance(error, aiohttp.ClientResponseError):
        return FetchError(Status.MALFORMED_RESPONSE, f"not HTTP: {_one_line(error.message)}")
    if isinstance(error, aiohttp.InvalidURL | ValueError):
        return FetchError(Status.INVALID_URL, f"not a usable URL: {error}")
    if isinstance(error, aiohttp.ClientError | OSError):
        return FetchError(Status.CONNECTION, text, transient=True)
    return FetchError(Status.INTERNAL_ERROR, text)


def _connecting(error: aiohttp.ClientConnectorError, text: str) -> FetchError:
    if error.os_error.errno in OUR_ERRORS:
        return FetchError(Status.INTERNAL_ERROR, text, transient=True)
    if isinstance(error, ClientConnectorDNSError):
        return FetchError(Status.DNS, text, transient=True, unreachable=True, is_later=True)
    if isinstance(error, aiohttp.ClientSSLError):
        # A broken hand-shake may be the network's; a certificate that does not fit stays so.
        is_certificate = isinstance(error, aiohttp.ClientConnectorCertificateError)
        return FetchError(Status.TLS, text, transient=not is_certificate, unreachable=True)
    return FetchError(Status.CONNECTION, text, transient=True, unreachable=True)


def _body(error: aiohttp.ClientPayloadError) -> FetchError:
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, aiohttp.http_exceptions.HttpProcessingError):
            if "Not enough data" not in str(cause):
                return FetchError(
                    Status.MALFORMED_RESPONSE, f"broken body: {_one_line(str(cause))}"
                )
            break
        cause = cause.__cause__
    return FetchError(
        Status.CONNECTION, f"the body ended early: {_one_line(str(error))}", transient=True
    )


def _one_line(text: str) -> str:
    return " ".join(text.split())[:300]
