import errno
import http.client
import socket
import ssl
from urllib.error import HTTPError, URLError

import pytest

from data_prep.engines.img2dataset_failures import explain, status_of_message
from data_prep.fetch.failures import FetchError
from data_prep.schema import Status


@pytest.mark.parametrize(
    ("error", "status", "transient"),
    [
        (HTTPError("http://a/", 404, "x", {}, None), Status.HTTP_404, False),
        (HTTPError("http://a/", 410, "x", {}, None), Status.HTTP_404, False),
        (HTTPError("http://a/", 403, "x", {}, None), Status.HTTP_ERROR, False),
        (HTTPError("http://a/", 429, "x", {}, None), Status.HTTP_ERROR, True),
        (HTTPError("http://a/", 502, "x", {}, None), Status.HTTP_ERROR, True),
        (URLError(TimeoutError("timed out")), Status.TIMEOUT, True),
        (TimeoutError("The read operation timed out"), Status.TIMEOUT, True),
        (URLError(socket.gaierror(-2, "Name or service not known")), Status.DNS, True),
        (URLError(ssl.SSLCertVerificationError(1, "expired")), Status.TLS, False),
        (URLError(ssl.SSLError(1, "handshake failure")), Status.TLS, True),
        (URLError(ConnectionRefusedError(111, "refused")), Status.CONNECTION, True),
        (http.client.RemoteDisconnected("closed"), Status.CONNECTION, True),
        (http.client.IncompleteRead(b"", 5), Status.CONNECTION, True),
        (http.client.BadStatusLine("SSH"), Status.MALFORMED_RESPONSE, False),
        (http.client.InvalidURL("control characters"), Status.INVALID_URL, False),
        (UnicodeError("label too long"), Status.INVALID_URL, False),
        (URLError("unknown url type: x"), Status.CONNECTION, True),
        (URLError(OSError(errno.EMFILE, "too many files")), Status.INTERNAL_ERROR, True),
        (MemoryError(), Status.INTERNAL_ERROR, True),
        (FetchError(Status.TOO_MANY_BYTES, "x"), Status.TOO_MANY_BYTES, False),
    ],
)
def test_each_error_has_a_status(error, status, transient):
    found = explain(error)
    assert (found.status, found.transient) == (status, transient)
    assert "\n" not in str(found)


@pytest.mark.parametrize(
    ("message", "status"),
    [
        ("image too small", Status.FILTERED_SIZE),
        ("image area too large", Status.TOO_MANY_PIXELS),
        ("aspect ratio too large", Status.FILTERED_ASPECT_RATIO),
        ("hash mismatch", Status.HASH_MISMATCH),
        ("Image decoding error", Status.UNDECODABLE),
        ("Unable to allocate 2.4 GiB for an array", Status.DECODER_MEMORY),
        (
            "OpenCV(4) error: (-4:Insufficient memory) Failed to allocate 9 bytes",
            Status.DECODER_MEMORY,
        ),
        ("(-215:Assertion failed) pixels <= CV_IO_MAX_IMAGE_PIXELS", Status.TOO_MANY_PIXELS),
        ("", Status.DECODER_MEMORY),
    ],
)
def test_each_message_of_img2dataset_has_a_status(message, status):
    assert status_of_message(message) == status
