"""What the errors of urllib and the messages of img2dataset mean for a row."""

import http.client
import re
import socket
import ssl
import urllib.error

from data_prep.fetch.failures import OUR_ERRORS, FetchError, http_failure
from data_prep.schema import Status

# img2dataset's own messages, and those of numpy and OpenCV that it passes on.
_MESSAGES = (
    ("image too small", Status.FILTERED_SIZE),
    ("image area too large", Status.TOO_MANY_PIXELS),
    ("aspect ratio too large", Status.FILTERED_ASPECT_RATIO),
    ("hash mismatch", Status.HASH_MISMATCH),
    ("CV_IO_MAX_IMAGE", Status.TOO_MANY_PIXELS),
    ("nsufficient memory", Status.DECODER_MEMORY),
    ("nable to allocate", Status.DECODER_MEMORY),
    ("ailed to allocate", Status.DECODER_MEMORY),
)


def explain(error: BaseException) -> FetchError:
    """What an exception out of `urllib.request.urlopen`, or of reading its answer, means."""
    if isinstance(error, FetchError):
        return error
    if isinstance(error, urllib.error.HTTPError):
        return http_failure(error.code)
    if isinstance(error, urllib.error.URLError) and isinstance(error.reason, BaseException):
        return explain(error.reason)
    text = f"{type(error).__name__}: {_one_line(str(error))}"
    for kinds, status, transient in (
        (TimeoutError, Status.TIMEOUT, True),
        (socket.gaierror, Status.DNS, True),
        (ssl.SSLCertVerificationError, Status.TLS, False),
        (ssl.SSLError, Status.TLS, True),
        (http.client.InvalidURL, Status.INVALID_URL, False),
        ((http.client.IncompleteRead, ConnectionError), Status.CONNECTION, True),
        (http.client.HTTPException, Status.MALFORMED_RESPONSE, False),
        (MemoryError, Status.INTERNAL_ERROR, True),
        (ValueError, Status.INVALID_URL, False),
    ):
        if isinstance(error, kinds):
            return FetchError(status, text, transient=transient)
    if isinstance(error, OSError) and error.errno in OUR_ERRORS:
        return FetchError(Status.INTERNAL_ERROR, text, transient=True)
    return FetchError(Status.CONNECTION, text, transient=True)


def status_of_message(message: str) -> Status:
    """What a message of img2dataset means for an image that was fetched."""
    if not message:  # a MemoryError says nothing
        return Status.DECODER_MEMORY
    return next((status for text, status in _MESSAGES if text in message), Status.UNDECODABLE)


def _one_line(text: str) -> str:
    return re.sub(r"\s+", " ", text)[:300]
