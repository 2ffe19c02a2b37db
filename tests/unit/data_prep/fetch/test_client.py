import asyncio
import importlib.metadata

import pytest
from pydantic import ValidationError

from data_prep.config import DownloadConfig
from data_prep.fetch.client import Fetcher
from data_prep.fetch.identity import user_agent
from data_prep.ports import free_port
from data_prep.schema import Status
from tests.helpers.hostile_web import (
    PICTURE,
    after,
    closing,
    dripping,
    in_turn,
    redirect,
    response,
    silent,
)

LOCAL = {"allow_private_hosts": ["127.0.0.1"], "timeout_seconds": 20, "idle_seconds": 10}


def test_what_a_good_row_brings(web, fetch):
    web.pages |= {"/a": redirect("/b?x=1#part"), "/b": response()}
    fetched = fetch(web.url("/a"))
    assert (fetched.status, fetched.error, fetched.body) == (Status.OK, "", PICTURE)
    assert (fetched.final_url, fetched.http_status) == (web.url("/b?x=1"), 200)
    assert 0 < fetched.seconds < 20 and not fetched.transient and fetched.retry_after is None


def test_who_we_say_we_are(web, fetch):
    web.pages["/"] = response()
    fetch(web.url("/"), user_agent="lab-bot", contact="https://lab.example/bot")
    version = importlib.metadata.version("roseate")
    agent = f"lab-bot/{version} (+https://lab.example/bot; image-text dataset builder)"
    for request in web.requests:
        assert request.headers == {
            "host": f"127.0.0.2:{web.port}",
            "user-agent": agent,
            "accept": "image/*, application/octet-stream;q=0.5",
            "accept-encoding": "identity",
        }
    assert user_agent(DownloadConfig()) == f"roseate/{version} (image-text dataset builder)"


def test_secrets_of_a_url_are_neither_sent_nor_kept(web, fetch):
    web.pages["/"] = response()
    fetched = fetch(web.url("/", "user:secret@127.0.0.2"))
    assert fetched.status is Status.OK and "secret" not in fetched.final_url
    assert all("authorization" not in r.headers for r in web.requests)


def test_cookies_are_not_kept(web, fetch_all):
    web.pages["/"] = response(headers=("Set-Cookie: a=b",))
    fetch_all([web.url("/?1"), web.url("/?2")], per_host=1)
    assert all("cookie" not in r.headers for r in web.requests)


def test_opting_out_is_by_the_directives_of_the_config(web, fetch):
    web.pages["/"] = response(headers=("X-Robots-Tag: roseate: nocache", "X-Robots-Tag: noai"))
    assert fetch(web.url("/")).error == "X-Robots-Tag says noai"
    assert fetch(web.url("/"), opt_out_directives=["NoCache"]).error == "X-Robots-Tag says nocache"
    assert fetch(web.url("/"), opt_out_directives=[]).status is Status.OK
    other = fetch(web.url("/"), opt_out_directives=["nocache"], user_agent="other")
    assert other.status is Status.OK


def test_transient_failures_are_tried_again_and_others_are_not(web, fetch):
    web.pages["/"] = in_turn(
        response(b"", code=503), closing(b""), response(b"", code=403), silent()
    )
    fetched = fetch(web.url("/"), retries=5)
    assert (fetched.status, fetched.error) == (Status.HTTP_ERROR, "the server answered 403")
    assert not fetched.transient and fetched.seconds > 0.25


def test_tries_end(web, fetch):
    web.pages["/"] = response(b"", code=500)
    assert fetch(web.url("/"), retries=1).transient
    assert len(web.paths()) == 2


def test_redirects_end(web, fetch):
    web.pages["/"] = redirect("/")
    fetched = fetch(web.url("/"), max_redirects=3)
    assert (fetched.status, fetched.error) == (Status.TOO_MANY_REDIRECTS, "more than 3 redirects")
    assert len(web.paths()) == 4


def test_the_time_limit_is_that_of_all_redirects_together(web, fetch):
    pages = {f"/{i}": after(0.2, redirect(f"/{i + 1}")) for i in range(6)}
    web.pages |= pages
    fetched = fetch(web.url("/0"), timeout_seconds=0.7)
    assert (fetched.status, fetched.error) == (Status.TIMEOUT, "took longer than 0.7 s")
    assert len(web.paths()) < 6 and fetched.transient and fetched.body == b""


def test_silence_ends_sooner_than_time(web, fetch):
    web.pages["/"] = silent(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc")
    fetched = fetch(web.url("/"), robots="ignore", idle_seconds=1)
    assert fetched.status is Status.TIMEOUT and fetched.seconds < 20
    assert "Timeout on reading data" in fetched.error


def test_a_slow_server_that_is_never_silent_has_its_time(web, fetch):
    pieces = dripping(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n", b"a")
    web.pages["/"] = pieces
    assert fetch(web.url("/"), robots="ignore", idle_seconds=2).body == b"a" * 10


@pytest.mark.parametrize(
    ("url", "status", "error"),
    [
        ("ftp://example.com/a.jpg", Status.REFUSED_SCHEME, "not 'ftp'"),
        ("no address at all", Status.REFUSED_SCHEME, "not ''"),
        ("http:///a.jpg", Status.INVALID_URL, "not a usable URL"),
        ("http://no-such-host.invalid/a.jpg", Status.DNS, "no-such-host.invalid"),
    ],
)
def test_addresses_that_cannot_be_fetched(fetch, url, status, error):
    fetched = fetch(url)
    assert fetched.status is status and error in fetched.error
    assert fetched.transient is (status is Status.DNS)


@pytest.mark.parametrize("robots", ["obey", "ignore"])
def test_nobody_listens(fetch, robots):
    fetched = fetch(f"http://127.0.0.1:{free_port()}/", robots=robots, **LOCAL)
    assert fetched.status is Status.CONNECTION and fetched.transient
    assert "ClientConnectorError" in fetched.error


def test_limits_of_this_machine_are_not_blamed_on_the_web(web, fetch, monkeypatch):
    def no_more(self, addr_info):
        raise OSError(24, "Too many open files")

    monkeypatch.setattr("data_prep.fetch.guard.AddressGuard.open_socket", no_more)
    fetched = fetch(web.url("/"), robots="ignore")
    assert fetched.status is Status.INTERNAL_ERROR and fetched.transient


def test_many_rows_at_once_and_a_cancelled_shard_leave_nothing_behind(web):
    web.pages |= {"/": after(0.01, response()), "/robots.txt": after(0.05, response(b"", code=404))}

    async def run(seconds):
        config = DownloadConfig(allow_private_hosts=["127.0.0.2"], retries=0)
        async with Fetcher(config) as fetcher:
            rows = [asyncio.create_task(fetcher.fetch(web.url(f"/?{i}"))) for i in range(500)]
            await asyncio.wait(rows, timeout=seconds)
            for row in rows:
                row.cancel()
            ended = await asyncio.gather(*rows, return_exceptions=True)
            assert fetcher._hosts._turns.free == config.concurrency
            again = await fetcher.fetch(web.url("/"))
        left = [t for t in asyncio.all_tasks() if t is not asyncio.current_task()]
        return ended, again.status, left

    for seconds in (0.01, 0.1):
        ended, status, left = asyncio.run(run(seconds))
        assert any(isinstance(e, asyncio.CancelledError) for e in ended)
        assert status is Status.OK and left == []


@pytest.mark.parametrize(
    ("settings", "rule"),
    [
        (
            {"allow_private_hosts": ["http://a"]},
            "each entry is a host name, an address or a network",
        ),
        ({"nameservers": ["dns.example"]}, "each entry is an address or address:port"),
    ],
)
def test_bad_settings_are_refused_before_anything_starts(settings, rule):
    with pytest.raises(ValidationError, match=rule):
        DownloadConfig(**settings)
