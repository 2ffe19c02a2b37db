import pytest
from aiohttp import ClientPayloadError, ServerDisconnectedError
from aiohttp.http_exceptions import ContentLengthError, TransferEncodingError

from data_prep.fetch.failures import FetchError, explain, is_transient_code
from data_prep.schema import Status


@pytest.mark.parametrize("code", [408, 425, 429, 500, 502, 503, 504, 520])
def test_codes_that_speak_of_now(code):
    assert is_transient_code(code)


@pytest.mark.parametrize("code", [200, 204, 302, 400, 401, 403, 404, 410, 451, 600])
def test_codes_that_speak_of_the_resource(code):
    assert not is_transient_code(code)


def payload(cause):
    error = ClientPayloadError("not completed")
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "status", "transient"),
    [
        (TimeoutError(), Status.TIMEOUT, True),
        (ServerDisconnectedError(), Status.CONNECTION, True),
        (ConnectionResetError(104, "reset"), Status.CONNECTION, True),
        (payload(TransferEncodingError("Invalid\n  size")), Status.MALFORMED_RESPONSE, False),
        (payload(TransferEncodingError("Not enough data to satisfy it")), Status.CONNECTION, True),
        (payload(ContentLengthError("Not enough data to satisfy it")), Status.CONNECTION, True),
        (payload(None), Status.CONNECTION, True),
        (UnicodeError("host"), Status.INVALID_URL, False),
        (RuntimeError("ours"), Status.INTERNAL_ERROR, False),
    ],
)
def test_what_exceptions_mean(error, status, transient):
    failure = explain(error, answered=True)
    assert (failure.status, failure.transient) == (status, transient)
    assert str(failure) and "\n" not in str(failure)


def test_a_host_is_unreachable_only_without_an_answer():
    assert explain(TimeoutError(), answered=False).unreachable
    assert not explain(TimeoutError(), answered=True).unreachable


def test_our_own_error_stays_itself():
    error = FetchError(Status.REFUSED_ROBOTS, "no")
    assert explain(error, answered=False) is error
