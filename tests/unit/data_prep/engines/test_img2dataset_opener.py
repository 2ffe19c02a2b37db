import time
import urllib.request

import pytest

from data_prep.config import DownloadConfig
from data_prep.engines.img2dataset_opener import GuardedOpener
from data_prep.fetch.failures import FetchError
from data_prep.schema import Status
from tests.helpers.raw_web import RawWeb, head, image


@pytest.fixture
def web():
    with RawWeb("127.0.0.1").serving() as web:
        yield web


def fetch(opener, url):
    with opener.open(urllib.request.Request(f"{url}#3")) as response:
        return response.read()


def failure(opener, url) -> FetchError:
    with pytest.raises(Exception) as caught:  # noqa: B017 - urllib's are of all kinds
        fetch(opener, url)
    assert opener.visits[3].failure is not None, caught.value
    return opener.visits[3].failure


def test_what_was_found_is_told_by_the_row_in_the_fragment_which_is_not_sent(web):
    web.answers = {
        "/a": head("301 Moved", "Location: /caf\xe9?q=1"),
        "/caf%E9?q=1": image(b"picture"),
    }
    opener = GuardedOpener(DownloadConfig())
    assert fetch(opener, f"{web.url}/a") == b"picture"
    visit = opener.visits[3]
    assert visit.final_url == f"{web.url}/caf%E9?q=1" and visit.http_status == 200
    assert visit.fetched_bytes == 7 and visit.failure is None
    assert set(web.requests) == {"/a", "/caf%E9?q=1"}


@pytest.mark.parametrize("limit", [0, 1, 4])
def test_redirects_are_followed_as_often_as_set(web, limit):
    web.answers = {f"/{i}": head("307 Hop", f"Location: /{i + 1}") for i in range(9)}
    web.answers[f"/{limit}"] = image(b"x")
    assert fetch(GuardedOpener(DownloadConfig(max_redirects=limit)), f"{web.url}/0") == b"x"
    web.answers[f"/{limit}"] = head("308 Hop", f"Location: /{limit + 1}")
    web.requests.clear()
    found = failure(GuardedOpener(DownloadConfig(max_redirects=limit)), f"{web.url}/0")
    assert found.status is Status.TOO_MANY_REDIRECTS
    assert sum(web.requests.values()) == limit + 1


def test_redirects_share_one_time_limit(web):
    def late(exchange):
        time.sleep(0.4)
        exchange.wfile.write(head("302 Later", "Location: /"))

    web.answers = {"/": late}
    began = time.monotonic()
    config = DownloadConfig(timeout_seconds=1.0, max_redirects=100)
    assert failure(GuardedOpener(config), f"{web.url}/").status is Status.TIMEOUT
    assert time.monotonic() - began < 60


def test_a_redirects_body_is_not_read(web):
    web.answers = {
        "/": lambda x: x.drip(head("302 Found", "Location: /x"), b"y" * 100_000, 0.0),
        "/x": image(b"x"),
    }
    assert fetch(GuardedOpener(DownloadConfig(max_bytes=1000)), f"{web.url}/") == b"x"


def test_a_body_may_be_as_long_as_the_limit_and_no_longer(web):
    web.answers = {
        "/": image(bytes(1000)),
        "/chunked": head("200 OK", "Transfer-Encoding: chunked"),
    }
    web.answers["/chunked"] += b"3E8\r\n" + bytes(1000) + b"\r\n0\r\n\r\n"
    for path in web.answers:
        assert len(fetch(GuardedOpener(DownloadConfig(max_bytes=1000)), f"{web.url}{path}")) == 1000
        found = failure(GuardedOpener(DownloadConfig(max_bytes=999)), f"{web.url}{path}")
        assert found.status is Status.TOO_MANY_BYTES


@pytest.mark.parametrize("url", ["file:///etc/hostname", "ftp://127.0.0.1/x", "data:,x"])
def test_other_schemes_have_no_handler(url):
    with pytest.raises(urllib.request.URLError, match="unknown url type"):
        fetch(GuardedOpener(DownloadConfig()), url)


def test_no_proxy_is_used(web, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    web.answers = {"/": image(b"x")}
    assert fetch(GuardedOpener(DownloadConfig()), f"{web.url}/") == b"x"


def test_an_opt_out_without_directives_is_not_looked_at(web):
    web.answers = {"/": image(b"x", "X-Robots-Tag: noai")}
    found = failure(GuardedOpener(DownloadConfig()), f"{web.url}/")
    assert found.status is Status.REFUSED_OPT_OUT and "noai" in str(found)
    assert fetch(GuardedOpener(DownloadConfig(opt_out_directives=[])), f"{web.url}/") == b"x"


def test_an_opt_out_on_the_way_counts(web):
    web.answers = {"/": head("302 Found", "Location: /x", "X-Robots-Tag: noml"), "/x": image(b"x")}
    assert failure(GuardedOpener(DownloadConfig()), f"{web.url}/").status is Status.REFUSED_OPT_OUT
    assert "/x" not in web.requests
